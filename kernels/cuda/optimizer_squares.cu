// Sums of squares of any number of tensors: a block adds up a piece of one, then a block adds up
// each tensor's pieces.
#include <map>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/loops.cuh"
#include "kernels/cuda/many.cuh"
#include "kernels/cuda/workspace.h"

namespace cleave {
namespace {

constexpr int kThreads = 256;

struct Squared {
  const void* x = nullptr;
  int64_t count = 0;
  double* parts = nullptr;  // [squares_pieces(count)]
  AnyFloat out;
};

// --- Kernels -------------------------------------------------------------------------------------

// The sum over the block, in thread 0.
__device__ double block_sum(double sum) {
  __shared__ double sums[kThreads / 32];
  for (int width = 16; width > 0; width /= 2) sum += __shfl_down_sync(~0u, sum, width);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < kThreads / 32 ? sums[threadIdx.x] : 0;
    for (int width = kThreads / 64; width > 0; width /= 2) {
      sum += __shfl_down_sync(~0u, sum, width);
    }
  }
  return sum;
}

template <class T>
__device__ auto square(T x) {
  return number(x) * number(x);
}

// Dense tensors. The squares of 16 bytes are added as floats, the rest as doubles.
template <class T>
__global__ void __launch_bounds__(kThreads)
    square_pieces(const __grid_constant__ Table<Squared> table) {
  constexpr int N = kWide<T>, kUnroll = 8;
  const int which = table.item_of(blockIdx.x);
  const Squared& item = table.items[which];
  const int64_t piece = blockIdx.x - table.first[which], begin = piece * kSquaresPiece;
  const int64_t left = item.count - begin;
  const int n = left < kSquaresPiece ? static_cast<int>(left) : kSquaresPiece;
  const T* const x = static_cast<const T*>(item.x) + begin;
  const int vectors = n / N;
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < vectors; i += kUnroll * kThreads) {
    Vec<T, N> v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (i + u * kThreads < vectors) v[u] = load<N>(x + (i + u * kThreads) * N);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (i + u * kThreads >= vectors) break;
      typename Sum<T>::Type few = 0;
#pragma unroll
      for (int j = 0; j < N; ++j) few += square(v[u].x[j]);
      sum += few;
    }
  }
  const int rest = vectors * N + static_cast<int>(threadIdx.x);
  if (rest < n) sum += square(x[rest]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) item.parts[piece] = sum;
}

// One tensor that lies in any way.
template <class T>
__global__ void __launch_bounds__(kThreads)
    square_elements(const T* x, Loops<1> loops, double* parts) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kSquaresPiece;
  const int64_t end = begin + kSquaresPiece < loops.count ? begin + kSquaresPiece : loops.count;
  double sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    int64_t at[1];
    loops.offsets(i, at);
    sum += square(x[at[0]]);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    add_parts(const __grid_constant__ Table<Squared> table) {
  const Squared& item = table.items[blockIdx.x];
  const int count = static_cast<int>((item.count + kSquaresPiece - 1) / kSquaresPiece);
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) sum += item.parts[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) set(item.out, 0, sum);
}

}  // namespace

// --- Launchers -----------------------------------------------------------------------------------

void sum_squares_cuda_many(std::span<const KernelArgs> all) {
  if (all.empty()) return;
  auto* const stream = static_cast<cudaStream_t>(all[0].stream);
  std::vector<Squared> items;
  std::map<DType, std::vector<Squared>> dense;
  for (const KernelArgs& args : all) {
    const auto nest =
        nest_over<1>(args, factors_of(args.signature.inputs()[0]), {in_strides(args, 0)});
    const TensorView& x = args.in[0];
    items.push_back(
        {x.data, nest.count(), static_cast<double*>(args.workspace), any_float(args.out[0])});
    if (is_dense<1>(nest, {x.data})) {
      dense[x.dtype].push_back(items.back());
      continue;
    }
    const auto blocks = static_cast<unsigned>(squares_pieces(nest.count()));
    if (blocks == 0) continue;
    with_gpu_float(x.dtype, [&]<class T>(T) {
      square_elements<T><<<blocks, kThreads, 0, stream>>>(x.as<const T>(), loops_of(nest),
                                                          static_cast<double*>(args.workspace));
    });
    cuda_check(cudaGetLastError());
  }
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16, DType::kF16}) {
    in_tables(
        dense[dtype], [](const Squared& item) { return squares_pieces(item.count); },
        [&](const Table<Squared>& table, unsigned pieces) {
          with_gpu_float(
              dtype, [&]<class T>(T) { square_pieces<T><<<pieces, kThreads, 0, stream>>>(table); });
          cuda_check(cudaGetLastError());
        });
  }
  in_tables(
      items, [](const Squared&) { return 1; },
      [&](const Table<Squared>& table, unsigned blocks) {
        add_parts<<<blocks, kThreads, 0, stream>>>(table);
        cuda_check(cudaGetLastError());
      });
}

void sum_squares_cuda(const KernelArgs& args) { sum_squares_cuda_many({&args, 1}); }

}  // namespace cleave
