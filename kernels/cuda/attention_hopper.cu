// Attention's forward on tensor cores: a warpgroup's 64 queries walk over 128 keys at a time. The
// scores of the next keys are computed while the weights of the last are multiplied with the
// values.
#include <cmath>

#include "kernels/cuda/attention_hopper.cuh"

namespace cleave {
namespace {

using namespace hopper;  // NOLINT

template <int kWidth>
struct ForwardBlock {
  // Three warpgroups have 160 registers a thread, two 240.
  static constexpr int kGroups = kWidth <= 64 ? 3 : 2;
  static constexpr int kRegisters = kGroups == 3 ? 160 : 240, kLeft = kGroups == 3 ? 32 : 24;
  static constexpr int kRows = kGroups * kBrick, kThreads = 128 * (kGroups + 1);
  static constexpr int kKeys = 128, kStages = 2;
  using Brick = Tile<kBrick, kWidth>;
  using Keys = Tile<kKeys, kWidth>;
  static constexpr int kBytes =
      2 * kGroups * Brick::kBytes + kStages * 2 * Keys::kBytes + 1024 + 1024;
};

struct ForwardMaps {
  CUtensorMap q, k, v, o;
};

// Scores become weights of the largest score so far, `top`, of both rows of the thread; factor:
// what weights until now are multiplied with.
__device__ inline void weigh(float (&scores)[64], float (&top)[2], float (&sum)[2],
                             float (&factor)[2], float scale_log2) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float most = top[i];
#pragma unroll
    for (int j = 0; j < 32; ++j) most = fmaxf(most, scores[j / 2 * 4 + 2 * i + j % 2]);
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    const float shift = most * scale_log2;
    factor[i] = exp2_of(top[i] * scale_log2 - shift);
    top[i] = most;
    float part = 0;
#pragma unroll
    for (int j = 0; j < 32; ++j) {
      float& x = scores[j / 2 * 4 + 2 * i + j % 2];
      x = exp2_of(x * scale_log2 - shift);
      part += x;
    }
    sum[i] = sum[i] * factor[i] + part;
  }
}

