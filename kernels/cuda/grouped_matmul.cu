// Products in which every row has its own matrix. The rows are first put in the order of their
// experts, on the device, as offsets: then blocks find the expert and the rows of their tile there,
// and the host launches as many as any division of the rows among experts may need. 16-bit floats
// whose rows lie dense, at multiples of 16 bytes, are multiplied by tensor cores of compute
// capability 9 (grouped_matmul_hopper.cu), all others by plain arithmetic.
#include "kernels/cuda/context.h"
#include "kernels/cuda/counting.cuh"
#include "kernels/cuda/grouped_work.cuh"
#include "kernels/cuda/workspace.h"

namespace cleave {
namespace {

using namespace grouped;  // NOLINT

// --- Rows in the order of their experts ----------------------------------------------------------

struct Sorting {
  const int* numbers;
  Loops<3> rows;  // numbers, operand 0, the other operand with rows
  Shard experts;
  int classes, warps;
  int64_t* at[2];  // of the operands' rows, by experts
  int* starts;     // [classes + 1] of the experts' rows
};

__global__ void __launch_bounds__(kCountingThreads) rows_by_expert(Sorting s) {
  extern __shared__ int counts[];
  const int n = static_cast<int>(s.rows.count);
  const int* starts = nullptr;
  const auto class_of = [&](int i) {
    int64_t at[3];
    s.rows.offsets(i, at);
    const int number = s.numbers[at[0]];
    if (number < 0 || number >= s.experts.global) return s.classes - 1;
    const auto own = static_cast<int>(s.experts.own(number));
    return own < 0 ? s.classes - 2 : own;
  };
  place_in_order(
      n, s.classes, s.warps, counts, class_of,
      [&](int* totals) {
        sums_before(totals, s.classes);
        starts = totals;
        for (int c = threadIdx.x; c <= s.classes; c += kCountingThreads) {
          s.starts[c] = c < s.classes ? totals[c] : n;
        }
      },
      [&](int i, int expert, int rank) {
        int64_t at[3];
        s.rows.offsets(i, at);
        const int place = starts[expert] + rank;
        s.at[0][place] = at[1];
        s.at[1][place] = at[2];
      });
}

// --- Products ------------------------------------------------------------------------------------

constexpr int kThreads = 256, kSide = 64, kDeep = 16, kEach = 4;  // of plain arithmetic

// A tile of one operand, [kDeep, kSide], to shared memory; zeros beyond its end.
template <bool kRowsSummed, class T>
__device__ void load_tile(Statistic<T> (&tile)[kDeep][kSide + kEach], const Operand<T>& o,
                          const Work& w, int side, int sides, int from) {
  const T* const data = o.data + (o.at != nullptr ? 0 : w.expert * o.expert_step);
  const bool along = o.sum_step == 1;  // threads go along what lies dense
#pragma unroll
  for (int u = 0; u < kDeep * kSide / kThreads; ++u) {
    const int e = static_cast<int>(threadIdx.x) + u * kThreads;
    const int i = along ? e / kDeep : e % kSide, d = along ? e % kDeep : e / kSide;
    Statistic<T> x = 0;
    if (side + i < sides && from + d < w.k) {
      int64_t at;
      if (o.at == nullptr) {
        at = (side + i) * o.side_step + (from + d) * o.sum_step;
      } else if (kRowsSummed) {
        at = o.at[w.begin + from + d] + (side + i) * o.side_step;
      } else {
        at = o.at[w.begin + side + i] + (from + d) * o.sum_step;
      }
      x = number(data[at]);
    }
    tile[d][i] = x;
  }
}

template <class T, bool kRowsSummed>
__global__ void __launch_bounds__(kThreads) plain_product(Product<T> p) {
  using A = Statistic<T>;
  __shared__ A a[kDeep][kSide + kEach], b[kDeep][kSide + kEach];
  Work w;
  if (!find_work<kSide, kSide, kRowsSummed>(p, w)) return;
  const int down = static_cast<int>(threadIdx.x) / (kSide / kEach) * kEach;
  const int across = static_cast<int>(threadIdx.x) % (kSide / kEach) * kEach;
  A sums[kEach][kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) sums[i][j] = start_of(p, w);
  }
  for (int from = 0; from < w.k; from += kDeep) {
    load_tile<kRowsSummed>(a, p.a, w, w.row, w.m, from);
    load_tile<kRowsSummed>(b, p.b, w, w.column, w.n, from);
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kDeep; ++d) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) sums[i][j] += a[d][down + i] * b[d][across + j];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int row = w.row + down + i;
    if (row >= w.m) continue;
    T* const y = result_row(p, w, row);
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int column = w.column + across + j;
      if (column < w.n) y[column * p.y_column] = To<T>::of(sums[i][j]);
    }
  }
}

// --- Launchers -----------------------------------------------------------------------------------

// The factor of the experts: of the weights only.
size_t expert_factor(const Signature& s, const OperandDims& weights) {
  for (const int8_t f : factors_of(weights)) {
    int others = 0;
    for (const auto* list : {&s.inputs(), &s.outputs()}) {
      for (const OperandDims& dims : *list) {
        others += &dims != &weights && Signature::carries(dims, f);
      }
    }
    if (others == 0) return static_cast<size_t>(f);
  }
  CLEAVE_ASSERT(false, "'{}' has no factor of the weights only", s.text());
}

