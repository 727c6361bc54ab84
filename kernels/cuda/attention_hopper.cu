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
  static constexpr int kOwn = kGroups * Brick::kBytes;
  static constexpr int kBytes = kOwn + kStages * 2 * Keys::kBytes + 1024 + 1024;
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
  constexpr int kStages = B::kStages, kKeys = B::kKeys;
  extern __shared__ unsigned char raw[];
  unsigned char* const shared = raw + (1024 - shared_address(raw) % 1024) % 1024;
  unsigned char* const q_tiles = shared;
  unsigned char* const stages = shared + B::kOwn;  // K, V; K, V
  auto* const barriers = reinterpret_cast<Barrier*>(stages + kStages * 2 * Keys::kBytes);
  Barrier &own = barriers[0], *const k_full = barriers + 1, *const v_full = k_full + kStages,
          *const k_empty = v_full + kStages, *const v_empty = k_empty + kStages;

  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const int head_index = static_cast<int>(blockIdx.x) / call.blocks;  // batch, query head
  // The last queries, which see the most keys when causal, go first.
  const int block = call.blocks - 1 - static_cast<int>(blockIdx.x) % call.blocks;
  const int heads = call.g * call.r, head = head_index % heads, batch = head_index / heads;
  const int first = block * B::kRows;
  const int walked = (Seen<kCausal>::keys(first + B::kRows, call.t) + kKeys - 1) / kKeys;
  if (threadIdx.x == 0) {
    own.init(1);
    for (int i = 0; i < kStages; ++i) {
      k_full[i].init(1), v_full[i].init(1);
      k_empty[i].init(4 * B::kGroups), v_empty[i].init(4 * B::kGroups);
    }
    barriers_ready();
  }
  __syncthreads();

  if (warpgroup == 0) {
    leave_registers<B::kLeft>();
    if (threadIdx.x == 0) {
      own.expect(B::kOwn);
      for (int i = 0; i < B::kGroups; ++i) {
        load_tile<Brick>(q_tiles + i * Brick::kBytes, maps.q, own, first + i * kBrick, head, batch);
      }
      for (int i = 0; i < walked; ++i) {
        const int stage = i % kStages;
        const auto parity = static_cast<uint32_t>(i / kStages + 1) & 1;
        unsigned char* const to = stages + stage * 2 * Keys::kBytes;
        if (i >= kStages) k_empty[stage].wait(parity);
        k_full[stage].expect(Keys::kBytes);
        load_tile<Keys>(to, maps.k, k_full[stage], i * kKeys, head / call.r, batch);
        if (i >= kStages) v_empty[stage].wait(parity);
        v_full[stage].expect(Keys::kBytes);
        load_tile<Keys>(to + Keys::kBytes, maps.v, v_full[stage], i * kKeys, head / call.r, batch);
      }
    }
  } else {
    take_registers<B::kRegisters>();
    const int group = warpgroup - 1, thread = static_cast<int>(threadIdx.x) % 128;
    const int lane = thread % 32, quad = lane % 4;
    const int row = thread / 32 * 16 + lane / 4;  // and row + 8, of the brick
    const int first_query = first + group * kBrick;
    const uint32_t q = shared_address(q_tiles + group * Brick::kBytes);
    const int seen = first_query < call.s ? Seen<kCausal>::keys(first_query + kBrick, call.t) : 0;
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
    const auto k_tile = [&](int i) {
      return shared_address(stages + i % kStages * 2 * Keys::kBytes);
    };
    const auto v_tile = [&](int i) { return k_tile(i) + static_cast<uint32_t>(Keys::kBytes); };
    const auto parity = [&](int i) { return static_cast<uint32_t>(i / kStages) & 1; };

    own.wait(0);
    if (mine > 0) {
      k_full[0].wait(0);
      begin_products();
#pragma unroll
      for (int j = 0; j < kWidth / 16; ++j) {
        product<T, 0>(scores, Brick::along(q, j), Keys::along(k_tile(0), j), j > 0);
      }
      end_products();
      wait_products<0>();
      hold(scores);
      if (lane == 0) k_empty[0].arrive();
      hide(0);
      weigh(scores, top, sum, factor, call.scale_log2);
      operand_of<T>(scores, p);
    }
    for (int i = 1; i < mine; ++i) {
      k_full[i % kStages].wait(parity(i));
      begin_products();
#pragma unroll
      for (int j = 0; j < kWidth / 16; ++j) {
        product<T, 0>(scores, Brick::along(q, j), Keys::along(k_tile(i), j), j > 0);
      }
      end_products();
      v_full[(i - 1) % kStages].wait(parity(i - 1));
      begin_products();
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) {
        product<T, 1>(o, p[j], Keys::across(v_tile(i - 1), j), 1);
      }
      end_products();
      wait_products<1>();
      hold(scores);
      if (lane == 0) k_empty[i % kStages].arrive();
      hide(i * kKeys);
      weigh(scores, top, sum, factor, call.scale_log2);
      wait_products<0>();
      hold(o);
      if (lane == 0) v_empty[(i - 1) % kStages].arrive();
#pragma unroll
      for (int j = 0; j < kWidth / 2; ++j) o[j] *= factor[j / 2 % 2];
      operand_of<T>(scores, p);
    }
    if (mine > 0) {
      v_full[(mine - 1) % kStages].wait(parity(mine - 1));
      begin_products();
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) {
        product<T, 1>(o, p[j], Keys::across(v_tile(mine - 1), j), 1);
      }
      end_products();
      wait_products<0>();
      hold(o);
      if (lane == 0) v_empty[(mine - 1) % kStages].arrive();
    }
    for (int i = mine; i < walked; ++i) {
      k_full[i % kStages].wait(parity(i));
      v_full[i % kStages].wait(parity(i));
      if (lane == 0) k_empty[i % kStages].arrive(), v_empty[i % kStages].arrive();
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
      sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
      const int query = first_query + row + 8 * i;
      if (quad == 0 && query < call.s) {
        call.lse[batch * call.lse_batch + head * call.lse_head + query * call.lse_row] =
            top[i] * call.scale + logf(sum[i]);
      }
      sum[i] = 1 / sum[i];
    }
    // Out by way of the queries' own brick.
    unsigned char* const out = q_tiles + group * Brick::kBytes;
