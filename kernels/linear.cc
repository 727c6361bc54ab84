// A matrix product to which a bias, a residual, or both are added before it is stored, or with
// GELU: what fusion makes of a product and what stands behind it (executor/fuse.h). Models write
// the parts.
//
//   a, b [, bias] [, residual] -> c       bias: the last factor of c; residual: as c
//   a, b [, bias] -> c, y                 `gelu`: y = gelu(c)
//   a, b, x -> c [, sums]                 `gelu_backward`: of the product, the gradient of gelu(x);
//                                         `sum`: those of c over all but its last factor, in f32
//                                         of halves with bit 1 of `wide`
//   a, b -> c, y                          `swiglu`: the last factor of c but one is of size 2, for
//                                         the gate and what it lets through; y = swiglu(both)
//   a, b, gate, up -> dgate, dup          `swiglu_backward`: of the product, the gradient of
//                                         swiglu(gate, up)
//
// What is summed over is whole, or each partial sum would add the rest. With the attribute `dtype`,
// f32, products of halves are stored as they are summed, and what is added is f32, too: a gradient
// that is added to those of other micro-batches, in place.
#include <string>
#include <vector>

#include "kernels/cuda/product_operands.h"
#include "kernels/cuda_kernel.h"
#include "kernels/gated_part.h"
#include "kernels/loops.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"
#include "kernels/run_part.h"