// Launches the sorting of the rows, as rows_of gives them.
Sorting sort_rows(const KernelArgs& args, size_t experts, const LoopNest<3>& rows) {
  Sorting s = {.numbers = args.in[2].as<const int>(),
               .rows = loops_of(rows),
               .experts = shard_of(args.extents[experts]),
               .classes = static_cast<int>(args.extents[experts].local) + kOtherClasses};
  s.warps = counting_warps(s.classes);
  const int64_t n = rows.count();
  CLEAVE_ASSERT(n <= kMostNumbers, "{} rows", n);
  s.at[0] = static_cast<int64_t*>(args.workspace);
  s.at[1] = s.at[0] + n;
  s.starts = reinterpret_cast<int*>(s.at[1] + n);
  rows_by_expert<<<1, kCountingThreads, counting_bytes(s.warps, s.classes),
                   static_cast<cudaStream_t>(args.stream)>>>(s);
  cuda_check(cudaGetLastError());
  return s;
}

// The loops over rows: numbers, and two operands with these strides.
LoopNest<3> rows_of(const KernelArgs& args, const Shape& a, const Shape& b) {
  return nest_over<3>(args, factors_of(args.signature.inputs()[2]), {in_strides(args, 2), a, b});
}

int size_of_factor(const KernelArgs& args, size_t f) {
  const int64_t size = args.extents[f].local;
  CLEAVE_ASSERT(size <= INT32_MAX / 2, "a width of {}", size);
  return static_cast<int>(size);
}

// Whether the experts' matrices can be accessed 16 bytes at a time along the last factor.
template <class T>
bool wide_matrices(const TensorView& view, const Shape& strides, size_t last, size_t other,
                   size_t experts, const KernelArgs& args) {
  bool wide = strides[last] == 1 && args.extents[last].local % kWide<T> == 0 &&
              reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
  for (const size_t f : {other, experts}) {
    wide &= args.extents[f].local == 1 || strides[f] % kWide<T> == 0;
  }
  return wide;
}

// 16-bit floats; the kernels for them are made of instructions that only this generation has.
template <class T>
constexpr bool kHalf = sizeof(T) == 2;
bool has_tensor_cores(const KernelArgs& args) { return args.device->properties().major == 9; }

}  // namespace

void grouped_matmul_cuda(const KernelArgs& args) {
  const Signature& s = args.signature;
  const auto in = static_cast<size_t>(s.inputs()[0].back()[0]);
  const auto out = static_cast<size_t>(s.outputs()[0].back()[0]);
  const auto last = static_cast<size_t>(s.inputs()[1].back()[0]);
  const size_t e = expert_factor(s, s.inputs()[1]);
  const Shape x = in_strides(args, 0), w = in_strides(args, 1), y = out_strides(args, 0);
  const LoopNest<3> rows = rows_of(args, x, y);
  if (rows.count() * args.extents[out].local == 0) return;
  const Sorting sorted = sort_rows(args, e, rows);
  auto* const stream = static_cast<cudaStream_t>(args.stream);
  with_gpu_float(args.out[0].dtype, [&]<class T>(T) {
    const Product<T> p = {.a = {args.in[0].as<const T>(), sorted.at[0], 0, x[in], 0},
                          .b = {args.in[1].as<const T>(), nullptr, w[out], w[in], w[e]},
                          .y = args.out[0].as<T>(),
                          .y_at = sorted.at[1],
                          .y_column = y[out],
                          .starts = sorted.starts,
                          .experts = static_cast<int>(args.extents[e].local),
                          .n = size_of_factor(args, out),
                          .k = size_of_factor(args, in)};
    if constexpr (kHalf<T>) {
      const bool wide = has_tensor_cores(args) && wide_rows<T>(rows, 1, p.a.data, x[in], p.k) &&
                        wide_rows<T>(rows, 2, p.y, y[out], p.n) &&
                        wide_matrices<T>(args.in[1], w, last, last == in ? out : in, e, args);
      if (wide) {
        return launch_on_tensor_cores<T>(p, last == in, rows.count(), stream);
      }
    }
    launch_grouped<T>(p, rows.count(), kSide, kSide, kThreads, 0, stream, plain_product<T, false>);
  });
}

void grouped_matmul_backward_cuda(const KernelArgs& args) {
  const Signature& s = args.signature;
  const auto outer = static_cast<size_t>(s.inputs()[0].back()[0]);
  const auto inner = static_cast<size_t>(s.inputs()[1].back()[0]);
  const size_t e = expert_factor(s, s.outputs()[0]);
  const Shape dy = in_strides(args, 0), x = in_strides(args, 1), dw = out_strides(args, 0);
  const LoopNest<3> rows = rows_of(args, dy, x);
  if (numel(args.out[0].shape) == 0) return;
  const Sorting sorted = sort_rows(args, e, rows);
  auto* const stream = static_cast<cudaStream_t>(args.stream);
  with_gpu_float(args.out[0].dtype, [&]<class T>(T) {
    const Product<T> p = {.a = {args.in[0].as<const T>(), sorted.at[0], dy[outer], 0, 0},
                          .b = {args.in[1].as<const T>(), sorted.at[1], x[inner], 0, 0},
                          .y = args.out[0].as<T>(),
                          .y_row = dw[outer],
                          .y_column = dw[inner],
                          .y_expert = dw[e],
                          .starts = sorted.starts,
                          .experts = static_cast<int>(args.extents[e].local),
                          .m = size_of_factor(args, outer),
                          .n = size_of_factor(args, inner)};
    if constexpr (kHalf<T>) {
      const bool wide = has_tensor_cores(args) && wide_rows<T>(rows, 1, p.a.data, dy[outer], p.m) &&
                        wide_rows<T>(rows, 2, p.b.data, x[inner], p.n) &&
                        wide_matrices<T>(args.out[0], dw, inner, outer, e, args);
      if (wide) {
        return launch_on_tensor_cores<T>(p, false, rows.count(), stream);
      }
    }
    launch_grouped<T>(p, rows.count(), kSide, kSide, kThreads, 0, stream, plain_product<T, true>);
  });
}

}  // namespace cleave
