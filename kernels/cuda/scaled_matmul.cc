// Products of floats of 8 bits by cuBLASLt, which on Hopper takes both operands with what is summed
// over as the fastest dimension, all sizes multiples of 16. What lies otherwise is copied, and
// what is smaller filled up with zeros, first.
#include <algorithm>

#include "graph/error.h"
#include "graph/op.h"
#include "kernels/contraction.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/generated.h"
#include "kernels/cuda/products.h"

namespace cleave {
namespace {

constexpr int64_t kUnit = 16;

int64_t in_units(int64_t n) { return (n + kUnit - 1) / kUnit * kUnit; }

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// A matrix in rows, `leading` elements apart.
struct Rows {
  void* data = nullptr;
  int64_t leading = 0;
  Shape strides;  // of every factor
  bool own = true;
};

// The operand's own memory when cuBLASLt takes it so; else room for it in scratch memory.
Rows rows_of(const KernelArgs& args, const TensorView& t, const Shape& strides, DType dtype,
             std::span<const int8_t> rows, std::span<const int8_t> columns, int slot) {
  const int64_t r = size_of(args, rows), c = size_of(args, columns);
  const int64_t row = common_stride(args, rows, strides),
                column = common_stride(args, columns, strides);
  const bool units = r % kUnit == 0 && c % kUnit == 0 && row % kUnit == 0;
  if (t.dtype == dtype && units && column == 1 && row >= c && aligned(t.data)) {
    return {t.data, row, strides, true};
  }
  Rows m{nullptr, in_units(c), packed_strides(args, {}, rows, columns), false};
  for (const int8_t f : rows) {
    int64_t& stride = m.strides[static_cast<size_t>(f)];
    stride = stride / c * m.leading;
  }
  m.data = args.device->scratch(slot, in_units(r) * m.leading * size_of(dtype),
                                static_cast<cudaStream_t>(args.stream));
  return m;
}

// Loops over the factors of some dimensions.
struct Copy {
  const KernelArgs& args;
  std::vector<int8_t> order;
  ElementLoops loops = {};

  Copy(const KernelArgs& args, const OperandDims& dims) : args(args), order(factors_of(dims)) {
    for (const int8_t f : order) loops.sizes.push_back(args.extents[static_cast<size_t>(f)].local);
  }
  LoopOperand operand(void* data, DType dtype, const Shape& strides) const {
    LoopOperand o{dtype, data, {}};
    for (const int8_t f : order) o.steps.push_back(strides[static_cast<size_t>(f)]);
    return o;
  }
  void run() {
    loops.merge();
    launch(loops, *args.device, static_cast<cudaStream_t>(args.stream));
  }
};

Rows operand(const KernelArgs& args, size_t i, std::span<const int8_t> rows,
             std::span<const int8_t> inner, int slot) {
  const TensorView& t = args.in[i];
  const Shape strides = in_strides(args, i);
  Rows m = rows_of(args, t, strides, t.dtype, rows, inner, slot);
  if (m.own) return m;
  cuda_check(cudaMemsetAsync(
      m.data, 0, static_cast<size_t>(in_units(size_of(args, rows)) * m.leading * size_of(t.dtype)),
      static_cast<cudaStream_t>(args.stream)));
  Copy copy(args, args.signature.inputs()[i]);
  copy.loops.in = {copy.operand(t.data, t.dtype, strides)};
  copy.loops.out = {copy.operand(m.data, t.dtype, m.strides)};
  copy.loops.element = "a";
  copy.run();
  return m;
}

// cuBLASLt wants scales at multiples of 16 bytes; others are copied.
const void* scale_of(const KernelArgs& args, size_t i, int slot) {
  if (aligned(args.in[i].data)) return args.in[i].data;
  const auto stream = static_cast<cudaStream_t>(args.stream);
  void* const copy = args.device->scratch(slot, size_of(args.in[i].dtype), stream);
  cuda_check(cudaMemcpyAsync(copy, args.in[i].data, static_cast<size_t>(size_of(args.in[i].dtype)),
                             cudaMemcpyDeviceToDevice, stream));
  return copy;
}

}  // namespace

// What cuBLASLt cannot add is added afterwards.
void scaled_matmul_cuda(const KernelArgs& args) {
  const auto [batch, rows, columns, inner] = classify(args.signature);
  if (!batch.empty()) fail("scaled_matmul: '{}' is several products", args.signature.text());
  const bool has_bias = args.attrs.integer_or("bias", 0) != 0;
  const size_t bias_at = 4, residual_at = has_bias ? 5 : 4;
  const bool has_residual = args.attrs.integer_or("residual", 0) != 0;
  const TensorView& out = args.out[0];
  const DType dtype = out.dtype == DType::kF64 ? DType::kF32 : out.dtype;
  const Rows a = operand(args, 0, rows, inner, 0), b = operand(args, 1, columns, inner, 1);
  const Rows c = rows_of(args, out, out_strides(args, 0), dtype, rows, columns, 2);

  // In columns the result is its transpose, so the operands change places.
  Product p;
  p.m = in_units(size_of(args, columns)), p.n = in_units(size_of(args, rows));
  p.k = in_units(size_of(args, inner));
  p.transpose_a = true;
  p.in = args.in[1].dtype, p.in_b = args.in[0].dtype, p.out = dtype;
  p.a.leading = b.leading, p.b.leading = a.leading, p.d.leading = c.leading;
  p.quick = args.attrs.integer_or("quick", 0) != 0;
  const void* bias = nullptr;
  if (has_bias && c.own && is_half(dtype) && args.in[bias_at].contiguous() &&
      aligned(args.in[bias_at].data)) {
    bias = args.in[bias_at].data;
    p.has_bias = true;
  }
  const void* residual = nullptr;
  if (has_residual && c.own) {
    const Rows r =
        rows_of(args, args.in[residual_at], in_strides(args, residual_at), dtype, rows, columns, 3);
    if (r.own) {
      residual = r.data;
      p.has_c = true;
      p.c.leading = r.leading;
    }
  }
  args.device->products().run(p, {b.data, a.data, residual, bias, c.data}, args.workspace,
                              *args.device, static_cast<cudaStream_t>(args.stream),
                              {scale_of(args, 3, 4), scale_of(args, 2, 5)});

  Copy rest(args, args.signature.outputs()[0]);
  rest.loops.in = {rest.operand(c.data, dtype, c.strides)};
  rest.loops.out = {rest.operand(out.data, out.dtype, out_strides(args, 0))};
  rest.loops.element = operand_name(0);
  const auto add = [&](size_t i) {
    rest.loops.element += " + " + operand_name(rest.loops.in.size());
    rest.loops.in.push_back(rest.operand(args.in[i].data, args.in[i].dtype, in_strides(args, i)));
  };
  if (has_bias && !p.has_bias) add(bias_at);
  if (has_residual && !p.has_c) add(residual_at);
  if (!c.own || rest.loops.in.size() > 1) rest.run();
}

}  // namespace cleave
