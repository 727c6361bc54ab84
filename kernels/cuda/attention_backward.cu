// Attention's own backward: the weights are recomputed. One kernel goes by queries, for their
// gradient; one by keys, for theirs and the values'; so every sum is one block's, in one order.
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/check.h"

namespace cleave {
namespace {

// A weight as dropout leaves it, and the gradient of its score.
template <class S>
struct WeightAndGradient {
  S weight, gradient;
};
template <class S>
__device__ inline WeightAndGradient<S> weight_of(S score, S lse, S product, S delta, S keep,
                                                 S scale) {
  const S weight = exp_of(score * scale - lse);
  return {weight * keep, weight * (product * keep - delta) * scale};
}

template <class T, int kColumns>
__global__ void __launch_bounds__(kAttentionThreads) query_gradients(const AttentionWork w) {
  using W = AttentionWork;
  using S = typename Sum<T>::Type;
  constexpr int kRows = kRowsOfWarp<S>, kTile = kRowsOfBlock<S>;
  extern __shared__ __align__(16) unsigned char shared[];
  S* const q_tile = reinterpret_cast<S*>(shared);           // [kTile, e]
  S* const do_tile = q_tile + kTile * tile_width<S>(w.e);   // [kTile, v]
  S* const k_tile = do_tile + kTile * tile_width<S>(w.v);   // [kWalked, e]
  S* const v_tile = k_tile + kWalked * tile_width<S>(w.e);  // [kWalked, v]
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t tiles = (w.s + kTile - 1) / kTile;
  const int64_t first = (tiles - 1 - blockIdx.x % tiles) * kTile, all = blockIdx.x / tiles;
  const AttentionHead head = head_of(w, all / w.r, all % w.r);
  const int64_t own = first + warp * kRows;
  load_tile(q_tile, kTile, matrix_of<const T>(w, head, W::kQ), w.matrices[W::kQ].row,
            w.matrices[W::kQ].column, first, w.s, w.e);
  load_tile(do_tile, kTile, matrix_of<const T>(w, head, W::kDo), w.matrices[W::kDo].row,
            w.matrices[W::kDo].column, first, w.s, w.v);
  __syncthreads();
  int64_t queries[kRows];
  S lse[kRows], delta[kRows], sums[kRows][kColumns], ones[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int64_t query = min(own + i, w.s - 1);
    queries[i] = w.query_positions.position(query);
    lse[i] = matrix_of<const S>(w, head, W::kLse)[query * w.matrices[W::kLse].row];
    const T* const o = matrix_of<const T>(w, head, W::kO) + query * w.matrices[W::kO].row;
    S part = 0;
    for (int c = lane; c < w.v; c += 32) {
      part += static_cast<S>(number(o[c * w.matrices[W::kO].column])) *
              do_tile[(warp * kRows + i) * tile_width<S>(w.v) + c];
    }
    delta[i] = warp_sum(part);
    if (lane == 0 && own + i < w.s) static_cast<S*>(w.delta)[all * w.s + own + i] = delta[i];
    ones[i] = 1;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sums[i][c] = 0;
  }
  const int64_t last_query = w.query_positions.position(min(first + kTile, w.s) - 1);
  const DeviceMask<S> mask(w.rule, w.dropout ? *w.step : 0);
  const auto scale = static_cast<S>(w.scale);
  for (int64_t walked = 0; walked < w.t; walked += kWalked) {
    if (w.causal && head.key + w.key_positions.position(walked) > last_query) break;
    __syncthreads();
    load_tile(k_tile, kWalked, matrix_of<const T>(w, head, W::kK), w.matrices[W::kK].row,
              w.matrices[W::kK].column, walked, w.t, w.e);
    load_tile(v_tile, kWalked, matrix_of<const T>(w, head, W::kV), w.matrices[W::kV].row,
              w.matrices[W::kV].column, walked, w.t, w.v);
    __syncthreads();
    const bool there = walked + lane < w.t;
    const int64_t key = head.key + w.key_positions.position(there ? walked + lane : w.t - 1);
    S scores[kRows], products[kRows];
    row_products(q_tile, k_tile, w.e, scores);
    row_products(do_tile, v_tile, w.v, products);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (!there || (w.causal && key > queries[i])) {
        scores[i] = 0;
        continue;
      }
      const S keep =
          w.dropout
              ? mask.at(head.mask + static_cast<uint64_t>(queries[i] * w.query_mask_step + key))
              : S{1};
      scores[i] = weight_of(scores[i], lse[i], products[i], delta[i], keep, scale).gradient;
    }
    add_rows(scores, k_tile, w.e, sums);
  }
  write_rows(sums, ones, matrix_of<T>(w, head, W::kDq), w.matrices[W::kDq].row,
             w.matrices[W::kDq].column, own, w.s, w.e);
}

// After query_gradients, which leaves `delta`. The block's own rows are keys; it walks over the
// queries of all query heads.
template <class T, int kColumns>
__global__ void __launch_bounds__(kAttentionThreads) key_gradients(const AttentionWork w) {
  using W = AttentionWork;
  using S = typename Sum<T>::Type;
  constexpr int kRows = kRowsOfWarp<S>, kTile = kRowsOfBlock<S>;
  extern __shared__ __align__(16) unsigned char shared[];
  S* const k_tile = reinterpret_cast<S*>(shared);            // [kTile, e]
  S* const v_tile = k_tile + kTile * tile_width<S>(w.e);     // [kTile, v]
  S* const q_tile = v_tile + kTile * tile_width<S>(w.v);     // [kWalked, e]
  S* const do_tile = q_tile + kWalked * tile_width<S>(w.e);  // [kWalked, v]
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t tiles = (w.t + kTile - 1) / kTile;
  const int64_t first = blockIdx.x % tiles * kTile, index = blockIdx.x / tiles;
  const AttentionHead keys_head = head_of(w, index, 0);
  const int64_t own = first + warp * kRows;
  load_tile(k_tile, kTile, matrix_of<const T>(w, keys_head, W::kK), w.matrices[W::kK].row,
            w.matrices[W::kK].column, first, w.t, w.e);
  load_tile(v_tile, kTile, matrix_of<const T>(w, keys_head, W::kV), w.matrices[W::kV].row,
            w.matrices[W::kV].column, first, w.t, w.v);
  int64_t keys[kRows];
  S dk[kRows][kColumns], dv[kRows][kColumns], ones[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    keys[i] = keys_head.key + w.key_positions.position(min(own + i, w.t - 1));
    ones[i] = 1;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) dk[i][c] = dv[i][c] = 0;
  }
  const int64_t first_key = keys_head.key + w.key_positions.position(first);
  const DeviceMask<S> mask(w.rule, w.dropout ? *w.step : 0);
  const auto scale = static_cast<S>(w.scale);
  for (int64_t r = 0; r < w.r; ++r) {
    const AttentionHead head = head_of(w, index, r);
    const S* const lse = matrix_of<const S>(w, head, W::kLse);
    const S* const delta = static_cast<const S*>(w.delta) + (index * w.r + r) * w.s;
    for (int64_t walked = 0; walked < w.s; walked += kWalked) {
      const int64_t last = min(walked + kWalked, w.s) - 1;
      if (w.causal && w.query_positions.position(last) < first_key) continue;
      __syncthreads();
      load_tile(q_tile, kWalked, matrix_of<const T>(w, head, W::kQ), w.matrices[W::kQ].row,
                w.matrices[W::kQ].column, walked, w.s, w.e);
      load_tile(do_tile, kWalked, matrix_of<const T>(w, head, W::kDo), w.matrices[W::kDo].row,
                w.matrices[W::kDo].column, walked, w.s, w.v);
      __syncthreads();
      const bool there = walked + lane < w.s;
      const int64_t mine = there ? walked + lane : w.s - 1;
      const int64_t query = w.query_positions.position(mine);
      const S mine_lse = lse[mine * w.matrices[W::kLse].row], mine_delta = delta[mine];
      S scores[kRows], products[kRows];
      row_products(k_tile, q_tile, w.e, scores);
      row_products(v_tile, do_tile, w.v, products);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (!there || own + i >= w.t || (w.causal && keys[i] > query)) {
          scores[i] = products[i] = 0;
          continue;
        }
        const S keep =
            w.dropout
                ? mask.at(head.mask + static_cast<uint64_t>(query * w.query_mask_step + keys[i]))
                : S{1};
        const auto both = weight_of(scores[i], mine_lse, products[i], mine_delta, keep, scale);
        scores[i] = both.gradient;
        products[i] = both.weight;
      }
      add_rows(scores, q_tile, w.e, dk);
      add_rows(products, do_tile, w.v, dv);
    }
  }
  write_rows(dk, ones, matrix_of<T>(w, keys_head, W::kDk), w.matrices[W::kDk].row,
             w.matrices[W::kDk].column, own, w.t, w.e);
  write_rows(dv, ones, matrix_of<T>(w, keys_head, W::kDv), w.matrices[W::kDv].row,
             w.matrices[W::kDv].column, own, w.t, w.v);
}

}  // namespace

void attend_backward(const AttentionWork& w, cudaStream_t stream) {
  if (w.loops.count == 0) return;
  with_type_and_columns(w, [&]<class T, class C>(T, C) {
    using S = typename Sum<T>::Type;
    constexpr int kTile = kRowsOfBlock<S>;
    const int numbers = (kTile + kWalked) * (tile_width<S>(w.e) + tile_width<S>(w.v));
    const int bytes = numbers * static_cast<int>(sizeof(S));
    const auto launch = [&](auto kernel, int64_t rows, int64_t heads) {
      cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
      const int64_t blocks = (rows + kTile - 1) / kTile * heads;
      kernel<<<static_cast<unsigned>(blocks), kAttentionThreads, static_cast<size_t>(bytes),
               stream>>>(w);
      cuda_check(cudaGetLastError());
    };
    launch(query_gradients<T, C::kColumns>, w.s, w.loops.count * w.r);
    launch(key_gradients<T, C::kColumns>, w.t, w.loops.count);
  });
}

}  // namespace cleave
