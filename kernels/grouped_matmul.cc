// A matrix product in which every row has its own choice of the matrix: y[r] = w[expert[r]] x[r].
// Rows of one expert that lie next to each other, as sorted_slots places them, are one product. A
// shard of the experts computes its own experts' rows and leaves zeros: the shards' results add up.
#include <algorithm>

#include "kernels/blas.h"
#include "kernels/cuda/workspace.h"
#include "kernels/cuda_kernel.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"
#include "kernels/parallel.h"
#include "kernels/rows.h"
#include "kernels/shard_index.h"

namespace cleave {

void grouped_matmul_cuda(const KernelArgs&);  // cuda/grouped_matmul.cu
void grouped_matmul_backward_cuda(const KernelArgs&);

namespace {

std::vector<TensorType> infer_grouped(const OpCall& call) {
  expect_types(call, "xxi");
  return infer_from_factors(call);
}

// The experts' load is taken to be balanced: a shard of them has its share of the rows. `e` is the
// experts' letter.
double share_of(const OpCall& call, int e) {
  const double own = static_cast<double>(call.extents[static_cast<size_t>(e)]);
  return own / static_cast<double>(call.attrs.integer("experts"));
}

// The factor of the experts: of the weights only.
int expert_factor(const Signature& s, const OperandDims& weights) {
  for (const int8_t f : factors_of(weights)) {
    int others = 0;
    for (const auto* list : {&s.inputs(), &s.outputs()}) {
      for (const OperandDims& dims : *list) {
        others += &dims != &weights && Signature::carries(dims, f);
      }
    }
    if (others == 0) return f;
  }
  CLEAVE_ASSERT(false, "'{}' has no factor of the weights only", s.text());
}

double product_flops(const OpCall& call, int e) {
  double flops = 2 * share_of(call, e);
  for (size_t f = 0; f < call.extents.size(); ++f) {
    if (static_cast<int>(f) != e) flops *= static_cast<double>(call.extents[f]);
  }
  return flops;
}

// The rows are sorted by their experts.
int64_t sorting_bytes(const OpCall& call, int e) {
  return expert_sorting_bytes(numel(call.in[2].shape), call.extents[static_cast<size_t>(e)]);
}
int64_t grouped_workspace(const OpCall& call) {
  return sorting_bytes(call, expert_factor(call.signature, call.signature.inputs()[1]));
}
int64_t grouped_backward_workspace(const OpCall& call) {
  return sorting_bytes(call, expert_factor(call.signature, call.signature.outputs()[0]));
}

double grouped_flops(const OpCall& call) {
  return product_flops(call, expert_factor(call.signature, call.signature.inputs()[1]));
}
double grouped_backward_flops(const OpCall& call) {
  return product_flops(call, expert_factor(call.signature, call.signature.outputs()[0]));
}

// --- Kernels -------------------------------------------------------------------------------------

// Rows next to each other that have one expert; `expert` is this shard's index of it, -1 when it is
// another's. Offsets are those of the first row.
struct Run {
  int64_t expert;
  int64_t rows;
  std::array<int64_t, 2> at;
};

// The runs of the rows whose experts are operand 2, at most `longest` rows each; `strides` of two
// operands that carry the rows.
std::vector<Run> find_runs(const KernelArgs& args, const Extent& experts,
                           const std::array<Shape, 2>& strides, int64_t longest) {
  std::vector<int8_t> groups = factors_of(args.signature.inputs()[2]);
  const int8_t row = groups.back();
  groups.pop_back();
  const Shape number_strides = in_strides(args, 2);
  const auto outer = nest_over<3>(args, groups, {strides[0], strides[1], number_strides});
  const int64_t rows = args.extents[static_cast<size_t>(row)].local;
  const auto step = [&](const Shape& s) { return s[static_cast<size_t>(row)]; };
  std::vector<Run> runs;
  for_each_element(outer, [&](const auto& at) {
    const int32_t* numbers = args.in[2].as<const int32_t>() + at[2];
    for (int64_t r = 0, end = 0; r < rows; r = end) {
      const int32_t number = numbers[r * step(number_strides)];
      if (number < 0 || number >= experts.global) {
        fail("grouped_matmul: expert {} is not one of {}", number, experts.global);
      }
      for (end = r + 1; end < rows && end - r < longest; ++end) {
        if (numbers[end * step(number_strides)] != number) break;
      }
      runs.push_back({local_index(experts, number),
                      end - r,
                      {at[0] + r * step(strides[0]), at[1] + r * step(strides[1])}});
    }
  });
  return runs;
}

constexpr int64_t kTile = 512;  // rows and columns of a product that one thread computes

template <class T>
Matrix<const T> transposed(const Matrix<const T>& m) {
  return {m.data, m.column, m.row};
}

template <class T>
void grouped_typed(const KernelArgs& args) {
  const Signature& s = args.signature;
  const OperandDims &x_dims = s.inputs()[0], &w_dims = s.inputs()[1], &y_dims = s.outputs()[0];
  const size_t e = static_cast<size_t>(expert_factor(s, w_dims));
  const int in = x_dims.back()[0], out = y_dims.back()[0], last = w_dims.back()[0];
  const size_t row = static_cast<size_t>(s.inputs()[2].back()[0]);
  const auto size = [&](int f) { return args.extents[static_cast<size_t>(f)].local; };
  const int other = last == in ? out : in;
  const RowInput<T> x(args, 0, in, static_cast<int>(row)), w(args, 1, last, other);
  const RowOutput<T> y(args, 0, out);
  const std::vector<Run> runs = find_runs(args, args.extents[e], {x.strides(), y.strides()}, kTile);
  const int64_t k = size(in), n = size(out), across = std::max<int64_t>(1, (n + kTile - 1) / kTile);
  const int64_t x_row = x.strides()[row], y_row = y.strides()[row], w_expert = w.strides()[e];
  const int64_t w_row = w.strides()[static_cast<size_t>(other)];
  run_tasks(args, std::ssize(runs) * across, [&](int64_t task, int) {
    const Run& run = runs[static_cast<size_t>(task / across)];
    const int64_t first = task % across * kTile, columns = std::min(kTile, n - first);
    T* const to = y.data() + run.at[1] + first;
    if (run.expert < 0) {
      for (int64_t r = 0; r < run.rows; ++r) std::fill_n(to + r * y_row, columns, T{0});
      return;
    }
    const T* const matrix = w.data() + run.expert * w_expert;
    const Matrix<const T> weights =  // [in, out]
        last == in ? Matrix<const T>{matrix + first * w_row, 1, w_row}
                   : Matrix<const T>{matrix + first, w_row, 1};
    gemm(run.rows, columns, k, T{1}, Matrix<const T>{x.data() + run.at[0], x_row, 1}, weights, T{0},
         Matrix<T>{to, y_row, 1});
  });
}

// dw[e] = sum over the rows r of expert e of dy[r] x[r]^T.
template <class T>
void grouped_backward_typed(const KernelArgs& args) {
  const Signature& s = args.signature;
  const OperandDims& w_dims = s.outputs()[0];
  const size_t e = static_cast<size_t>(expert_factor(s, w_dims));
  const int outer = s.inputs()[0].back()[0], inner = s.inputs()[1].back()[0];
  CLEAVE_ASSERT(w_dims.back()[0] == inner, "'{}': the first operand's width comes first", s.text());
  const size_t row = static_cast<size_t>(s.inputs()[2].back()[0]);
  const RowInput<T> dy(args, 0, outer, static_cast<int>(row));
  const RowInput<T> x(args, 1, inner, static_cast<int>(row));
  const RowOutput<T> dw(args, 0, inner);
  const std::vector<Run> runs =
      find_runs(args, args.extents[e], {dy.strides(), x.strides()}, INT64_MAX);
  std::vector<std::vector<Run>> by_expert(static_cast<size_t>(args.extents[e].local));
  for (const Run& run : runs) {
    if (run.expert >= 0) by_expert[static_cast<size_t>(run.expert)].push_back(run);
  }
  const int64_t m = args.extents[static_cast<size_t>(outer)].local;
  const int64_t n = args.extents[static_cast<size_t>(inner)].local;
  const int64_t down = std::max<int64_t>(1, (m + kTile - 1) / kTile);
  const int64_t dw_row = dw.strides()[static_cast<size_t>(outer)];
  run_tasks(args, std::ssize(by_expert) * down, [&](int64_t task, int) {
    const int64_t first = task % down * kTile, rows = std::min(kTile, m - first);
    T* const to = dw.data() + task / down * dw.strides()[e] + first * dw_row;
    const std::vector<Run>& own = by_expert[static_cast<size_t>(task / down)];
    if (own.empty()) {
      for (int64_t i = 0; i < rows; ++i) std::fill_n(to + i * dw_row, n, T{0});
    }
    for (const Run& run : own) {
      const Matrix<const T> left = {dy.data() + run.at[0] + first, dy.strides()[row], 1};
      gemm(rows, n, run.rows, T{1}, transposed(left),
           Matrix<const T>{x.data() + run.at[1], x.strides()[row], 1}, T(&run != own.data()),
           Matrix<T>{to, dw_row, 1});
    }
  });
}

void grouped_cpu(const KernelArgs& args) {
  with_float(args.out[0].dtype, [&]<class T>(T) { grouped_typed<T>(args); });
}

void grouped_backward_cpu(const KernelArgs& args) {
  with_float(args.out[0].dtype, [&]<class T>(T) { grouped_backward_typed<T>(args); });
}

std::vector<Value> grouped_grad(GradContext& g) {
  const Signature& s = g.signature();
  const std::string x = s.input_text(0), w = s.input_text(1), rows = s.input_text(2),
                    y = s.output_text(0), notes = indexed_notes(s);
  const char e = s.factors()[static_cast<size_t>(expert_factor(s, s.inputs()[1]))].letter;
  Attrs sized = g.attrs();
  sized.set(std::string_view(&e, 1), g.extent(e));
  // The weights' gradient has its last factor from the last operand.
  const bool x_last = w.back() == x.back();
  const Value dw =
      g.add1(ops::grouped_matmul_backward,
             {x_last ? g.grad(0) : g.in(0), x_last ? g.in(0) : g.grad(0), g.in(2)},
             fmt::format("{},{},{}->{}{}", x_last ? y : x, x_last ? x : y, rows, w, notes),
             std::move(sized));
  return {g.add1(ops::grouped_matmul, {g.grad(0), g.in(1), g.in(2)},
                 fmt::format("{},{},{}->{}{}", y, w, rows, x, notes), g.attrs()),
          dw, kNoValue};
}

}  // namespace

constinit const OpDef ops::grouped_matmul = {
    .name = "grouped_matmul",
    .factors = "brd,efd,br->brf|e:indexed",
    .infer = infer_grouped,
    .flops = grouped_flops,
    .grad = grouped_grad,
    .fused_products = 1,  // one for each expert, in one kernel
    .cpu = grouped_cpu,
    .cuda = cuda_kernel<grouped_matmul_cuda>(),
    .cuda_workspace = grouped_workspace,
};

constinit const OpDef ops::grouped_matmul_backward = {
    .name = "grouped_matmul_backward",
    .factors = "brf,brd,br->efd|e:indexed",
    .infer = infer_grouped,
    .flops = grouped_backward_flops,
    .fused_products = 1,  // one for each expert, in one kernel
    .cpu = grouped_backward_cpu,
    .cuda = cuda_kernel<grouped_matmul_backward_cuda>(),
    .cuda_workspace = grouped_backward_workspace,
};

}  // namespace cleave
