// Attention's own forward kernel: softmax over tiles of keys, with the largest score and the sum so
// far, so that no scores are stored.
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/check.h"

namespace cleave {
namespace {

template <class T, int kColumns>
__global__ void __launch_bounds__(kAttentionThreads) attend_tile(const AttentionWork w) {
  using W = AttentionWork;
  using S = typename Sum<T>::Type;
  constexpr int kRows = kRowsOfWarp<S>, kTile = kRowsOfBlock<S>;
  extern __shared__ __align__(16) unsigned char shared[];
  S* const q_tile = reinterpret_cast<S*>(shared);           // [kTile, e]
  S* const k_tile = q_tile + kTile * tile_width<S>(w.e);    // [kWalked, e]
  S* const v_tile = k_tile + kWalked * tile_width<S>(w.e);  // [kWalked, v]
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  // The last queries, which see the most keys when causal, go first.
  const int64_t tiles = (w.s + kTile - 1) / kTile;
  const int64_t first = (tiles - 1 - blockIdx.x % tiles) * kTile, all = blockIdx.x / tiles;
  const AttentionHead head = head_of(w, all / w.r, all % w.r);
  const T* const q = matrix_of<const T>(w, head, W::kQ);
  const T* const k = matrix_of<const T>(w, head, W::kK);
  const T* const v = matrix_of<const T>(w, head, W::kV);
  const int64_t own = first + warp * kRows;  // the first query of the warp
  int64_t queries[kRows];                    // positions
  S top[kRows], sum[kRows], sums[kRows][kColumns];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    queries[i] = w.query_positions.position(min(own + i, w.s - 1));
    top[i] = -INFINITY, sum[i] = 0;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sums[i][c] = 0;
  }
  const int64_t last_query = w.query_positions.position(min(first + kTile, w.s) - 1);
  const DeviceMask<S> mask(w.rule, w.dropout ? *w.step : 0);
  const auto scale = static_cast<S>(w.scale);
  load_tile(q_tile, kTile, q, w.matrices[W::kQ].row, w.matrices[W::kQ].column, first, w.s, w.e);
  for (int64_t walked = 0; walked < w.t; walked += kWalked) {
    if (w.causal && head.key + w.key_positions.position(walked) > last_query) break;
    __syncthreads();  // the tiles before are read
    load_tile(k_tile, kWalked, k, w.matrices[W::kK].row, w.matrices[W::kK].column, walked, w.t,
              w.e);
    load_tile(v_tile, kWalked, v, w.matrices[W::kV].row, w.matrices[W::kV].column, walked, w.t,
              w.v);
    __syncthreads();
    const bool there = walked + lane < w.t;
    const int64_t key = head.key + w.key_positions.position(there ? walked + lane : w.t - 1);
    S weights[kRows];
    row_products(q_tile, k_tile, w.e, weights);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const bool seen = there && (!w.causal || key <= queries[i]);
      const S score = seen ? weights[i] * scale : static_cast<S>(-INFINITY);
      const S new_top = max(top[i], warp_max(score));
      // Without any key yet, differences of infinities would be no numbers.
      const S shift = new_top == static_cast<S>(-INFINITY) ? S{0} : new_top;
      const S weight = exp_of(score - shift), rescale = exp_of(top[i] - shift);
      sum[i] = sum[i] * rescale + warp_sum(weight);
      top[i] = new_top;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sums[i][c] *= rescale;
      weights[i] = weight;
      if (w.dropout && seen) {
        weights[i] *=
            mask.at(head.mask + static_cast<uint64_t>(queries[i] * w.query_mask_step + key));
      }
    }
    add_rows(weights, v_tile, w.v, sums);
  }
  S inverse[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const bool any = top[i] != static_cast<S>(-INFINITY);
    inverse[i] = any ? 1 / sum[i] : S{0};
    if (lane == 0 && own + i < w.s) {
      matrix_of<S>(w, head, W::kLse)[(own + i) * w.matrices[W::kLse].row] =
          any ? top[i] + log_of(sum[i]) : static_cast<S>(-INFINITY);
    }
  }
  write_rows(sums, inverse, matrix_of<T>(w, head, W::kO), w.matrices[W::kO].row,
             w.matrices[W::kO].column, own, w.s, w.v);
}

}  // namespace

void attend(const AttentionWork& w, cudaStream_t stream) {
  if (w.loops.count * w.r * w.s == 0) return;
  with_type_and_columns(w, [&]<class T, class C>(T, C) {
    using S = typename Sum<T>::Type;
    constexpr int kTile = kRowsOfBlock<S>;
    const auto kernel = attend_tile<T, C::kColumns>;
    const int numbers = (kTile + kWalked) * tile_width<S>(w.e) + kWalked * tile_width<S>(w.v);
    const int bytes = numbers * static_cast<int>(sizeof(S));
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    const int64_t blocks = (w.s + kTile - 1) / kTile * w.r * w.loops.count;
    kernel<<<static_cast<unsigned>(blocks), kAttentionThreads, static_cast<size_t>(bytes),
             stream>>>(w);
  });
  cuda_check(cudaGetLastError());
}

}  // namespace cleave