#pragma unroll
    for (int j = 0; j < kWidth / 4; ++j) {
      *reinterpret_cast<uint32_t*>(out + Brick::place(row + j % 2 * 8, j / 2 * 8 + 2 * quad)) =
          pair<T>(o[2 * j] * sum[j % 2], o[2 * j + 1] * sum[j % 2]);
    }
    shared_written();
    meet_warpgroup(warpgroup);
    if (thread == 0 && first_query < call.s) {
      store_tile<Brick>(maps.o, out, first_query, head, batch);
      stores_read();
    }
  }
}

}  // namespace

bool attend_on_tensor_cores(const AttentionShape& shape, const AttentionWork& w,
                            cudaStream_t stream) {
  using W = AttentionWork;
  if (shape.scale <= 0) return false;  // the largest product is the largest score
  return with_hopper_shape(shape, [&]<class T, class D, class C>(T, D, C) {
    using B = ForwardBlock<D::kWidth>;
    constexpr int kChunk = B::Brick::kChunk;
    const auto kernel = forward_kernel<T, D::kWidth, C::kCausal>;
    const HopperCall call = hopper_call(shape, w, shape.s, B::kRows);
    cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, B::kBytes));
    const int64_t blocks = call.blocks * shape.b * shape.g * shape.r;
    kernel<<<static_cast<unsigned>(blocks), B::kThreads, B::kBytes, stream>>>(
        ForwardMaps{
            map_of(shape, w, W::kQ, kBrick, kChunk), map_of(shape, w, W::kK, B::kKeys, kChunk),
            map_of(shape, w, W::kV, B::kKeys, kChunk), map_of(shape, w, W::kO, kBrick, kChunk)},
        call);
    cuda_check(cudaGetLastError());
  });
}

}  // namespace cleave
