#include "kernels/cuda/random_fill.h"

#include <type_traits>

#include "kernels/cuda/check.h"
#include "kernels/cuda/prelude.cuh"

namespace cleave {
namespace {

// splitmix64.
__device__ unsigned long long mixed(unsigned long long z) {
  z += 0x9E3779B97F4A7C15ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

template <class T>
__global__ void fill(T* data, long long count, unsigned long long seed) {
  const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; i < count;
       i += step) {
    const unsigned long long bits =
        mixed(seed * 0x100000001B3ULL + static_cast<unsigned long long>(i));
    if constexpr (std::is_integral_v<T>) {
      data[i] = static_cast<T>(bits & 1);
    } else {
      data[i] = To<T>::of(static_cast<float>(bits >> 40) * 0x1p-23f - 1.0f);
    }
  }
}

}  // namespace

void fill_random(void* data, DType dtype, int64_t count, uint64_t seed, cudaStream_t stream) {
  if (count == 0) return;
  const auto go = [&]<class T>(T) {
    fill<T><<<1024, 256, 0, stream>>>(static_cast<T*>(data), count, seed);
  };
  switch (dtype) {
    case DType::kF64: go(double{}); break;
    case DType::kF32: go(float{}); break;
    case DType::kBF16: go(bf16{}); break;
    case DType::kF16: go(f16{}); break;
    case DType::kI32: go(int{}); break;
    case DType::kF8E4M3: go(f8e4m3{}); break;
    case DType::kF8E5M2: go(f8e5m2{}); break;
    case DType::kI16: go(short{}); break;
  }
  cuda_check(cudaGetLastError());
}

}  // namespace cleave
