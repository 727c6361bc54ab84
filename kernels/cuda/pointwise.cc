// The ops that are described by an expression of one element.
#include "kernels/cuda/generated.h"
#include "kernels/cuda_kernel.h"
#include "kernels/loops.h"

namespace cleave {
namespace {

ElementLoops loops_of(const KernelArgs& args) {
  const auto order = factors_of(args.signature.outputs()[0]);
  ElementLoops loops;
  for (const int8_t f : order) loops.sizes.push_back(args.extents[static_cast<size_t>(f)].local);
  const auto operand = [&](const TensorView& view, const Shape& strides) {
    LoopOperand o{view.dtype, view.data, {}};
    for (const int8_t f : order) o.steps.push_back(strides[static_cast<size_t>(f)]);
    return o;
  };
  for (size_t i = 0; i < args.in.size(); ++i) {
    loops.in.push_back(operand(args.in[i], in_strides(args, i)));
  }
  for (size_t o = 0; o < args.out.size(); ++o) {
    loops.out.push_back(operand(args.out[o], out_strides(args, o)));
  }
  return loops;
}

}  // namespace

namespace {

void run_elements(const KernelArgs& args, std::string_view element) {
  ElementLoops loops = loops_of(args);
  bool is_double = args.out[0].dtype == DType::kF64;
  for (const TensorView& t : args.in) is_double |= t.dtype == DType::kF64;
  loops.element = filled_in(element, args.attrs, is_double);
  loops.merge();
  launch(loops, *args.device, static_cast<cudaStream_t>(args.stream));
}

}  // namespace

void generated_cuda(const KernelArgs& args) { run_elements(args, args.element); }

void add_n_cuda(const KernelArgs& args) {
  std::string element = "a";
  for (size_t i = 1; i < args.in.size(); ++i) {
    element += " + " + operand_name(i);
  }
  run_elements(args, element);
}

}  // namespace cleave
