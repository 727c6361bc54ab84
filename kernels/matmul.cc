// Any contraction of two operands, in the letters of its factor string: a linear layer is
// "bsk,nk->bsn", a batched product "bmk,bkn->bmn".
#include "kernels/blas.h"
#include "kernels/contraction.h"
#include "kernels/cuda/product_operands.h"
#include "kernels/cuda_kernel.h"
#include "kernels/letters.h"
#include "kernels/loops.h"
#include "kernels/ops.h"
#include "kernels/parallel.h"

namespace cleave {

void matmul_cuda(const KernelArgs& args);

namespace {

std::vector<TensorType> matmul_infer(const OpCall& call) {
  const Signature& s = call.signature;
  if (s.inputs().size() != 2 || s.outputs().size() != 1) fail("matmul takes two operands");
  for (const TensorType& t : call.in) {
    if (!is_float(t.dtype)) fail("matmul needs floating operands, got {}", to_string(t));
  }
  if (call.in[0].dtype != call.in[1].dtype) fail("matmul needs operands of one element type");
  for (size_t f = 0; f < s.factors().size(); ++f) {
    const int factor = static_cast<int>(f);
    const bool a = Signature::carries(s.inputs()[0], factor);
    const bool b = Signature::carries(s.inputs()[1], factor);
    const bool c = Signature::carries(s.outputs()[0], factor);
    if (a + b + c < 2) {
      fail("factor '{}' of '{}' is in one operand only; sum it, or expand it, first",
           s.factors()[f].letter, s.text());
    }
  }
  std::vector<TensorType> out = infer_from_factors(call);
  // Sums of halves are in f32, and may be stored so.
  if (call.attrs.has("dtype")) {
    const DType dtype = dtype_named(call.attrs.text("dtype"));
    if (dtype != out[0].dtype && (dtype != DType::kF32 || !is_half(out[0].dtype))) {
      fail("a product of {} is not stored as {}", name_of(out[0].dtype), name_of(dtype));
    }
    out[0].dtype = dtype;
  }
  return out;
}

// da = dc . b and db = a . dc: contractions again, with the letters moved.
std::vector<Value> matmul_grad(GradContext& ctx) {
  const Signature& s = ctx.signature();
  const std::string a = s.input_text(0), b = s.input_text(1), c = s.output_text(0);
  return {add_backward(ctx, ops::matmul, {ctx.grad(0), ctx.in(1)}, c + "," + b + "->" + a),
          add_backward(ctx, ops::matmul, {ctx.in(0), ctx.grad(0)}, a + "," + c + "->" + b)};
}

// One operand as a matrix for each index of the batch.
template <class T>
struct Operand {
  Matrix<T> matrix;
  Shape strides;        // of every factor
  std::vector<T> copy;  // when the operand's own memory is not such matrices
};

template <class T>
Matrix<const T> as_const(const Matrix<T>& m) {
  return {m.data, m.row, m.column};
}

// Sees an operand as matrices [rows, columns]; packs it first when its strides do not allow that.
// An output's copy is left uninitialised.
template <class T>
Operand<T> as_matrices(const KernelArgs& args, const TensorView& t, const Shape& strides,
                       std::span<const int8_t> batch, std::span<const int8_t> rows,
                       std::span<const int8_t> columns, bool output) {
  Operand<T> result;
  const int64_t row = common_stride(args, rows, strides);
  const int64_t column = common_stride(args, columns, strides);
  if (row > 0 && column > 0 &&
      blas_takes(size_of(args, rows), size_of(args, columns), row, column)) {
    result.matrix = {t.as<T>(), row, column};
    result.strides = strides;
    return result;
  }
  result.strides = packed_strides(args, batch, rows, columns);
  result.copy.resize(static_cast<size_t>(t.numel()));
  result.matrix = {result.copy.data(), size_of(args, columns), 1};
  if (!output) {
    std::vector<int8_t> all(batch.begin(), batch.end());
    all.insert(all.end(), rows.begin(), rows.end());
    all.insert(all.end(), columns.begin(), columns.end());
    parallel_copy(args, nest_over<2>(args, all, {strides, result.strides}), t.as<const T>(),
                  result.copy.data());
  }
  return result;
}

// How a product is cut into tiles, which are computed apart.
struct Tiling {
  int64_t rows = 1, columns = 1;  // of one tile
};

// By the shape alone: the bits must not depend on who computes a tile. Each tile packs its operands
// anew, which is a tenth of the work at 256 x 256, so tiles are larger where there are many;
// products with few are cut further while a tile is still worth a thread.
Tiling tiling_of(int64_t m, int64_t n, int64_t k, int64_t batch) {
  constexpr int64_t kSide = 512, kStep = 32;
  const auto side = [](int64_t size, int64_t parts) {
    return ((size + parts - 1) / parts + kStep - 1) / kStep * kStep;
  };
  int64_t down = (m + kSide - 1) / kSide, across = (n + kSide - 1) / kSide;
  while (true) {
    const int64_t tiles = batch * down * across;
    const int64_t longer = std::max(side(m, down), side(n, across));
    const double flops = 2.0 * static_cast<double>(side(m, down)) *
                         static_cast<double>(side(n, across)) * static_cast<double>(k);
    const bool worth_it = longer > 256 ? tiles < 8 : longer > 64 && tiles < 4;
    if (!worth_it || flops < 12e6) break;
    (side(m, down) >= side(n, across) ? down : across) *= 2;
  }
  return {side(m, down), side(n, across)};
}

template <class T>
void matmul_typed(const KernelArgs& args) {
  const Classes classes = classify(args.signature);
  const auto& [batch, rows, columns, inner] = classes;
  const Shape c_strides = out_strides(args, 0);
  const Operand<T> a =
      as_matrices<T>(args, args.in[0], in_strides(args, 0), batch, rows, inner, false);
  const Operand<T> b =
      as_matrices<T>(args, args.in[1], in_strides(args, 1), batch, inner, columns, false);
  const Operand<T> c = as_matrices<T>(args, args.out[0], c_strides, batch, rows, columns, true);
  const int64_t m = size_of(args, rows), n = size_of(args, columns), k = size_of(args, inner);
  const LoopNest<3> nest = nest_over<3>(args, batch, {a.strides, b.strides, c.strides});
  const Tiling tile = tiling_of(m, n, k, nest.count());
  const int64_t down = (m + tile.rows - 1) / tile.rows;
  const int64_t across = (n + tile.columns - 1) / tile.columns;
  run_tasks(args, nest.count() * down * across, [&](int64_t task, int) {
    const auto at = nest.offsets_of(task / (down * across));
    const int64_t i = task / across % down * tile.rows, j = task % across * tile.columns;
    const auto part = [](const auto& matrix, int64_t offset, int64_t row, int64_t column) {
      auto moved = matrix;
      moved.data += offset + row * matrix.row + column * matrix.column;
      return moved;
    };
    gemm(std::min(tile.rows, m - i), std::min(tile.columns, n - j), k, T{1},
         as_const(part(a.matrix, at[0], i, 0)), as_const(part(b.matrix, at[1], 0, j)), T{0},
         part(c.matrix, at[2], i, j));
  });
  if (!c.copy.empty()) {
    const std::vector<int8_t> all = factors_of(args.signature.outputs()[0]);
    parallel_copy(args, nest_over<2>(args, all, {c.strides, c_strides}),
                  static_cast<const T*>(c.copy.data()), args.out[0].as<T>());
  }
}

void matmul_cpu(const KernelArgs& args) {
  with_float(args.out[0].dtype, [&]<class T>(T) { matmul_typed<T>(args); });
}

}  // namespace

constinit const OpDef ops::matmul = {
    .name = "matmul",
    .factors = "...k,nk->...n",
    .infer = matmul_infer,
    .grad = matmul_grad,
    .cpu = matmul_cpu,
    .cuda = cuda_kernel<matmul_cuda>(),
    .cuda_workspace = matmul_cuda_workspace,
};

}  // namespace cleave