namespace cleave {

void linear_cuda(const KernelArgs& args);

namespace {

bool has(const Attrs& attrs, std::string_view name) { return attrs.integer_or(name, 0) != 0; }

bool is_gated(const Attrs& attrs) { return has(attrs, "swiglu") || has(attrs, "swiglu_backward"); }

size_t operands_of(const Attrs& attrs) {
  size_t operands = has(attrs, "swiglu_backward") ? 4 : 2;
  for (const auto* name : {"bias", "residual", "gelu_backward"}) {
    operands += static_cast<size_t>(has(attrs, name));
  }
  return operands;
}

// Of `swiglu` the first result has both factors in a dimension of size 2 before the last one, which
// the product's second operand alone has, and the second result has its other dimensions. Of its
// backward all but the product's operands lie as the first result.
void expect_gated(const OpCall& call) {
  const Signature& s = call.signature;
  const OperandDims& c = s.outputs()[0];
  const size_t n = c.size();
  if (has(call.attrs, "swiglu_backward")) {
    if (s.inputs()[2] == c && s.inputs()[3] == c && s.outputs()[1] == c) return;
    fail("linear: '{}' is not the backward of SwiGLU: operands 3 and 4 and both results lie alike",
         s.text());
  }
  const auto of_b = [&](const DimFactors& dim) {
    return dim.size() == 1 && !Signature::carries(s.inputs()[0], dim[0]);
  };
  bool good = n >= 2 && of_b(c[n - 2]) && of_b(c[n - 1]);
  if (good) {
    OperandDims without = c;
    without.erase(without.end() - 2);
    const auto both = static_cast<size_t>(c[n - 2][0]);
    good = s.outputs()[1] == without && s.factors()[both].whole && call.extents[both] == 2;
  }
  if (!good) {
    fail(
        "linear: '{}' has no gate and what it lets through side by side: a whole factor of size 2 "
        "before the last one",
        s.text());
  }
}

std::vector<TensorType> infer_linear(const OpCall& call) {
  if (call.in.size() != operands_of(call.attrs)) {
    fail("linear: {} operands, and its attributes say {}", call.in.size(), operands_of(call.attrs));
  }
  const bool gelu = has(call.attrs, "gelu"), backward = has(call.attrs, "gelu_backward");
  const bool sum = has(call.attrs, "sum"), gated = is_gated(call.attrs);
  if (gated && (call.attrs.has("dtype") || has(call.attrs, "residual") || gelu || backward || sum ||
                has(call.attrs, "bias") ||
                has(call.attrs, "swiglu") == has(call.attrs, "swiglu_backward"))) {
    fail("linear: its attributes ask for more beside SwiGLU than there is");
  }
  if (sum && !backward) fail("linear: only behind GELU's gradient are there sums");
  if ((gelu || backward) && (call.attrs.has("dtype") || has(call.attrs, "residual") ||
                             (backward && (gelu || has(call.attrs, "bias"))))) {
    fail("linear: its attributes ask for more beside GELU than there is");
  }
  std::vector<TensorType> out = infer_from_factors(call);
  if (out.size() != (gelu || sum || gated ? 2 : 1)) fail("linear: {} results", out.size());
  if (gated) expect_gated(call);
  if (sum) {
    const OperandDims &c = call.signature.outputs()[0], &of = call.signature.outputs()[1];
    if (of.size() != 1 || c.empty() || of[0] != c.back() || of[0].size() != 1) {
      fail("'{}' does not sum over all but the last dimension", call.signature.text());
    }
    if ((call.attrs.integer_or("wide", 0) & 2) != 0) out[1].dtype = statistics_dtype(out[1].dtype);
  }
  if (call.attrs.has("dtype")) out[0].dtype = dtype_named(call.attrs.text("dtype"));
  const bool wide = out[0].dtype != call.in[0].dtype;
  if (wide && (out[0].dtype != DType::kF32 || !is_half(call.in[0].dtype))) {
    fail("a product of {} is not stored as {}", name_of(call.in[0].dtype), name_of(out[0].dtype));
  }
  for (size_t i = 0; i < call.in.size(); ++i) {
    const DType want = i < 2 ? call.in[0].dtype : out[0].dtype;
    if (!is_float(want) || call.in[i].dtype != want) {
      fail("operand {} of linear must be {}, got {}", i + 1, name_of(want), to_string(call.in[i]));
    }
  }
  return out;
}

double linear_flops(const OpCall& call) {
  double flops = 2;
  for (const int64_t extent : call.extents) flops *= static_cast<double>(extent);
  return flops;
}

// What GELU reads or writes beside the product.
double gelu_bytes(const OpCall& call, std::span<const TensorType> out) {
  if (!has(call.attrs, "gelu") && !has(call.attrs, "gelu_backward")) return 0;
  return static_cast<double>(numel(out[0].shape) * size_of(out[0].dtype));
}

void linear_cpu(const KernelArgs& args) {
  const Signature& s = args.signature;
  const std::string c = s.output_text(0);
  std::vector<TensorView> in(args.in.begin(), args.in.end());
  // A residual that the result overwrites is kept first.
  std::vector<std::byte> kept;
  TensorView& last = in.back();
  if (in.size() > 2 && last.data == args.out[0].data && last.numel() > 0) {
    kept.resize(static_cast<size_t>(last.numel() * size_of(last.dtype)));
    const TensorView copy = {kept.data(), last.dtype, last.shape, contiguous_strides(last.shape)};
    copy_elements(last, copy);
    last = copy;
  }
  run_part(ops::matmul, s.input_text(0) + "," + s.input_text(1) + "->" + c, args, {in[0], in[1]},
           args.out[0]);
  if (is_gated(args.attrs)) return run_gated_part(args);
  if (has(args.attrs, "gelu_backward")) {
    run_part(ops::gelu_backward, c + "," + c + "->" + c, args, {last, args.out[0]}, args.out[0]);
    if (!has(args.attrs, "sum")) return;
    run_part(ops::sum, c + "->" + s.output_text(1), args, {args.out[0]}, args.out[1]);
    return;
  }
  for (size_t i = 2; i < in.size(); ++i) {
    run_part(ops::add, c + "," + s.input_text(i) + "->" + c, args, {args.out[0], in[i]},
             args.out[0]);
  }
  if (has(args.attrs, "gelu")) {
    run_part(ops::gelu, c + "->" + c, args, {args.out[0]}, args.out[1]);
  }
}

}  // namespace

constinit const OpDef ops::linear = {
    .name = "linear",
    .factors = "...K,nK,n->...n",
    .infer = infer_linear,
    .flops = linear_flops,
    .bytes_after = gelu_bytes,
    .cpu = linear_cpu,
    .cuda = cuda_kernel<linear_cuda>(),
    .cuda_workspace = linear_cuda_workspace,
};

}  // namespace cleave
