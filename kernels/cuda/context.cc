#include "kernels/cuda/context.h"

#include "graph/error.h"
#include "kernels/cuda/attention_cudnn.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/generated.h"
#include "kernels/cuda/libraries.h"
#include "kernels/cuda/products.h"

namespace cleave {

void expect_new_enough(const cudaDeviceProp& properties) {
  if (properties.major >= 9) return;
  fail(
      "GPU {} is too old: Cleave's kernels are built for compute capability 9.0 (H100, H200) and "
      "later, and it has {}.{}; --devices cpu:N runs on the processor",
      properties.name, properties.major, properties.minor);
}

DeviceContext::DeviceContext(int device) : device_(device), properties_{} {
  cuda_check(cudaSetDevice(device));
  cuda_check(cudaGetDeviceProperties(&properties_, device));
  expect_new_enough(properties_);
  cuda_check(cublas_lt().Create(&blas_));
  generated_ = std::make_unique<GeneratedKernels>(properties_);
  products_ = std::make_unique<ProductAlgorithms>();
  attention_ = std::make_unique<CudnnAttention>();
}

DeviceContext::~DeviceContext() {
  for (const auto& [slot, memory] : scratch_) cudaFree(memory.first);
  if (blas_ != nullptr) cublas_lt().Destroy(blas_);
}

void* DeviceContext::scratch(int slot, int64_t bytes, cudaStream_t stream) {
  auto& [data, size] = scratch_[slot];
  if (bytes > size) {
    expect_not_captured(stream, "memory for copies of operands");
    cuda_check(cudaFree(data));
    data = nullptr, size = 0;
    cuda_check(cudaMalloc(&data, static_cast<size_t>(bytes)));
    size = bytes;
  }
  return data;
}

int64_t DeviceContext::scratch_bytes() const {
  int64_t bytes = 0;
  for (const auto& [slot, memory] : scratch_) bytes += memory.second;
  return bytes;
}

}  // namespace cleave
