// What grouped_matmul's kernels share: the products, and which block computes which tile of which
// expert's.
#pragma once

#include <cstdint>

#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/workspace.h"

namespace cleave::grouped {

// Up to kTile rows of one class.
struct Part {
  int expert = -1, begin = 0, rows = 0;
};

// The t-th part of all rows; found by each warp for itself.
template <int kTile>
__device__ inline Part part_of(const int* starts, int classes, int t) {
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

// Tiles of kTall rows and kBroad columns. False: there is none for this block.
template <int kTall, int kBroad, bool kRowsSummed, class T>
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
    const Part part = part_of<kTall>(p.starts, p.experts + kOtherClasses, tile);
    if (part.expert < 0) return false;
    w.expert = part.expert, w.begin = part.begin, w.m = part.rows, w.row = 0;
    if (w.expert >= p.experts) w.k = 0;
  }
  w.row *= kTall, w.column *= kBroad;
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

// Launches a kernel for all tiles of [tall, broad] that so many rows may need.
template <class T>
void launch_grouped(Product<T> p, int64_t rows, int tall, int broad, int threads, int shared,
                    cudaStream_t stream, void (*kernel)(Product<T>)) {
  p.tiles_across = static_cast<int>(ceil_div(p.n, broad));
  // Each class may have one tile that is not full.
  p.tiles_down = static_cast<int>(p.y_at == nullptr ? ceil_div(p.m, tall)
                                                    : rows / tall + p.experts + kOtherClasses);
  const int64_t blocks =
      static_cast<int64_t>(p.tiles_down) * p.tiles_across * (p.y_at == nullptr ? p.experts : 1);
  if (blocks == 0) return;
  CLEAVE_ASSERT(blocks <= INT32_MAX, "{} tiles", blocks);
  if (shared > 0) {
    cuda_check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  }
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
           static_cast<size_t>(shared), stream>>>(p);
  cuda_check(cudaGetLastError());
}

// Launches the product on tensor cores of compute capability 9.0, of bf16 or f16. Lines of 8, 16,
// ... numbers lie dense and begin at multiples of 16 bytes: y's rows; where y has the rows, those
// of a along what is summed over, and those of b too (along_b) or along y; else both operands'
// along y.
template <class T>
void launch_on_tensor_cores(const Product<T>& p, bool along_b, int64_t rows, cudaStream_t stream);

}  // namespace cleave::grouped
