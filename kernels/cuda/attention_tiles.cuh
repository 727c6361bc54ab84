// What attention's kernels share. A block has kWarps warps and a tile of rows, its own, in shared
// memory: queries, or in the gradient of keys and values the keys. It walks over the others, a tile
// of 32 at a time: each lane has one of them, each warp some of the block's rows.
#pragma once

#include "kernels/cuda/attention_work.h"
#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/loops.cuh"

namespace cleave {

inline constexpr int kWarps = 8;
inline constexpr int kAttentionThreads = 32 * kWarps;
inline constexpr int kWalked = 32;

// Numbers that are read from shared memory at once.
template <class S>
inline constexpr int kTogether = 16 / static_cast<int>(sizeof(S));
// Rows of a warp; few enough for the widest heads to fit into shared memory.
template <class S>
inline constexpr int kRowsOfWarp = sizeof(S) == 8 ? 2 : 4;
template <class S>
inline constexpr int kRowsOfBlock = kRowsOfWarp<S>* kWarps;

// The length of a row of a tile. Not a multiple of all banks, so that lanes which read 16 bytes of
// as many rows do not wait for each other.
template <class S>
__host__ __device__ constexpr int tile_width(int64_t width) {
  const int n = kTogether<S>;
  return (static_cast<int>(width) + n - 1) / n * n + n;
}

// Of one head: where its operands begin, and what its rows add to.
struct AttentionHead {
  int64_t at[AttentionWork::kOperands];
  uint64_t mask = 0;
  int64_t key = 0;  // position of the first key of its block of keys
};

__device__ inline AttentionHead head_of(const AttentionWork& w, int64_t index, int64_t r) {
  AttentionHead head;
#pragma unroll
  for (int i = 0; i < AttentionWork::kOperands; ++i) head.at[i] = r * w.r_steps[i];
  int64_t mask = w.r_positions.position(r) * w.r_mask_step;
  for (int d = w.loops.dims - 1; d >= 0; --d) {
    int64_t i;
    index = w.loops.divided(index, d, i);
#pragma unroll
    for (int o = 0; o < AttentionWork::kOperands; ++o) head.at[o] += i * w.loops.step[d][o];
    const int64_t whole = w.positions[d].position(i);
    mask += whole * w.mask_steps[d];
    head.key += whole * w.key_steps[d];
  }
  head.mask = static_cast<uint64_t>(mask);
  return head;
}

template <class T>
__device__ inline T* matrix_of(const AttentionWork& w, const AttentionHead& head,
                               AttentionWork::Operand which) {
  return static_cast<T*>(w.matrices[which].data) + head.at[which];
}

// Rows first, first + 1, ... of a matrix of `count` rows, into a tile; zeros behind its end.
template <class T, class S>
__device__ inline void load_tile(S* tile, int rows, const T* matrix, int64_t row_step,
                                 int64_t column_step, int64_t first, int64_t count, int64_t width) {
  const int length = tile_width<S>(width);
  for (int i = static_cast<int>(threadIdx.x) / 32; i < rows; i += kWarps) {
    for (int c = static_cast<int>(threadIdx.x) % 32; c < length; c += 32) {
      const bool there = first + i < count && c < width;
      tile[i * length + c] =
          there ? static_cast<S>(number(matrix[(first + i) * row_step + c * column_step])) : S{0};
    }
  }
}

// products[i] = row i of the warp's, in `own`, times this lane's row of `walked`.
template <class S>
__device__ inline void row_products(const S* own, const S* walked, int64_t width,
                                    S (&products)[kRowsOfWarp<S>]) {
  constexpr int kN = kTogether<S>;
  const int length = tile_width<S>(width);
  const S* const mine = walked + static_cast<int>(threadIdx.x) % 32 * length;
  const S* const rows = own + static_cast<int>(threadIdx.x) / 32 * kRowsOfWarp<S> * length;
#pragma unroll
  for (int i = 0; i < kRowsOfWarp<S>; ++i) products[i] = 0;
  for (int c = 0; c < width; c += kN) {
    const Vec<S, kN> x = load<kN>(mine + c);
#pragma unroll
    for (int i = 0; i < kRowsOfWarp<S>; ++i) {
      const Vec<S, kN> y = load<kN>(rows + i * length + c);
#pragma unroll
      for (int j = 0; j < kN; ++j) products[i] += x.x[j] * y.x[j];
    }
  }
}

// sums[i][c] += the sum over the walked rows of their weight for row i and their column
// lane + 32 c. `weights`: those of this lane's row.
template <class S, int kColumns>
__device__ inline void add_rows(const S (&weights)[kRowsOfWarp<S>], const S* walked, int64_t width,
                                S (&sums)[kRowsOfWarp<S>][kColumns]) {
  const int length = tile_width<S>(width), lane = static_cast<int>(threadIdx.x) % 32;
  for (int j = 0; j < kWalked; ++j) {
    S weight[kRowsOfWarp<S>];
#pragma unroll
    for (int i = 0; i < kRowsOfWarp<S>; ++i) weight[i] = __shfl_sync(~0u, weights[i], j);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const S x = lane + 32 * c < width ? walked[j * length + lane + 32 * c] : S{0};
#pragma unroll
      for (int i = 0; i < kRowsOfWarp<S>; ++i) sums[i][c] += weight[i] * x;
    }
  }
}

// Writes factors[i] * sums[i] to the rows of this warp, of which row `first` is the first.
template <class T, class S, int kColumns>
__device__ inline void write_rows(const S (&sums)[kRowsOfWarp<S>][kColumns],
                                  const S (&factors)[kRowsOfWarp<S>], T* matrix, int64_t row_step,
                                  int64_t column_step, int64_t first, int64_t count,
                                  int64_t width) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < kRowsOfWarp<S>; ++i) {
    if (first + i >= count) break;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = lane + 32 * c;
      if (column < width) {
        matrix[(first + i) * row_step + column * column_step] = To<T>::of(sums[i][c] * factors[i]);
      }
    }
  }
}

template <class S>
__device__ inline S warp_sum(S x) {
  for (int width = 16; width > 0; width /= 2) x += __shfl_xor_sync(~0u, x, width);
  return x;
}
template <class S>
__device__ inline S warp_max(S x) {
  for (int width = 16; width > 0; width /= 2) x = max(x, __shfl_xor_sync(~0u, x, width));
  return x;
}

// Calls fn with a zero of the element type and the columns of a lane, as a type's value.
template <int kN>
struct Columns {
  static constexpr int kColumns = kN;
};
template <class Fn>
void with_type_and_columns(const AttentionWork& w, Fn&& fn) {
  const int64_t widest = w.e > w.v ? w.e : w.v;
  with_gpu_float(w.dtype, [&]<class T>(T zero) {
    if (widest <= 64) return fn(zero, Columns<2>{});
    if (widest <= 128) return fn(zero, Columns<4>{});
    fn(zero, Columns<8>{});
  });
}

}  // namespace cleave