template <class T, int kWidth, bool kCausal>
__global__ void __launch_bounds__(ForwardBlock<kWidth>::kThreads, 1)
    forward_kernel(const __grid_constant__ ForwardMaps maps, const HopperCall call) {
  using B = ForwardBlock<kWidth>;
  using Brick = typename B::Brick;
  using Keys = typename B::Keys;
  constexpr int kStages = B::kStages, kKeys = B::kKeys, kGroups = B::kGroups;
  extern __shared__ unsigned char raw[];
  unsigned char* const own = aligned_shared(raw);                // of each warpgroup: Q
  unsigned char* const outs = own + kGroups * Brick::kBytes;     // of each warpgroup: O
  unsigned char* const stages = outs + kGroups * Brick::kBytes;  // K, V; K, V
  auto* const own_full = reinterpret_cast<Barrier*>(stages + kStages * 2 * Keys::kBytes);
  Barrier *const own_empty = own_full + kGroups, *const k_full = own_empty + kGroups,
                 *const v_full = k_full + kStages, *const k_empty = v_full + kStages,
                 *const v_empty = k_empty + kStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kGroups; ++i) own_full[i].init(1), own_empty[i].init(4);
    for (int i = 0; i < kStages; ++i) {
      k_full[i].init(1), v_full[i].init(1);
      k_empty[i].init(4 * kGroups), v_empty[i].init(4 * kGroups);
    }
    barriers_ready();
  }
  __syncthreads();

  const int warpgroup =
      __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);  // for all the warp
  const int turns = call.blocks * call.heads, heads = call.g * call.r;
  uint32_t own_parity = 0;
  if (warpgroup == 0) {
    leave_registers<B::kLeft>();
    if (threadIdx.x != 0) return;
    Ring<kStages> ring;
    for (int index = static_cast<int>(blockIdx.x); index < turns;
         index += static_cast<int>(gridDim.x), own_parity ^= 1) {
      const Turn turn = turn_of(call, index, heads);
      const int first = first_query_of(call, turn, B::kRows);
      for (int i = 0; i < kGroups; ++i) {
        own_empty[i].wait(own_parity ^ 1);
        own_full[i].expect(Brick::kBytes);
        load_tile<Brick>(own + i * Brick::kBytes, maps.q, own_full[i], first + i * kBrick,
                         turn.head, turn.batch);
      }
      const int walked = seen_blocks<kCausal>(first + B::kRows, call.t, kKeys);
      for (int i = 0; i < walked; ++i, ring.next()) {
        unsigned char* const to = stages + ring.stage * 2 * Keys::kBytes;
        k_empty[ring.stage].wait(ring.parity ^ 1);
        k_full[ring.stage].expect(Keys::kBytes);
        load_tile<Keys>(to, maps.k, k_full[ring.stage], i * kKeys, turn.head / call.r, turn.batch);
        v_empty[ring.stage].wait(ring.parity ^ 1);
        v_full[ring.stage].expect(Keys::kBytes);
        load_tile<Keys>(to + Keys::kBytes, maps.v, v_full[ring.stage], i * kKeys,
                        turn.head / call.r, turn.batch);
      }
    }
    return;
  }

  take_registers<B::kRegisters>();
  const int group = warpgroup - 1, thread = static_cast<int>(threadIdx.x) % 128;
  const int lane = thread % 32, quad = lane % 4;
  const int row = thread / 32 * 16 + lane / 4;  // and row + 8, of the brick
  unsigned char* const out = outs + group * Brick::kBytes;
  const uint32_t q = Brick::base(own + group * Brick::kBytes);
  const uint32_t first_stage = Keys::base(stages);
  Ring<kStages> keys, values;
  const auto k_tile = [&] {
    return first_stage + static_cast<uint32_t>(keys.stage) * (2 * Keys::kBytes / 16);
  };
  const auto v_tile = [&] {
    return first_stage + static_cast<uint32_t>(values.stage) * (2 * Keys::kBytes / 16) +
           Keys::kBytes / 16;
  };
  for (int index = static_cast<int>(blockIdx.x); index < turns;
       index += static_cast<int>(gridDim.x), own_parity ^= 1) {
    const Turn turn = turn_of(call, index, heads);
    const int first = first_query_of(call, turn, B::kRows);
    const int walked = seen_blocks<kCausal>(first + B::kRows, call.t, kKeys);
    const int first_query = first + group * kBrick;
    const bool any = first_query >= 0;  // queries
    const int seen = any ? seen_keys<kCausal>(first_query + kBrick, call.t) : 0;
    const int mine = (seen + kKeys - 1) / kKeys;
    float o[kWidth / 2], scores[64];
    uint32_t p[8][4];
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, factor[2];
#pragma unroll
    for (float& x : o) x = 0;
    const auto hide = [&](int key) {  // of the scores of keys key, key + 1, ...
      if ((!kCausal || key + kKeys <= first_query + 1) && key + kKeys <= call.t) return;
#pragma unroll
      for (int j = 0; j < 64; ++j) {
        const int column = key + j / 4 * 8 + 2 * quad + j % 2;
        const int query = first_query + row + j / 2 % 2 * 8;
        if ((kCausal && column > query) || column >= call.t) scores[j] = -INFINITY;
      }
    };

    own_full[group].wait(own_parity);
    if (mine > 0) {
      k_full[keys.stage].wait(keys.parity);
      begin_products();
#pragma unroll
      for (int j = 0; j < kWidth / 16; ++j) {
        product<T, 0>(scores, Brick::along(q, j), Keys::along(k_tile(), j), j > 0);
      }
      end_products();
      wait_products<0>();
      hold(scores);
      if (lane == 0) k_empty[keys.stage].arrive();
      keys.next();
      hide(0);
      weigh(scores, top, sum, factor, call.scale_log2);
      operand_of<T>(scores, p);
      for (int i = 1; i < mine; ++i) {
        k_full[keys.stage].wait(keys.parity);
        begin_products();
#pragma unroll
        for (int j = 0; j < kWidth / 16; ++j) {
          product<T, 0>(scores, Brick::along(q, j), Keys::along(k_tile(), j), j > 0);
        }
        end_products();
        v_full[values.stage].wait(values.parity);
        begin_products();
#pragma unroll
        for (int j = 0; j < kKeys / 16; ++j) {
          product<T, 1>(o, p[j], Keys::across(v_tile(), j), 1);
        }
        end_products();
        wait_products<1>();
        hold(scores);
        if (lane == 0) k_empty[keys.stage].arrive();
        keys.next();
        hide(i * kKeys);
        weigh(scores, top, sum, factor, call.scale_log2);
        wait_products<0>();
        hold(o);
        if (lane == 0) v_empty[values.stage].arrive();
        values.next();
#pragma unroll
        for (int j = 0; j < kWidth / 2; ++j) o[j] *= factor[j / 2 % 2];
        operand_of<T>(scores, p);
      }
      if (lane == 0) own_empty[group].arrive();
      v_full[values.stage].wait(values.parity);
      begin_products();
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) product<T, 1>(o, p[j], Keys::across(v_tile(), j), 1);
      end_products();
      wait_products<0>();
      hold(o);
      if (lane == 0) v_empty[values.stage].arrive();
      values.next();
    } else {
      __syncwarp();  // no lane waits any more
      if (lane == 0) own_empty[group].arrive();
    }
    for (int i = mine; i < walked; ++i, keys.next(), values.next()) {
      k_full[keys.stage].wait(keys.parity);
      v_full[values.stage].wait(values.parity);
      __syncwarp();
      if (lane == 0) k_empty[keys.stage].arrive(), v_empty[values.stage].arrive();
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
      sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
      const int query = first_query + row + 8 * i;
      if (any && quad == 0 && query < call.s) {
        call.lse[turn.batch * call.lse_batch + turn.head * call.lse_head + query * call.lse_row] =
            top[i] * call.scale + logf(sum[i]);
      }
      sum[i] = 1 / sum[i];
    }
    if (thread == 0) stores_read();  // of the turn before
    meet_warpgroup(warpgroup);
    const int out_row = anew(row);
