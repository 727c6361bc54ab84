// Ops that copy: every operand to its part of the result, by generated loops.
#include "kernels/assemble.h"

#include <cstddef>

#include "kernels/cuda/context.h"
#include "kernels/cuda/generated.h"
#include "kernels/loops.h"

namespace cleave {
namespace {

// The part of a view whose dimension d is start, start + step, ...: `count` of them.
TensorView part_of(TensorView view, size_t d, int64_t start, int64_t step, int64_t count) {
  view.data = static_cast<std::byte*>(view.data) + start * view.strides[d] * size_of(view.dtype);
  view.shape[d] = count;
  view.strides[d] *= step;
  return view;
}

void clear(const TensorView& view, const KernelArgs& args) {
  ElementLoops loops;
  loops.sizes = view.shape;
  loops.out = {{view.dtype, view.data, view.strides}};
  loops.element = "0";
  loops.merge();
  launch(loops, *args.device, static_cast<cudaStream_t>(args.stream));
}

// The part of `whole` that the attributes name becomes `slice`.
void put_slice(const TensorView& slice, const TensorView& whole, size_t d, const KernelArgs& args) {
  const int64_t start = args.attrs.integer("start"), step = args.attrs.integer("step");
  copy_on_device(part_of(whole, d, start, step, slice.shape[d]), slice, args);
}

}  // namespace

// Both sides hold the same elements in row-major order.
void reshape_cuda(const KernelArgs& args) {
  const TensorView &in = args.in[0], &out = args.out[0];
  if (out.contiguous()) {
    copy_on_device({out.data, out.dtype, in.shape, contiguous_strides(in.shape)}, in, args);
    return;
  }
  TensorView source = {in.data, in.dtype, out.shape, contiguous_strides(out.shape)};
  if (!in.contiguous()) {
    source.data = args.workspace;
    copy_on_device({source.data, in.dtype, in.shape, contiguous_strides(in.shape)}, in, args);
  }
  copy_on_device(out, source, args);
}

void stack_cuda(const KernelArgs& args) {
  const TensorView& out = args.out[0];
  const Shape to = out_strides(args, 0);
  const size_t stacked = stacked_factor(args.signature);
  for (size_t i = 0; i < args.in.size(); ++i) {
    const TensorView& in = args.in[i];
    const Shape from = in_strides(args, i);
    const int64_t start = static_cast<int64_t>(i) * to[stacked];
    LoopOperand source{in.dtype, in.data, {}};
    LoopOperand target{
        out.dtype, static_cast<std::byte*>(out.data) + start * size_of(out.dtype), {}};
    ElementLoops loops;
    for (const int8_t factor : factors_of(args.signature.inputs()[i])) {
      const auto f = static_cast<size_t>(factor);
      loops.sizes.push_back(args.extents[f].local);
      source.steps.push_back(from[f]);
      target.steps.push_back(to[f]);
    }
    loops.in = {source};
    loops.out = {target};
    loops.element = "a";
    loops.merge();
    launch(loops, *args.device, static_cast<cudaStream_t>(args.stream));
  }
}

void concat_cuda(const KernelArgs& args) {
  const size_t d = differing_dim(args.signature, args.signature.inputs()[0]);
  int64_t start = 0;
  for (const TensorView& in : args.in) {
    copy_on_device(part_of(args.out[0], d, start, 1, in.shape[d]), in, args);
    start += in.shape[d];
  }
}

void unslice_cuda(const KernelArgs& args) {
  const TensorView &slice = args.in[0], &out = args.out[0];
  const size_t d = differing_dim(args.signature, args.signature.inputs()[0]);
  const int64_t start = args.attrs.integer("start"), step = args.attrs.integer("step");
  if (step == 1) {
    const int64_t end = start + slice.shape[d];
    if (start > 0) clear(part_of(out, d, 0, 1, start), args);
    if (end < out.shape[d]) clear(part_of(out, d, end, 1, out.shape[d] - end), args);
  } else {
    clear(out, args);
  }
  put_slice(slice, out, d, args);
}

// In place, only the slice is touched.
void write_slice_cuda(const KernelArgs& args) {
  const TensorView &x = args.in[0], &out = args.out[0];
  if (x.data != out.data) copy_on_device(out, x, args);
  put_slice(args.in[1], out, differing_dim(args.signature, args.signature.inputs()[1]), args);
}

}  // namespace cleave
