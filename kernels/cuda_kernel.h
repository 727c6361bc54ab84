// A launcher that is there in builds with CUDA only.
#pragma once

#include "graph/op.h"

namespace cleave {

// The launcher; null in a build without CUDA, where it then need not be defined.
template <KernelFn kLauncher>
constexpr KernelFn cuda_kernel() {
#ifdef CLEAVE_CUDA
  return kLauncher;
#else
  return nullptr;
#endif
}

// The same of a launcher for several applications at once.
template <KernelsFn kLauncher>
constexpr KernelsFn cuda_kernels() {
#ifdef CLEAVE_CUDA
  return kLauncher;
#else
  return nullptr;
#endif
}

// For ops with an OpDef::element (kernels/cuda/pointwise.cc).
void generated_cuda(const KernelArgs& args);
void add_n_cuda(const KernelArgs& args);

}  // namespace cleave