#pragma unroll
    for (int j = 0; j < kWidth / 4; ++j) {
      *reinterpret_cast<uint32_t*>(out + Brick::place(out_row + j % 2 * 8, j / 2 * 8 + 2 * quad)) =
          pair<T>(o[2 * j] * sum[j % 2], o[2 * j + 1] * sum[j % 2]);
    }
    shared_written();
    meet_warpgroup(warpgroup);
    if (thread == 0 && any) {
      store_tile<Brick>(maps.o, out, first_query, turn.head, turn.batch);
    }
  }
  if (thread == 0) stores_read();
}

}  // namespace

bool attend_on_tensor_cores(const AttentionShape& shape, const AttentionWork& w,
                            int multiprocessors, cudaStream_t stream) {
  using W = AttentionWork;
  if (shape.scale <= 0) return false;  // the largest product is the largest score
  return with_hopper_shape(shape, [&]<class T, class D, class C>(T, D, C) {
    using B = ForwardBlock<D::kWidth>;
    constexpr int kChunk = B::Brick::kChunk;
    const HopperCall call = hopper_call(shape, w, W::kQ, B::kRows, 2 * shape.t * shape.e / shape.r);
    launch_hopper(forward_kernel<T, D::kWidth, C::kCausal>, call, B::kThreads, B::kBytes,
                  multiprocessors, stream,
                  ForwardMaps{map_of(shape, w, W::kQ, kBrick, kChunk),
                              map_of(shape, w, W::kK, B::kKeys, kChunk),
                              map_of(shape, w, W::kV, B::kKeys, kChunk),
                              map_of(shape, w, W::kO, kBrick, kChunk)},
                  call);
  });
}

}  // namespace cleave
