// Products in which every row has its own matrix. The rows are first put in the order of their
// experts, on the device, as offsets: then blocks find the expert and the rows of their tile there,
// and the host launches as many as any division of the rows among experts may need. 16-bit floats
// whose rows lie dense are multiplied by tensor cores, all others by plain arithmetic.
#include <algorithm>
#include <vector>

#include "kernels/cuda/counting.cuh"
#include "kernels/cuda/grouped_tiles.cuh"
#include "kernels/cuda/workspace.h"

namespace cleave {
namespace {

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

// Up to kTile rows of one class.
struct Part {
  int expert = -1, begin = 0, rows = 0;
};

// The t-th part of all rows; found by each warp for itself.
template <int kTile>
__device__ Part part_of(const int* starts, int classes, int t) {
  const int lane = threadIdx.x % 32;
  int before = 0;
  for (int first = 0; first < classes; first += 32) {
    const int c = min(first + lane, classes - 1);
    const int begin = starts[c], end = starts[c + 1];
    const int parts = first + lane < classes ? (end - begin + kTile - 1) / kTile : 0;
    int sum = parts;
#pragma unroll
    for (int width = 1; width < 32; width *= 2) {
      const int below = __shfl_up_sync(0xffffffffu, sum, width);
      if (lane >= width) sum += below;
    }
    const unsigned found = __ballot_sync(0xffffffffu, before + sum > t);
    if (found != 0) {
      const int whose = __ffs(static_cast<int>(found)) - 1;
      const int from = begin + (t - (before + sum - parts)) * kTile;
      return {__shfl_sync(0xffffffffu, c, whose), __shfl_sync(0xffffffffu, from, whose),
              __shfl_sync(0xffffffffu, min(kTile, end - from), whose)};
    }
    before += __shfl_sync(0xffffffffu, sum, 31);
  }
  return {};
}

// --- Products ------------------------------------------------------------------------------------

// One operand: rows of which experts have some, or the experts' own matrices.
template <class T>
struct Operand {
  const T* data;
  const int64_t* at;  // of rows; null of matrices
  int64_t side_step, sum_step, expert_step;
};

// y = a b for each expert; either its rows are those of a and y, or they are summed over.
template <class T>
struct Product {
  Operand<T> a, b;
  T* y;
  const int64_t* y_at;  // of rows; null when they are summed over
  int64_t y_row, y_column, y_expert;
  const int* starts;
  int experts;
  int m, n, k;  // m of all experts, or k, is not known to the host and 0
  int tiles_down, tiles_across;
};

// What a block computes.
struct Work {
  int expert, begin, m, n, k;  // begin: of the rows, those of this tile or those summed over
  int row, column;             // of the tile in the expert's y; row 0 when y has the rows
};

// Tiles that are computed at the same time share rows and columns: 16 rows of tiles go together.
__device__ inline void place_tile(int64_t i, int down, int across, int& row, int& column) {
  constexpr int kTogether = 16;
  const int64_t group = i / (static_cast<int64_t>(kTogether) * across);
  const int first = static_cast<int>(group) * kTogether;
  const int rest = static_cast<int>(i - group * kTogether * across);
  const int rows = min(kTogether, down - first);
  row = first + rest % rows;
  column = rest / rows;
}

template <int kTile, bool kRowsSummed, class T>
__device__ bool find_work(const Product<T>& p, Work& w) {
  w.m = p.m, w.n = p.n, w.k = p.k;
  if constexpr (kRowsSummed) {
    const int64_t each = static_cast<int64_t>(p.tiles_down) * p.tiles_across;
    w.expert = static_cast<int>(blockIdx.x / each);
    place_tile(blockIdx.x % each, p.tiles_down, p.tiles_across, w.row, w.column);
    w.begin = p.starts[w.expert];
    w.k = p.starts[w.expert + 1] - w.begin;
  } else {
    int tile;
    place_tile(blockIdx.x, p.tiles_down, p.tiles_across, tile, w.column);
    const Part part = part_of<kTile>(p.starts, p.experts + kOtherClasses, tile);
    if (part.expert < 0) return false;
    w.expert = part.expert, w.begin = part.begin, w.m = part.rows, w.row = 0;
    if (w.expert >= p.experts) w.k = 0;
  }
  w.row *= kTile, w.column *= kTile;
  return true;
}

template <class T>
__device__ T* result_row(const Product<T>& p, const Work& w, int row) {
  return p.y + (p.y_at != nullptr ? p.y_at[w.begin + row] : w.expert * p.y_expert + row * p.y_row);
}

// What a sum starts with: the result of rows of no expert is not a number, so that it is seen.
template <class T>
__device__ Statistic<T> start_of(const Product<T>& p, const Work& w) {
  return static_cast<Statistic<T>>(w.expert > p.experts ? __builtin_nan("") : 0.0);
}

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
  if (!find_work<kSide, kRowsSummed>(p, w)) return;
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

// kAlongA, kAlongB: whether the operands lie dense along what is summed over, or along y.
template <class T, bool kAlongA, bool kAlongB, bool kRowsSummed>
__global__ void __launch_bounds__(tiles::kThreads, 2) tensor_product(Product<T> p) {
  Work w;
  if (!find_work<tiles::kSide, kRowsSummed>(p, w)) return;
  const auto lines = [&](const Operand<T>& o, bool along, int sides) {
    const bool rows = o.at != nullptr;
    return tiles::Lines<T>{.data = o.data + (rows ? 0 : w.expert * o.expert_step),
                           .at = rows ? o.at + w.begin : nullptr,
                           .step = along ? o.side_step : o.sum_step,
                           .lines = along ? sides : w.k,
                           .length = along ? w.k : sides};
  };
  tiles::Sums sums;
  if (w.k > 0) {
    tiles::multiply_lines<T, kAlongA, kAlongB>(sums, lines(p.a, kAlongA, w.m),
                                               lines(p.b, kAlongB, w.n), w.row, w.column, w.k);
  }
  const float start = start_of(p, w);
  sums.each_pair([&](int i, int j, float first, float second) {
    const int row = w.row + i, column = w.column + j;
    if (row >= w.m || column >= w.n) return;
    store(result_row(p, w, row) + column,
          Vec<T, 2>{{To<T>::of(first + start), To<T>::of(second + start)}});
  });
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

// Launches a kernel for all tiles, of this side, that so many rows may need.
template <class T>
void launch(const KernelArgs& args, Product<T> p, int64_t rows, int side, int threads, int shared,
            void (*kernel)(Product<T>)) {
  p.tiles_across = static_cast<int>(ceil_div(p.n, side));
  // Each class may have one tile that is not full.
  p.tiles_down = static_cast<int>(p.y_at == nullptr ? ceil_div(p.m, side)
                                                    : rows / side + p.experts + kOtherClasses);
  const int64_t blocks =
      static_cast<int64_t>(p.tiles_down) * p.tiles_across * (p.y_at == nullptr ? p.experts : 1);
  if (blocks == 0) return;
  CLEAVE_ASSERT(blocks <= INT32_MAX, "{} tiles", blocks);
  if (shared > 0) {
    cuda_check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  }
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
           static_cast<size_t>(shared), static_cast<cudaStream_t>(args.stream)>>>(p);
  cuda_check(cudaGetLastError());
}

template <class T>
constexpr bool kHalf = sizeof(T) == 2;

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
      const bool wide = wide_rows<T>(rows, 1, p.a.data, x[in], p.k) &&
                        wide_rows<T>(rows, 2, p.y, y[out], p.n) &&
                        wide_matrices<T>(args.in[1], w, last, last == in ? out : in, e, args);
      if (wide) {
        return launch<T>(args, p, rows.count(), tiles::kSide, tiles::kThreads, tiles::kSharedBytes,
                         last == in ? tensor_product<T, true, true, false>
                                    : tensor_product<T, true, false, false>);
      }
    }
    launch<T>(args, p, rows.count(), kSide, kThreads, 0, plain_product<T, false>);
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
      const bool wide = wide_rows<T>(rows, 1, p.a.data, dy[outer], p.m) &&
                        wide_rows<T>(rows, 2, p.b.data, x[inner], p.n) &&
                        wide_matrices<T>(args.out[0], dw, inner, outer, e, args);
      if (wide) {
        return launch<T>(args, p, rows.count(), tiles::kSide, tiles::kThreads, tiles::kSharedBytes,
                         tensor_product<T, false, false, true>);
      }
    }
    launch<T>(args, p, rows.count(), kSide, kThreads, 0, plain_product<T, true>);
  });
}

}  // namespace cleave
