// What the kernels of one GPU share: library handles, and what was found out or made once, such as
// compiled kernels and the fastest algorithm of a product. Used by one host thread at a time.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <memory>
#include <utility>

#include "kernels/cuda/workspace.h"

namespace cleave {

class CudnnAttention;
class GeneratedKernels;
class ProductAlgorithms;

// Throws Error, one line, when Cleave's kernels are not for this GPU.
void expect_new_enough(const cudaDeviceProp& properties);

class DeviceContext {
 public:
  // Of the device with this number, which becomes the calling thread's. Throws Error when there is
  // none, or it is too old.
  explicit DeviceContext(int device);
  ~DeviceContext();
  DeviceContext(const DeviceContext&) = delete;
  DeviceContext& operator=(const DeviceContext&) = delete;

  int device() const { return device_; }
  const cudaDeviceProp& properties() const { return properties_; }
  int multiprocessors() const { return properties_.multiProcessorCount; }
  cublasLtHandle_t blas() const { return blas_; }
  GeneratedKernels& generated() { return *generated_; }
  ProductAlgorithms& products() { return *products_; }
  CudnnAttention& attention() { return *attention_; }
  // Memory for copies of operands that lie in an unusual way, beside the arena, for kernels of this
  // stream. Grows when it is asked for more, which must not happen while a graph is captured; what
  // was given before is then gone.
  void* scratch(int slot, int64_t bytes, cudaStream_t stream);
  int64_t scratch_bytes() const;  // in all slots
  // Products of f32 in TF32: faster, with the mantissa of f16.
  bool tf32 = false;
  // Kernels of our own beside those of cuBLASLt: before them, which makes them what is proposed,
  // behind them, or not at all.
  enum class OwnProducts : uint8_t { kNone, kLast, kFirst };
  // How the algorithm of a product is searched for: among so many, with so much scratch memory,
  // which KernelArgs::workspace must then have; `any_order`: also those whose sums may come out in
  // another order each time. Before the first product.
  struct ProductSearch {
    int candidates = 16;
    int64_t workspace = kProductWorkspace;
    bool any_order = false;
    OwnProducts own = OwnProducts::kLast;
  };
  ProductSearch product_search;
  // Attention of 16 bits by our own kernels on tensor cores where they can; off: by cuDNN.
  bool tensor_core_attention = kTensorCoreAttention;
  // Else by cuDNN where it can; off: by our own kernels for any type.
  bool cudnn_attention = true;
  // cuDNN's backward of attention gives the same bits every time, for which it stores weights; off:
  // it adds in any order.
  bool deterministic_attention = true;

 private:
  const int device_;
  cudaDeviceProp properties_;
  cublasLtHandle_t blas_ = nullptr;
  std::unique_ptr<GeneratedKernels> generated_;
  std::unique_ptr<ProductAlgorithms> products_;
  std::unique_ptr<CudnnAttention> attention_;
  std::map<int, std::pair<void*, int64_t>> scratch_;
};

}  // namespace cleave
