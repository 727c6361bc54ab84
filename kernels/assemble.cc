// Ops that put tensors together along a dimension that is whole: the inverses of slices and unbind.
#include "kernels/assemble.h"

#include <algorithm>
#include <string>

#include "kernels/cuda_kernel.h"
#include "kernels/geometry.h"
#include "kernels/letters.h"
#include "kernels/loops.h"
#include "kernels/ops.h"
#include "kernels/parallel.h"

namespace cleave {

// kernels/cuda/assemble.cc
void stack_cuda(const KernelArgs&);
void concat_cuda(const KernelArgs&);
void unslice_cuda(const KernelArgs&);
void write_slice_cuda(const KernelArgs&);

size_t differing_dim(const Signature& s, const OperandDims& operand) {
  const OperandDims& out = s.outputs()[0];
  size_t found = out.size();
  for (size_t d = 0; d < out.size() && operand.size() == out.size(); ++d) {
    if (operand[d] == out[d]) continue;
    if (found != out.size()) fail("'{}' differs in more than one dimension", s.text());
    found = d;
  }
  if (found == out.size()) fail("'{}' has operands of different ranks, or equal ones", s.text());
  for (const DimFactors& dim : {operand[found], out[found]}) {
    if (dim.size() != 1 || !s.factors()[static_cast<size_t>(dim[0])].whole) {
      fail("'{}' needs a whole dimension there: a capital letter", s.text());
    }
  }
  return found;
}

size_t stacked_factor(const Signature& s) {
  for (const int8_t f : factors_of(s.outputs()[0])) {
    if (!s.in_inputs(f) && s.factors()[static_cast<size_t>(f)].whole) return static_cast<size_t>(f);
  }
  fail("'{}' adds no whole dimension", s.text());
}

namespace {

void check_dtypes(const OpCall& call) {
  for (const TensorType& t : call.in) {
    if (t.dtype != call.in[0].dtype) fail("operands must have one element type");
  }
}

std::vector<TensorType> same_dtype(const OpCall& call) {
  check_dtypes(call);
  return {{call.in[0].dtype, shape_of(call.signature.outputs()[0], call.extents)}};
}

char letter_of(const Signature& s, const DimFactors& dim) {
  return s.factors()[static_cast<size_t>(dim[0])].letter;
}

// --- stack ---------------------------------------------------------------------------------------

std::vector<TensorType> stack_infer(const OpCall& call) {
  const Signature& s = call.signature;
  const int64_t size = call.extents[stacked_factor(s)];
  if (size != static_cast<int64_t>(call.in.size())) {
    fail("'{}' stacks {} operands to a dimension of size {}", s.text(), call.in.size(), size);
  }
  return same_dtype(call);
}

std::optional<std::vector<Geometry>> stack_parts(const OpCall& call, const Geometry& whole) {
  const Signature& s = call.signature;
  const Shape strides = strides_of_factors(call, s.outputs()[0], whole);
  std::vector<Geometry> parts;
  for (size_t i = 0; i < s.inputs().size(); ++i) {
    const int64_t offset = static_cast<int64_t>(i) * strides[stacked_factor(s)];
    const auto part = geometry_from(call, s.inputs()[i], strides, whole.offset + offset);
    if (!part) return std::nullopt;
    parts.push_back(*part);
  }
  return parts;
}

std::vector<Value> stack_grad(GradContext& ctx) {
  const Signature& s = ctx.signature();
  std::string parts;
  for (size_t i = 0; i < s.inputs().size(); ++i) {
    if (i != 0) parts += ',';
    parts += s.input_text(i);
  }
  const std::string factors = s.output_text(0) + "->" + parts;
  return ctx.add(ops::unbind, {ctx.grad(0)}, factors, with_compound_sizes(ctx, factors, {}));
}

void stack_cpu(const KernelArgs& args) {
  with_element(args.out[0].dtype, [&]<class T>(T) {
    const Shape to = out_strides(args, 0);
    const int64_t stride = to[stacked_factor(args.signature)];
    for (size_t i = 0; i < args.in.size(); ++i) {
      const auto order = factors_of(args.signature.inputs()[i]);
      parallel_copy(args, nest_over<2>(args, order, {in_strides(args, i), to}),
                    args.in[i].as<const T>(),
                    args.out[0].as<T>() + static_cast<int64_t>(i) * stride);
    }
  });
}

// --- concat --------------------------------------------------------------------------------------

std::vector<TensorType> concat_infer(const OpCall& call) {
  const Signature& s = call.signature;
  const size_t d = differing_dim(s, s.inputs()[0]);
  std::vector<TensorType> out = same_dtype(call);
  int64_t size = 0;
  for (size_t i = 0; i < call.in.size(); ++i) {
    if (differing_dim(s, s.inputs()[i]) != d) fail("'{}' joins several dimensions", s.text());
    size += call.in[i].shape[d];
  }
  if (size != out[0].shape[d]) {
    fail("'{}' joins {} elements to a dimension of size {}", s.text(), size, out[0].shape[d]);
  }
  return out;
}

std::optional<std::vector<Geometry>> concat_parts(const OpCall& call, const Geometry& whole) {
  const Signature& s = call.signature;
  const size_t d = differing_dim(s, s.inputs()[0]);
  std::vector<Geometry> parts;
  int64_t offset = whole.offset;
  for (const OperandDims& dims : s.inputs()) {
    parts.push_back({offset, shape_of(dims, call.extents), whole.strides});
    offset += parts.back().shape[d] * whole.strides[d];
    settle_unit_strides(parts.back());
  }
  return parts;
}

std::vector<Value> concat_grad(GradContext& ctx) {
  const Signature& s = ctx.signature();
  const size_t d = differing_dim(s, s.inputs()[0]);
  std::vector<Value> grads;
  int64_t start = 0;
  for (size_t i = 0; i < s.inputs().size(); ++i) {
    const int64_t size = ctx.in_type(i).shape[d];
    const Attrs attrs = {{"start", start}, {"stop", start + size}, {"step", int64_t{1}}};
    grads.push_back(add_backward(ctx, ops::slice, {ctx.grad(0)},
                                 s.output_text(0) + "->" + s.input_text(i),
                                 with_size(attrs, letter_of(s, s.inputs()[i][d]), size)));
    start += size;
  }
  return grads;
}

void concat_cpu(const KernelArgs& args) {
  with_element(args.out[0].dtype, [&]<class T>(T) {
    const TensorView& out = args.out[0];
    const size_t d = differing_dim(args.signature, args.signature.inputs()[0]);
    T* to = out.as<T>();
    for (const TensorView& in : args.in) {
      copy_elements(in.as<const T>(), in.strides, to, out.strides, in.shape);
      to += in.shape[d] * out.strides[d];
    }
  });
}

// --- unslice and write_slice ---------------------------------------------------------------------

// Copies `slice` to where start, start + step, ... of dimension d of `whole` lie.
template <class T>
void put_slice(const KernelArgs& args, const TensorView& slice, const TensorView& whole, size_t d) {
  Shape strides = whole.strides;
  strides[d] *= args.attrs.integer("step");
  T* to = whole.as<T>() + args.attrs.integer("start") * whole.strides[d];
  copy_elements(slice.as<const T>(), slice.strides, to, strides, slice.shape);
}

void check_bounds(const OpCall& call, int64_t size, int64_t count) {
  const int64_t start = call.attrs.integer("start"), step = call.attrs.integer("step");
  if (start < 0 || start >= size || step < 1 || count - 1 > (size - 1 - start) / step) {
    fail("{} elements from {} by {} do not fit into a dimension of size {}", count, start, step,
         size);
  }
}

std::vector<TensorType> unslice_infer(const OpCall& call) {
  const size_t d = differing_dim(call.signature, call.signature.inputs()[0]);
  std::vector<TensorType> out = same_dtype(call);
  check_bounds(call, out[0].shape[d], call.in[0].shape[d]);
  return out;
}

std::vector<Value> unslice_grad(GradContext& ctx) {
  const Signature& s = ctx.signature();
  const size_t d = differing_dim(s, s.inputs()[0]);
  const int64_t start = ctx.attrs().integer("start"), step = ctx.attrs().integer("step");
  const int64_t size = ctx.in_type(0).shape[d];
  const Attrs attrs = {{"start", start}, {"stop", start + (size - 1) * step + 1}, {"step", step}};
  return {add_backward(ctx, ops::slice, {ctx.grad(0)}, s.output_text(0) + "->" + s.input_text(0),
                       with_size(attrs, letter_of(s, s.inputs()[0][d]), size))};
}

void unslice_cpu(const KernelArgs& args) {
  with_element(args.out[0].dtype, [&]<class T>(T) {
    const TensorView& out = args.out[0];
    LoopNest<1> nest;
    for (size_t d = 0; d < out.shape.size(); ++d) nest.add(out.shape[d], {out.strides[d]});
    for_each_row(nest, [&](const auto& at, int64_t n, const auto& step) {
      T* const y = out.as<T>() + at[0];
      for (int64_t j = 0; j < n; ++j) y[j * step[0]] = T{0};
    });
    put_slice<T>(args, args.in[0], out, differing_dim(args.signature, args.signature.inputs()[0]));
  });
}

std::vector<TensorType> write_slice_infer(const OpCall& call) {
  const Signature& s = call.signature;
  if (s.inputs()[0] != s.outputs()[0]) fail("'{}' changes the shape of its target", s.text());
  const size_t d = differing_dim(s, s.inputs()[1]);
  check_bounds(call, call.in[0].shape[d], call.in[1].shape[d]);
  const int64_t start = call.attrs.integer("start"), stop = call.attrs.integer("stop");
  const int64_t step = call.attrs.integer("step"), count = call.in[1].shape[d];
  if (stop <= start || stop > call.in[0].shape[d] || (stop - start - 1) / step + 1 != count) {
    fail("slice {}:{}:{} does not have {} elements", start, stop, step, count);
  }
  return same_dtype(call);
}

std::optional<std::vector<Geometry>> write_slice_written(const OpCall& call, const Geometry& in) {
  const Signature& s = call.signature;
  const size_t d = differing_dim(s, s.inputs()[1]);
  Geometry part{in.offset + call.attrs.integer("start") * in.strides[d],
                shape_of(s.inputs()[1], call.extents), in.strides};
  if (part.shape[d] > 1) part.strides[d] *= call.attrs.integer("step");
  return {{part}};
}

// What is overwritten has no gradient; what is written has the slice's.
std::vector<Value> write_slice_grad(GradContext& ctx) {
  const Signature& s = ctx.signature();
  const std::string x = s.input_text(0), u = s.input_text(1);
  Attrs sizes = {{"value", 0.0}, {"dtype", std::string(name_of(ctx.in_type(1).dtype))}};
  for (const int8_t f : factors_of(s.inputs()[1])) {
    const char letter = s.factors()[static_cast<size_t>(f)].letter;
    sizes = with_size(std::move(sizes), letter, ctx.extent(letter));
  }
  const Value zeros = add_backward(ctx, ops::fill, {}, "->" + u, sizes);
  const size_t d = differing_dim(s, s.inputs()[1]);
  const char letter = letter_of(s, s.inputs()[1][d]);
  const Attrs slice = with_size(ctx.attrs(), letter, ctx.extent(letter));
  return {add_backward(ctx, ops::write_slice, {ctx.grad(0), zeros}, s.text(), ctx.attrs()),
          add_backward(ctx, ops::slice, {ctx.grad(0)}, x + "->" + u, slice)};
}

// In place, only the slice is touched.
void write_slice_cpu(const KernelArgs& args) {
  const TensorView &x = args.in[0], &out = args.out[0];
  if (x.data != out.data) copy_elements(x, out);
  with_element(out.dtype, [&]<class T>(T) {
    put_slice<T>(args, args.in[1], out, differing_dim(args.signature, args.signature.inputs()[1]));
  });
}

double write_slice_bytes(const OpCall& call, std::span<const TensorType>) {
  return 2.0 * static_cast<double>(numel(call.in[1].shape) * size_of(call.in[1].dtype));
}

}  // namespace

constinit const OpDef ops::stack = {
    .name = "stack",
    .factors = "...,...->...C",  // of two; the caller spells out more
    .infer = stack_infer,
    .flops = no_flops,
    .grad = stack_grad,
    .linear = true,
    .cpu = stack_cpu,
    .cuda = cuda_kernel<stack_cuda>(),
};

constinit const OpDef ops::concat = {
    .name = "concat",
    .factors = "...X,...Y->...Z",
    .infer = concat_infer,
    .flops = no_flops,
    .grad = concat_grad,
    .linear = true,
    .cpu = concat_cpu,
    .cuda = cuda_kernel<concat_cuda>(),
};

constinit const OpDef ops::unslice = {
    .name = "unslice",
    .factors = "...Y->...X",
    .infer = unslice_infer,
    .flops = no_flops,
    .grad = unslice_grad,
    .linear = true,
    .cpu = unslice_cpu,
    .cuda = cuda_kernel<unslice_cuda>(),
};

constinit const OpDef ops::write_slice = {
    .name = "write_slice",
    .factors = "...X,...Y->...X",
    .infer = write_slice_infer,
    .flops = no_flops,
    .bytes = write_slice_bytes,  // in place, as it is nearly always used
    .grad = write_slice_grad,
    .written = write_slice_written,
    .linear = true,
    .cpu = write_slice_cpu,
    .cuda = cuda_kernel<write_slice_cuda>(),
};

std::optional<std::vector<Geometry>> parts_of(const OpDef& op, const OpCall& call,
                                              const Geometry& whole) {
  if (&op == &ops::stack) return stack_parts(call, whole);
  if (&op == &ops::concat) return concat_parts(call, whole);
  return std::nullopt;
}

}  // namespace cleave
