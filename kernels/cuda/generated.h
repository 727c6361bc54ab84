// Kernels whose text is written while the program runs and compiled by NVRTC, for the shapes and
// element types at hand.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "graph/kernel_args.h"
#include "kernels/cuda/disk_cache.h"

namespace cleave {

class DeviceContext;

// Compiled kernels, kept in memory, and on disk from run to run.
class GeneratedKernels {
 public:
  explicit GeneratedKernels(const cudaDeviceProp& device);
  ~GeneratedKernels();
  GeneratedKernels(const GeneratedKernels&) = delete;
  GeneratedKernels& operator=(const GeneratedKernels&) = delete;

  // The kernel `cleave_kernel` (extern "C") of this CUDA C++ text, which may include "prelude.cuh".
  // It is for this stream, which must not be captured the first time.
  const void* kernel(const std::string& text, cudaStream_t stream);

 private:
  struct Loaded {
    cudaLibrary_t library = nullptr;
    cudaKernel_t kernel = nullptr;
  };
  std::string arch_;  // "sm_90"
  DiskCache cache_;
  std::map<std::string, Loaded> loaded_;
};

// The machine code of the text for an architecture, "sm_90". Needs no GPU. Throws InternalError
// with the compiler's words when the text is wrong.
std::string compiled(const std::string& text, const std::string& arch);

// An operand of loops: what it is, and how far one step of each loop moves in it.
struct LoopOperand {
  DType dtype = DType::kF32;
  void* data = nullptr;
  std::vector<int64_t> steps;  // in elements, one a loop
};

// Every out at one place is an expression of the ins there (see OpDef::element), over loops of
// these sizes, outermost first.
struct ElementLoops {
  std::vector<int64_t> sizes;
  std::vector<LoopOperand> in, out;
  std::string element;  // without "$"

  // Joins loops that can be one, and drops those of size 1.
  void merge();
};

// What an expression calls operand i: a, b, ..., z, v26, v27, ...
std::string operand_name(size_t i);

// The text of the kernel that runs the loops, and how many threads it is launched with: a multiple
// of kElementBlock.
struct ElementKernel {
  std::string text;
  int64_t threads = 0;
};
inline constexpr int kElementBlock = 256;
ElementKernel element_kernel(const ElementLoops& loops);

void launch(const ElementLoops& loops, DeviceContext& device, cudaStream_t stream);

// "float", "bf16", ...: an element in memory, as generated kernels call it.
std::string_view type_name(DType dtype);

// The expressions of an OpDef::element, one an output.
std::vector<std::string> expressions(std::string_view element);

// The element expression of an op with its attributes put in.
std::string filled_in(std::string_view element, const Attrs& attrs, bool is_double);

// `to` = `from`, of one shape, whose element types may differ.
void copy_on_device(const TensorView& to, const TensorView& from, const KernelArgs& args);

}  // namespace cleave
