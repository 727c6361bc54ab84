// Ops that move no numbers: another look at the same storage. Only reshape may need a copy, when
// its result cannot be described by strides.
#include <algorithm>
#include <string>

#include "kernels/cuda/workspace.h"
#include "kernels/cuda_kernel.h"
#include "kernels/geometry.h"
#include "kernels/letters.h"
#include "kernels/loops.h"
#include "kernels/ops.h"

namespace cleave {

void reshape_cuda(const KernelArgs&);  // kernels/cuda/assemble.cc

namespace {

std::vector<TensorType> same_dtype(const OpCall& call) {
  std::vector<TensorType> out;
  for (const OperandDims& dims : call.signature.outputs()) {
    out.push_back({call.in[0].dtype, shape_of(dims, call.extents)});
  }
  return out;
}

std::string reversed(const Signature& s) { return s.output_text(0) + "->" + s.input_text(0); }

// Whether the operand carries all of these factors.
bool carries_all(const OperandDims& operand, std::span<const int8_t> factors) {
  for (const int8_t f : factors) {
    if (!Signature::carries(operand, f)) return false;
  }
  return true;
}

// --- reshape -------------------------------------------------------------------------------------

// Row-major order is kept: between the factors that both sides share, in the same order, lie whole
// factors of equal products.
std::vector<TensorType> reshape_infer(const OpCall& call) {
  const Signature& s = call.signature;
  const OperandDims &in = s.inputs()[0], &out = s.outputs()[0];
  const auto runs = [&](const OperandDims& dims, const OperandDims& other) {
    std::vector<std::pair<int8_t, int64_t>> result = {{-1, 1}};  // shared factor, product after it
    for (const int8_t f : factors_of(dims)) {
      if (Signature::carries(other, f)) {
        result.emplace_back(f, 1);
        continue;
      }
      if (!s.factors()[static_cast<size_t>(f)].whole) {
        fail("factor '{}' of '{}' is on one side only, so it must be whole: a capital letter",
             s.factors()[static_cast<size_t>(f)].letter, s.text());
      }
      result.back().second *= call.extents[static_cast<size_t>(f)];
    }
    return result;
  };
  if (runs(in, out) != runs(out, in)) {
    fail("'{}' does not keep the elements in order: from {} to {}", s.text(),
         to_string(call.in[0].shape), to_string(shape_of(out, call.extents)));
  }
  return same_dtype(call);
}

// Fits the new dimensions, innermost first, into stretches of the old ones that have one stride.
std::optional<std::vector<Geometry>> reshape_view(const OpCall& call, const Geometry& in) {
  Geometry out{in.offset, shape_of(call.signature.outputs()[0], call.extents), {}};
  out.strides.assign(out.shape.size(), 1);
  LoopNest<1> stretches;
  for (size_t d = 0; d < in.shape.size(); ++d) stretches.add(in.shape[d], {in.strides[d]});
  size_t d = out.shape.size();
  for (size_t i = stretches.sizes.size(); i-- > 0;) {
    int64_t left = stretches.sizes[i], stride = stretches.steps[i][0];
    while (left > 1) {
      if (d == 0) return std::nullopt;
      --d;
      if (left % out.shape[d] != 0) return std::nullopt;
      out.strides[d] = stride;
      stride *= out.shape[d];
      left /= out.shape[d];
    }
  }
  settle_unit_strides(out);
  return {{out}};
}

std::vector<Value> reshape_grad(GradContext& ctx) {
  const Signature& s = ctx.signature();
  Attrs made;  // sizes of the factors that the output does not have
  for (const int8_t f : factors_of(s.inputs()[0])) {
    if (Signature::carries(s.outputs()[0], f)) continue;
    const char letter = s.factors()[static_cast<size_t>(f)].letter;
    made = with_size(std::move(made), letter, ctx.extent(letter));
  }
  return {add_backward(ctx, ops::reshape, {ctx.grad(0)}, reversed(s), made)};
}

// Both sides hold the same elements in row-major order.
void reshape_cpu(const KernelArgs& args) {
  with_element(args.out[0].dtype, [&]<class T>(T) {
    const TensorView &in = args.in[0], &out = args.out[0];
    if (out.contiguous()) {
      copy_elements(in.as<const T>(), in.strides, out.as<T>(), contiguous_strides(in.shape),
                    in.shape);
    } else {
      const ContiguousInput<T> source(in);
      copy_elements(source.data(), contiguous_strides(out.shape), out.as<T>(), out.strides,
                    out.shape);
    }
  });
}

// --- transpose -----------------------------------------------------------------------------------

std::vector<TensorType> transpose_infer(const OpCall& call) {
  OperandDims in = call.signature.inputs()[0], out = call.signature.outputs()[0];
  std::sort(in.begin(), in.end());
  std::sort(out.begin(), out.end());
  if (in != out) fail("'{}' is not a permutation of dimensions", call.signature.text());
  return same_dtype(call);
}

std::vector<Value> transpose_grad(GradContext& ctx) {
  return {add_backward(ctx, ops::transpose, {ctx.grad(0)}, reversed(ctx.signature()))};
}

// Each output dimension is made of the input's factors, or of new ones, with stride 0.
std::optional<std::vector<Geometry>> factors_view(const OpCall& call, const Geometry& in) {
  const Signature& s = call.signature;
  auto out =
      geometry_from(call, s.outputs()[0], strides_of_factors(call, s.inputs()[0], in), in.offset);
  CLEAVE_ASSERT(out.has_value(), "'{}' is not a view", s.text());
  return {{*out}};
}

// --- expand --------------------------------------------------------------------------------------

std::vector<TensorType> expand_infer(const OpCall& call) {
  const Signature& s = call.signature;
  if (!carries_all(s.outputs()[0], factors_of(s.inputs()[0]))) {
    fail("'{}' drops a dimension", s.text());
  }
  for (const DimFactors& dim : s.outputs()[0]) {
    if (dim.size() < 2) continue;
    const auto& dims = s.inputs()[0];
    const bool old = std::find(dims.begin(), dims.end(), dim) != dims.end();
    for (const int8_t f : dim) {
      if (!old && s.in_inputs(f)) fail("'{}' expands inside a compound dimension", s.text());
    }
  }
  return same_dtype(call);
}

std::vector<Value> expand_grad(GradContext& ctx) {
  return {add_backward(ctx, ops::sum, {ctx.grad(0)}, reversed(ctx.signature()))};
}

// --- slice ---------------------------------------------------------------------------------------

// The one dimension in which input and output differ.
size_t sliced_dim(const Signature& s) {
  const OperandDims &in = s.inputs()[0], &out = s.outputs()[0];
  size_t found = in.size();
  for (size_t d = 0; d < in.size() && in.size() == out.size(); ++d) {
    if (in[d] == out[d]) continue;
    if (found != in.size()) fail("'{}' slices more than one dimension", s.text());
    found = d;
  }
  if (found == in.size()) fail("'{}' slices no dimension", s.text());
  for (const DimFactors& dim : {in[found], out[found]}) {
    if (dim.size() != 1 || !s.factors()[static_cast<size_t>(dim[0])].whole) {
      fail("'{}' must slice a whole dimension: a capital letter", s.text());
    }
  }
  return found;
}

std::vector<TensorType> slice_infer(const OpCall& call) {
  const size_t d = sliced_dim(call.signature);
  const int64_t start = call.attrs.integer("start"), stop = call.attrs.integer("stop");
  const int64_t step = call.attrs.integer("step"), size = call.in[0].shape[d];
  if (start < 0 || start >= stop || stop > size || step < 1) {
    fail("slice {}:{}:{} does not fit into a dimension of size {}", start, stop, step, size);
  }
  std::vector<TensorType> out = same_dtype(call);
  if (out[0].shape[d] != (stop - start - 1) / step + 1) {
    fail("slice {}:{}:{} does not have {} elements", start, stop, step, out[0].shape[d]);
  }
  return out;
}

std::optional<std::vector<Geometry>> slice_view(const OpCall& call, const Geometry& in) {
  const size_t d = sliced_dim(call.signature);
  Geometry out{in.offset + call.attrs.integer("start") * in.strides[d],
               shape_of(call.signature.outputs()[0], call.extents), in.strides};
  if (out.shape[d] > 1) out.strides[d] *= call.attrs.integer("step");
  settle_unit_strides(out);
  return {{out}};
}

std::vector<Value> slice_grad(GradContext& ctx) {
  const size_t d = sliced_dim(ctx.signature());
  const Signature& s = ctx.signature();
  Attrs attrs = {{"start", ctx.attrs().integer("start")}, {"step", ctx.attrs().integer("step")}};
  const char letter = s.factors()[static_cast<size_t>(s.inputs()[0][d][0])].letter;
  attrs = with_size(std::move(attrs), letter, ctx.in_type(0).shape[d]);
  return {add_backward(ctx, ops::unslice, {ctx.grad(0)}, reversed(s), attrs)};
}

// --- unbind --------------------------------------------------------------------------------------

// The factor that the outputs lack.
size_t unbound_factor(const Signature& s) {
  for (const int8_t f : factors_of(s.inputs()[0])) {
    if (s.reduced_in(f, 0) && s.factors()[static_cast<size_t>(f)].whole) {
      return static_cast<size_t>(f);
    }
  }
  fail("'{}' takes no whole dimension apart", s.text());
}

std::vector<TensorType> unbind_infer(const OpCall& call) {
  const Signature& s = call.signature;
  const size_t f = unbound_factor(s);
  if (static_cast<int64_t>(s.outputs().size()) != call.extents[f]) {
    fail("'{}' gives {} outputs for a dimension of size {}", s.text(), s.outputs().size(),
         call.extents[f]);
  }
  return same_dtype(call);
}

std::optional<std::vector<Geometry>> unbind_view(const OpCall& call, const Geometry& in) {
  const Signature& s = call.signature;
  const Shape strides = strides_of_factors(call, s.inputs()[0], in);
  const int64_t stride = strides[unbound_factor(s)];
  std::vector<Geometry> result;
  for (size_t i = 0; i < s.outputs().size(); ++i) {
    const int64_t offset = in.offset + static_cast<int64_t>(i) * stride;
    const auto out = geometry_from(call, s.outputs()[i], strides, offset);
    if (!out) fail("'{}' is not a view of its operand", s.text());
    result.push_back(*out);
  }
  return result;
}

// Outputs that nothing depends on have a gradient of zeros.
std::vector<Value> unbind_grad(GradContext& ctx) {
  const Signature& s = ctx.signature();
  const size_t f = unbound_factor(s);
  std::vector<Value> grads;
  std::string factors;
  for (size_t i = 0; i < s.outputs().size(); ++i) {
    grads.push_back(ctx.grad(i));
    if (i != 0) factors += ',';
    factors += s.output_text(i);
    if (grads[i] != kNoValue) continue;
    Attrs attrs = {{"value", 0.0}, {"dtype", std::string(name_of(ctx.in_type(0).dtype))}};
    for (const int8_t g : factors_of(s.outputs()[i])) {
      const char letter = s.factors()[static_cast<size_t>(g)].letter;
      attrs = with_size(std::move(attrs), letter, ctx.extent(letter));
    }
    grads[i] = add_backward(ctx, ops::fill, {}, "->" + s.output_text(i), attrs);
  }
  const char letter = s.factors()[f].letter;
  return {add_backward(ctx, ops::stack, grads, factors + "->" + s.input_text(0),
                       with_size({}, letter, ctx.extent(letter)))};
}

}  // namespace

constinit const OpDef ops::reshape = {
    .name = "reshape",
    .factors = "...->...",
    .infer = reshape_infer,
    .flops = no_flops,
    .grad = reshape_grad,
    .view = reshape_view,
    .linear = true,
    .cpu = reshape_cpu,
    .cuda = cuda_kernel<reshape_cuda>(),
    .cuda_workspace = reshape_workspace,
};

constinit const OpDef ops::transpose = {
    .name = "transpose",
    .factors = "...ab->...ba",
    .infer = transpose_infer,
    .flops = no_flops,
    .bytes = no_bytes,
    .grad = transpose_grad,
    .view = factors_view,
    .linear = true,
};

constinit const OpDef ops::expand = {
    .name = "expand",
    .factors = "...->...",
    .infer = expand_infer,
    .flops = no_flops,
    .bytes = no_bytes,
    .grad = expand_grad,
    .view = factors_view,
    .linear = true,
};

constinit const OpDef ops::slice = {
    .name = "slice",
    .factors = "...X->...Y",
    .infer = slice_infer,
    .flops = no_flops,
    .bytes = no_bytes,
    .grad = slice_grad,
    .view = slice_view,
    .linear = true,
};

constinit const OpDef ops::unbind = {
    .name = "unbind",
    .factors = "...C->...",  // of a dimension of size 1; the caller spells out more outputs
    .infer = unbind_infer,
    .flops = no_flops,
    .bytes = no_bytes,
    .grad = unbind_grad,
    .view = unbind_view,
    .linear = true,
};

}  // namespace cleave
