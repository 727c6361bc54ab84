// Contractions as products (kernels/cuda/products.h). Operands that do not lie as matrices are
// copied first.
#include <algorithm>
#include <array>
#include <utility>

#include "graph/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/generated.h"
#include "kernels/cuda/loops.h"
#include "kernels/cuda/product_hopper.h"
#include "kernels/cuda/product_operands.h"
#include "kernels/cuda/products.h"
#include "kernels/gated_part.h"
#include "kernels/ops.h"
#include "kernels/run_part.h"

namespace cleave {
namespace {

// Copies between an operand and its matrices, over all its factors.
void copy(const KernelArgs& args, const OperandDims& dims, const TensorView& t,
          const Shape& strides, const Matrices& m, bool to_matrices) {
  ElementLoops loops;
  LoopOperand own{t.dtype, t.data, {}}, packed{t.dtype, m.data, {}};
  for (const int8_t f : factors_of(dims)) {
    loops.sizes.push_back(args.extents[static_cast<size_t>(f)].local);
    own.steps.push_back(strides[static_cast<size_t>(f)]);
    packed.steps.push_back(m.strides[static_cast<size_t>(f)]);
  }
  loops.in = {to_matrices ? own : packed};
  loops.out = {to_matrices ? packed : own};
  loops.element = "a";
  loops.merge();
  launch(loops, *args.device, static_cast<cudaStream_t>(args.stream));
}

// The largest power of two, up to 16, that divides an address and a distance, in bytes.
int alignment_of(const void* data, int64_t elements, int64_t element) {
  int alignment = 16;
  while (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(alignment) != 0 ||
         elements * element % alignment != 0) {
    alignment /= 2;
  }
  return alignment;
}

// What stands behind a product: indices of operands, or -1.
struct Behind {
  int bias = -1, residual = -1;
  Epilogue epilogue = Epilogue::kNone;
  bool sums = false;
};

// How a tensor lies as rows and columns of the product's result, columns side by side; 0: not so.
int64_t row_step(const KernelArgs& args, const Classes& of, std::span<const int8_t> columns,
                 const Shape& strides) {
  const int64_t width = size_of(args, columns);
  if (width > 1 && common_stride(args, columns, strides) != 1) return 0;
  if (size_of(args, of.m) == 1) return width;
  const int64_t step = common_stride(args, of.m, strides);
  return step >= width ? step : 0;
}

// Makes of the product with both factors side by side (linear's `swiglu`) that of the gate, with
// the other beside it; and adds what its backward reads and makes. False: they do not lie so.
bool add_gated(const KernelArgs& args, const Classes& of, Product& p, ProductData& data) {
  const auto moved = [](const void* from, int64_t offset) {
    return const_cast<std::byte*>(static_cast<const std::byte*>(from)) +
           offset * size_of(DType::kBF16);
  };
  if (p.epilogue == Epilogue::kSwiglu) {
    // The last two factors of the result are which of both, and its columns.
    const std::span<const int8_t> columns(&of.n.back(), 1);
    p.m /= 2;
    p.beside = p.d.leading;
    p.d.leading = row_step(args, of, columns, out_strides(args, 1));
    data.other.a = moved(data.a, p.transpose_a ? p.m * p.a.leading : p.m);
    data.aux = data.d;
    data.other.aux = moved(data.d, p.m);
    data.d = args.out[1].data;
    return p.d.leading > 0 && size_of(args, columns) == p.m;
  }
  p.beside = row_step(args, of, of.n, in_strides(args, 2));
  data.aux = args.in[2].data, data.other.aux = args.in[3].data;
  data.other.d = args.out[1].data;
  return p.beside > 0 && row_step(args, of, of.n, in_strides(args, 3)) == p.beside &&
         row_step(args, of, of.n, out_strides(args, 1)) == p.d.leading;
}

// The product of the first two operands, with what stands behind it; sums are the second result.
// Nothing: what stands behind it does not lie as the product's own result. The product alone: it is
// where the first result will be, and SwiGLU or its backward are to be made of it.
using Made = ProductAlgorithms::Made;
Made contract(const KernelArgs& args, const Behind& behind) {
  const int bias = behind.bias, residual = behind.residual;
  const Classes of = classify(args.signature);
  const ProductOperands operands = product_operands(args, of, residual);
  const Matrices &a = operands.a, &b = operands.b, &c = operands.c, &r = operands.residual;
  const auto with = [&](int i) { return i < 0 ? TensorView{} : args.in[static_cast<size_t>(i)]; };
  // In columns a result [m, n] in rows is [n, m]: then the factors change places.
  const bool swapped = c.row != 1;
  // A bias, and sums, are of the factor that is the fastest in the result.
  const std::vector<int8_t>& fastest = swapped ? of.n : of.m;
  const OperandDims& dims = args.signature.outputs()[0];
  const bool by_last = !c.copied && !dims.empty() && dims.back().size() == 1 &&
                       fastest.size() == 1 && fastest[0] == dims.back()[0];
  if ((bias >= 0 && !by_last) || (behind.epilogue != Epilogue::kNone && c.copied)) {
    return Made::kNothing;
  }
  for (const auto& [i, to] : {std::pair(0, &a), std::pair(1, &b), std::pair(residual, &r)}) {
    if (!to->copied) continue;
    const auto operand = static_cast<size_t>(i);
    copy(args, args.signature.inputs()[operand], args.in[operand], in_strides(args, operand), *to,
         true);
  }
  const int64_t m = size_of(args, of.m), n = size_of(args, of.n), k = size_of(args, of.k);
  LoopNest<4> nest = nest_over<4>(
      args, of.batch, {a.strides, b.strides, c.strides, residual < 0 ? c.strides : r.strides});
  if (nest.count() * m * n == 0) return Made::kResult;
  CLEAVE_ASSERT(k > 0, "a product over nothing");

  Product p;
  p.in = args.in[0].dtype, p.out = args.out[0].dtype;
  p.tf32 = args.device->tf32 && p.in == DType::kF32;
  const Matrices& left = swapped ? b : a;
  const Matrices& right = swapped ? a : b;
  p.m = swapped ? n : m, p.n = swapped ? m : n, p.k = k;
  p.transpose_a = swapped ? left.column != 1 : left.row != 1;
  p.transpose_b = swapped ? right.column != 1 : right.row != 1;
  const auto leading = [](const Matrices& x) { return std::max(x.row, x.column); };
  p.a.leading = leading(left), p.b.leading = leading(right), p.d.leading = leading(c);
  std::array<int64_t, 4> step = {0, 0, 0, 0};
  if (!nest.sizes.empty()) {
    p.batch = nest.sizes.back();
    step = nest.steps.back();
    nest.sizes.pop_back();
    nest.steps.pop_back();
  }
  p.a.batch_stride = step[swapped ? 1 : 0], p.b.batch_stride = step[swapped ? 0 : 1];
  p.d.batch_stride = step[2];
  p.has_bias = bias >= 0, p.has_c = residual >= 0;
  if (p.has_c) p.c = {leading(r), step[3]};
  p.epilogue = behind.epilogue;
  p.sums = behind.sums && swapped && by_last;
  // The workspace is the library's, where an algorithm of its is used.
  auto* const sums = p.sums ? static_cast<float*>(args.workspace) : nullptr;
  // Of GELU the first result is what is written beside the product.
  const bool gelu = p.epilogue == Epilogue::kGelu;
  void* const aux = gelu                                    ? args.out[0].data
                    : p.epilogue == Epilogue::kGeluBackward ? args.in.back().data
                                                            : nullptr;
  Made made = Made::kResult;
  const bool gated = is_gated(p.epilogue);
  if (gated && (!swapped || !of.batch.empty())) return Made::kNothing;
  for_each_element(nest, [&](const auto& at) {
    const auto moved = [](const Matrices& x, int64_t offset) {
      return static_cast<std::byte*>(x.data) + offset * size_of(x.dtype);
    };
    const std::byte* const a_data = moved(left, at[swapped ? 1 : 0]);
    const std::byte* const b_data = moved(right, at[swapped ? 0 : 1]);
    std::byte* const d_data = gelu ? args.out[1].as<std::byte>() : moved(c, at[2]);
    const std::byte* const c_data = p.has_c ? moved(r, at[3]) : nullptr;
    const int64_t element = size_of(p.in), out = size_of(p.out);
    p.alignment = std::min(
        {alignment_of(a_data, p.a.leading, element), alignment_of(b_data, p.b.leading, element),
         alignment_of(d_data, p.d.leading, out), alignment_of(a_data, p.a.batch_stride, element),
         alignment_of(b_data, p.b.batch_stride, element),
         alignment_of(d_data, p.d.batch_stride, out), alignment_of(c_data, p.c.leading, out),
         alignment_of(c_data, p.c.batch_stride, out), alignment_of(with(bias).data, 0, out),
         alignment_of(aux, 0, out)});
    ProductData data = {a_data, b_data, c_data, with(bias).data, d_data, aux, sums};
    if (gated) {
      if (!add_gated(args, of, p, data)) {
        made = Made::kNothing;
        return;
      }
      for (const void* beside : std::initializer_list<const void*>{data.d, data.aux, data.other.a,
                                                                   data.other.d, data.other.aux}) {
        p.alignment = std::min(p.alignment, alignment_of(beside, p.beside, out));
      }
      p.alignment = std::min(p.alignment, alignment_of(nullptr, p.d.leading, out));
    }
    // What cuBLASLt wants of the matrix beside the result.
    if (p.epilogue != Epilogue::kNone && (p.alignment != 16 || p.d.leading % 8 != 0)) {
      made = Made::kNothing;
      return;
    }
    made = args.device->products().run(p, data, args.workspace, *args.device,
                                       static_cast<cudaStream_t>(args.stream));
  });
  if (made == Made::kNothing) return made;
  if (made == Made::kSumsToo) add_own_sums(args, sums, ceil_div(p.n, kSummedColumns));
  if (c.copied) {
    copy(args, args.signature.outputs()[0], args.out[0], out_strides(args, 0), c, false);
  }
  return made;
}

// The second result: the sums of the first over all but its last factor.
void add_sums(const KernelArgs& args) {
  const Signature& s = args.signature;
  run_part(ops::sum, s.output_text(0) + "->" + s.output_text(1), args, {args.out[0]}, args.out[1]);
}

// An operand or result over all factors of the first result.
struct Elements {
  const TensorView& view;
  Shape strides;
};

// Computes a result from elements of others that lie in the same place: a, b, ... in `element`.
void each_element(const KernelArgs& args, const std::vector<Elements>& in, const Elements& out,
                  std::string element) {
  const auto order = factors_of(args.signature.outputs()[0]);
  ElementLoops loops;
  for (const int8_t f : order) loops.sizes.push_back(args.extents[static_cast<size_t>(f)].local);
  const auto operand = [&](const Elements& e) {
    LoopOperand o{e.view.dtype, e.view.data, {}};
    for (const int8_t f : order) o.steps.push_back(e.strides[static_cast<size_t>(f)]);
    return o;
  };
  for (const Elements& e : in) loops.in.push_back(operand(e));
  loops.out = {operand(out)};
  loops.element = std::move(element);
  loops.merge();
  launch(loops, *args.device, static_cast<cudaStream_t>(args.stream));
}

// The product with its bias and residual. What cuBLASLt cannot add is added afterwards: to f64, to
// results in columns, of which one column is always one, and to those that are copied, or residuals
// that lie otherwise than the result. One that the result overwrites lies as it does, and is always
// added at once.
void add_all(const KernelArgs& args, bool at_once, int bias, int residual) {
  if (at_once && contract(args, {bias, residual}) != Made::kNothing) return;
  const bool in_place = residual >= 0 && args.in.back().data == args.out[0].data;
  contract(args, {-1, in_place ? residual : -1});
  std::vector<Elements> in = {{args.out[0], out_strides(args, 0)}};
  std::string element = operand_name(0);
  for (const int i : {bias, in_place ? -1 : residual}) {
    if (i < 0) continue;
    element += " + " + operand_name(in.size());
    in.push_back({args.in[static_cast<size_t>(i)], in_strides(args, static_cast<size_t>(i))});
  }
  if (in.size() > 1) each_element(args, in, {args.out[0], out_strides(args, 0)}, element);
}

// Of `swiglu` and its backward.
void gated_linear_cuda(const KernelArgs& args, bool backward) {
  const Epilogue epilogue = backward ? Epilogue::kSwigluBackward : Epilogue::kSwiglu;
  const Made made =
      args.in[0].dtype == DType::kBF16 ? contract(args, {.epilogue = epilogue}) : Made::kNothing;
  if (made == Made::kResult) return;
  if (made == Made::kNothing) contract(args, {});
  run_gated_part(args);
}

}  // namespace

void matmul_cuda(const KernelArgs& args) { contract(args, {}); }

void linear_cuda(const KernelArgs& args) {
  const auto has = [&](std::string_view name) { return args.attrs.integer_or(name, 0) != 0; };
  if (has("swiglu") || has("swiglu_backward")) {
    return gated_linear_cuda(args, has("swiglu_backward"));
  }
  const bool gelu = has("gelu"), backward = has("gelu_backward");
  const int bias = has("bias") ? 2 : -1;
  const int residual = residual_operand(args.attrs);
  const TensorView& out = args.out[0];
  const auto plain = [&](const TensorView& v) { return v.contiguous() && v.dtype == out.dtype; };
  const auto plain_operand = [&](int i) { return i < 0 || plain(args.in[static_cast<size_t>(i)]); };
  const Classes of = classify(args.signature);
  const bool in_rows = size_of(args, of.n) > 1;
  const bool matrix = out.dtype != DType::kF64 && out.contiguous() && of.batch.empty();
  const bool at_once =
      matrix && (in_rows || bias < 0) && plain_operand(bias) && plain_operand(residual);
  const bool sums = has("sum");
  if (gelu || backward) {
    const TensorView& beside = gelu ? args.out[1] : args.in.back();
    const Epilogue epilogue = gelu ? Epilogue::kGelu : Epilogue::kGeluBackward;
    const Made made = at_once && in_rows && plain(beside)
                          ? contract(args, {bias, -1, epilogue, sums})
                          : Made::kNothing;
    if (made == Made::kResult && sums) add_sums(args);
    if (made != Made::kNothing) return;
  }
  add_all(args, at_once, bias, residual);
  const Elements c = {out, out_strides(args, 0)};
  if (gelu) each_element(args, {c}, {args.out[1], out_strides(args, 1)}, "gelu(a)");
  if (backward) {
    each_element(args, {{args.in.back(), in_strides(args, args.in.size() - 1)}, c}, c,
                 "b * gelu_slope(a)");
  }
  if (sums) add_sums(args);
}

}  // namespace cleave
