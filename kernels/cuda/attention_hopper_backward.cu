// Attention's backward on tensor cores. Scores, weights and their gradients of a warpgroup's 64 own
// rows and 64 walked ones are sums in registers, from which the products that use them take them.
//
// queries' kernel: S = Q K', dP = dO V', dS = P (dP - delta), dQ = scale dS K.
// keys' kernel:    S' = K Q', dP' = V dO', dV = P' dO, dS' = P' (dP' - delta), dK = scale dS' Q.
#include <cmath>

#include "kernels/cuda/attention_hopper.cuh"
#include "kernels/cuda/columns.cuh"

namespace cleave {
namespace {

using namespace hopper;  // NOLINT

// Of every query: its log-sum-exp times log2(e), then its delta, the sum of gradient times result;
// a plane each of [heads, padded queries]. What is beyond the last query weighs nothing.
struct Statistics {
  float* data;
  int padded;     // queries, to a multiple of kBrick
  int64_t plane;  // of floats

  __device__ float* row(int64_t head, int which) const {
    return data + which * plane + head * padded;
  }
};

// The sums of results over the rows of each brick, [batch, bricks, 3, n], of dq, dk and dv: n
// numbers of all heads. Null: not asked for.
struct RowSums {
  float* data;
  int bricks, n;

  __device__ float* at(const Turn& turn, int first, int which, int width) const {
    const int64_t brick = static_cast<int64_t>(turn.batch) * bricks + first / kBrick;
    return data + (brick * 3 + which) * n + turn.head * width;
  }
};

// Sums the first `rows` rows of a warpgroup's result, [kBrick, kWidth] in shared memory, for which
// it has room for four more rows.
template <class T, class Brick>
__device__ inline void sum_rows(const unsigned char* tile, int rows, float* room, float* to,
                                int warpgroup) {
  constexpr int kWidth = Brick::kWidth;
  const int thread = anew(static_cast<int>(threadIdx.x) % 128), warp = thread / 32;
#pragma unroll
  for (int c = thread % 32; c < kWidth / 2; c += 32) {
    float2 sum = {0, 0};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int row = warp * 16 + i;
      const Vec<T, 2> x = load<2>(reinterpret_cast<const T*>(tile + Brick::place(row, 2 * c)));
      if (row < rows) sum.x += number(x.x[0]), sum.y += number(x.x[1]);
    }
    *reinterpret_cast<float2*>(room + warp * kWidth + 2 * c) = sum;
  }
  meet_warpgroup(warpgroup);
  if (thread >= kWidth) return;
  float sum = room[thread];
#pragma unroll
  for (int i = 1; i < 4; ++i) sum += room[i * kWidth + thread];
  to[thread] = sum;
}

// --- By queries --------------------------------------------------------------------------------

template <int kWidth>
struct QueriesBlock {
  // Three warpgroups have 160 registers a thread, two 240.
  static constexpr int kGroups = kWidth <= 64 ? 3 : 2;
  static constexpr int kRegisters = kGroups == 3 ? 160 : 240, kLeft = kGroups == 3 ? 32 : 24;
  static constexpr int kRows = kGroups * kBrick, kThreads = 128 * (kGroups + 1);
  static constexpr int kStages = kWidth <= 96 ? 4 : 2;
  using Brick = Tile<kBrick, kWidth>;
  static constexpr int kOwn = 3 * Brick::kBytes, kStage = 2 * Brick::kBytes;  // Q, dO, O; K, V
  static constexpr int kSums = 4 * kWidth;                                    // numbers
  static constexpr int kBytes =
      kGroups * (kOwn + Brick::kBytes + 4 * kSums) + kStages * kStage + 1024 + 1024;
};

struct QueriesMaps {
  CUtensorMap q, d_o, o, k, v, dq;
};

// Of 8 numbers of a row of two tiles.
template <class T>
__device__ inline float dot8(const unsigned char* x, const unsigned char* y) {
  const Vec<T, 8> a = load<8>(reinterpret_cast<const T*>(x));
  const Vec<T, 8> b = load<8>(reinterpret_cast<const T*>(y));
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += number(a.x[i]) * number(b.x[i]);
  return sum;
}

template <class T, int kWidth, bool kCausal>
__global__ void __launch_bounds__(QueriesBlock<kWidth>::kThreads, 1)
    queries_kernel(const __grid_constant__ QueriesMaps maps, const HopperCall call,
                   const Statistics statistics, const RowSums sums) {
  using B = QueriesBlock<kWidth>;
  using Brick = typename B::Brick;
  constexpr int kStages = B::kStages, kGroups = B::kGroups;
  extern __shared__ unsigned char raw[];
  unsigned char* const own = aligned_shared(raw);       // of each warpgroup: Q, dO, O
  unsigned char* const outs = own + kGroups * B::kOwn;  // of each warpgroup: dQ
  unsigned char* const stages = outs + kGroups * Brick::kBytes;
  auto* const rooms = reinterpret_cast<float*>(stages + kStages * B::kStage);
  auto* const own_full = reinterpret_cast<Barrier*>(rooms + kGroups * B::kSums);
  Barrier *const own_empty = own_full + kGroups, *const full = own_empty + kGroups,
                 *const empty = full + kStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kGroups; ++i) own_full[i].init(1), own_empty[i].init(4);
    for (int i = 0; i < kStages; ++i) full[i].init(1), empty[i].init(4 * kGroups);
    barriers_ready();
  }
  __syncthreads();

  const int warpgroup =
      __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);  // for all the warp
  const int turns = call.blocks * call.heads, heads = call.g * call.r;
  Ring<kStages> ring;
  uint32_t own_parity = 0;
  if (warpgroup == 0) {
    leave_registers<B::kLeft>();
    if (threadIdx.x != 0) return;
    for (int index = static_cast<int>(blockIdx.x); index < turns;
         index += static_cast<int>(gridDim.x), own_parity ^= 1) {
      const Turn turn = turn_of(call, index, heads);
      const int first = first_query_of(call, turn, B::kRows);
      for (int i = 0; i < kGroups; ++i) {
        unsigned char* const to = own + i * B::kOwn;
        const int query = first + i * kBrick;
        own_empty[i].wait(own_parity ^ 1);
        own_full[i].expect(B::kOwn);
        load_tile<Brick>(to, maps.q, own_full[i], query, turn.head, turn.batch);
        load_tile<Brick>(to + Brick::kBytes, maps.d_o, own_full[i], query, turn.head, turn.batch);
        load_tile<Brick>(to + 2 * Brick::kBytes, maps.o, own_full[i], query, turn.head, turn.batch);
      }
      const int walked = seen_blocks<kCausal>(first + B::kRows, call.t, kBrick);
      for (int i = 0; i < walked; ++i, ring.next()) {
        unsigned char* const to = stages + ring.stage * B::kStage;
        empty[ring.stage].wait(ring.parity ^ 1);
        full[ring.stage].expect(B::kStage);
        load_tile<Brick>(to, maps.k, full[ring.stage], i * kBrick, turn.head / call.r, turn.batch);
        load_tile<Brick>(to + Brick::kBytes, maps.v, full[ring.stage], i * kBrick,
                         turn.head / call.r, turn.batch);
      }
    }
    return;
  }

  take_registers<B::kRegisters>();
  const int group = warpgroup - 1, thread = static_cast<int>(threadIdx.x) % 128;
  const int lane = thread % 32, quad = lane % 4;
  const int row = thread / 32 * 16 + lane / 4;  // and row + 8, of the brick
  unsigned char* const q_tile = own + group * B::kOwn;
  unsigned char* const out = outs + group * Brick::kBytes;
  const uint32_t q = Brick::base(q_tile), d_o = Brick::base(q_tile + Brick::kBytes);
  const uint32_t first_stage = Brick::base(stages);
  for (int index = static_cast<int>(blockIdx.x); index < turns;
       index += static_cast<int>(gridDim.x), own_parity ^= 1) {
    const Turn turn = turn_of(call, index, heads);
    const int first = first_query_of(call, turn, B::kRows);
    const int walked = seen_blocks<kCausal>(first + B::kRows, call.t, kBrick);
    const int first_query = first + group * kBrick;
    const bool any = first_query >= 0;  // queries
    const int seen = any ? seen_keys<kCausal>(first_query + kBrick, call.t) : 0;
    const int mine = (seen + kBrick - 1) / kBrick;
    float lse[2], delta[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int query = first_query + row + 8 * i;
      lse[i] = INFINITY;
      if (any && query < call.s) {
        lse[i] =
            static_cast<float>(kLog2E) * call.lse[turn.batch * call.lse_batch +
                                                  turn.head * call.lse_head + query * call.lse_row];
      }
    }
    own_full[group].wait(own_parity);
    const int delta_row = anew(row);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int c = 0; c < kWidth / 32; ++c) {
        const unsigned char* const x =
            q_tile + Brick::kBytes + Brick::place(delta_row + 8 * i, 32 * c + 8 * quad);
        delta[i] += dot8<T>(x, x + Brick::kBytes);
      }
      delta[i] += __shfl_xor_sync(~0u, delta[i], 1);
      delta[i] += __shfl_xor_sync(~0u, delta[i], 2);
      const int query = first_query + row + 8 * i;
      if (any && quad == 0) {
        statistics.row(turn.head_index, 0)[query] = lse[i];
        statistics.row(turn.head_index, 1)[query] = delta[i];
      }
    }
    float dq[kWidth / 2];
    uint32_t ds[4][4];
#pragma unroll
    for (float& x : dq) x = 0;
    for (int i = 0; i < mine; ++i, ring.next()) {
      const uint32_t k = first_stage + static_cast<uint32_t>(ring.stage) * (B::kStage / 16);
      const uint32_t v = k + Brick::kBytes / 16;
      float scores[32], products[32];
      full[ring.stage].wait(ring.parity);
      begin_products();
#pragma unroll
      for (int j = 0; j < kWidth / 16; ++j) {
        product<T, 0>(scores, Brick::along(q, j), Brick::along(k, j), j > 0);
      }
      end_products();
#pragma unroll
      for (int j = 0; j < kWidth / 16; ++j) {
        product<T, 0>(products, Brick::along(d_o, j), Brick::along(v, j), j > 0);
      }
      end_products();
      // The gradient's products of the keys before have read their stage.
      wait_products<2>();
      hold(dq);
      if (i > 0 && lane == 0) empty[ring.last()].arrive();
      wait_products<1>();
      hold(scores);
#pragma unroll
      for (int j = 0; j < 32; ++j) {
        scores[j] = exp2_of(scores[j] * call.scale_log2 - lse[j / 2 % 2]);
      }
      const int key = i * kBrick;
      if ((kCausal && key + kBrick > first_query + 1) || key + kBrick > call.t) {
#pragma unroll
        for (int j = 0; j < 32; ++j) {
          const int column = key + j / 4 * 8 + 2 * quad + j % 2;
          const int query = first_query + row + j / 2 % 2 * 8;
          if ((kCausal && column > query) || column >= call.t) scores[j] = 0;
        }
      }
      wait_products<0>();
      hold(products);
#pragma unroll
      for (int j = 0; j < 32; ++j) scores[j] *= products[j] - delta[j / 2 % 2];
      operand_of<T>(scores, ds);
      begin_products();
#pragma unroll
      for (int j = 0; j < 4; ++j) product<T, 1>(dq, ds[j], Brick::across(k, j), 1);
      end_products();
    }
    __syncwarp();
    if (lane == 0) own_empty[group].arrive();
    wait_products<0>();
    hold(dq);
    if (mine > 0 && lane == 0) empty[ring.last()].arrive();
    for (int i = mine; i < walked; ++i, ring.next()) {
      full[ring.stage].wait(ring.parity);
      __syncwarp();  // no lane waits any more
      if (lane == 0) empty[ring.stage].arrive();
    }
    if (thread == 0) stores_read();  // of the turn before
    meet_warpgroup(warpgroup);
    const int out_row = anew(row);
#pragma unroll
    for (int j = 0; j < kWidth / 4; ++j) {
      *reinterpret_cast<uint32_t*>(out + Brick::place(out_row + j % 2 * 8, j / 2 * 8 + 2 * quad)) =
          pair<T>(dq[2 * j] * call.scale, dq[2 * j + 1] * call.scale);
    }
    shared_written();
    meet_warpgroup(warpgroup);
    if (thread == 0 && any) {
      store_tile<Brick>(maps.dq, out, first_query, turn.head, turn.batch);
    }
    if (any && sums.data != nullptr) {
      sum_rows<T, Brick>(out, call.s - first_query, rooms + group * B::kSums,
                         sums.at(turn, first_query, 0, kWidth), warpgroup);
    }
  }
  if (thread == 0) stores_read();
}

// --- By keys -----------------------------------------------------------------------------------

template <int kWidth>
struct KeysBlock {
  static constexpr int kGroups = 2, kRegisters = 240, kLeft = 24;
  static constexpr int kRows = kGroups * kBrick, kThreads = 128 * (kGroups + 1);
  static constexpr int kStages = kWidth <= 64 ? 4 : (kWidth <= 96 ? 3 : 2);
  using Brick = Tile<kBrick, kWidth>;
  static constexpr int kOwn = 2 * Brick::kBytes;  // K, V
  static constexpr int kRowBytes = kBrick * 4;    // of a plane of statistics
  static constexpr int kStage = 2 * Brick::kBytes + 2 * kRowBytes + 512;  // a multiple of 1024
  static constexpr int kSums = 2 * 4 * kWidth;                            // numbers
  static constexpr int kBytes = kGroups * (2 * kOwn + 4 * kSums) + kStages * kStage + 1024 + 1024;
};

struct KeysMaps {
  CUtensorMap q, d_o, k, v, dk, dv;
};

template <class T, int kWidth, bool kCausal>
__global__ void __launch_bounds__(KeysBlock<kWidth>::kThreads, 1)
    keys_kernel(const __grid_constant__ KeysMaps maps, const HopperCall call,
                const Statistics statistics, const RowSums sums) {
  using B = KeysBlock<kWidth>;
  using Brick = typename B::Brick;
  constexpr int kStages = B::kStages, kGroups = B::kGroups;
  extern __shared__ unsigned char raw[];
  unsigned char* const own = aligned_shared(raw);          // of each warpgroup: K, V
  unsigned char* const outs = own + kGroups * B::kOwn;     // of each warpgroup: dK, dV
  unsigned char* const stages = outs + kGroups * B::kOwn;  // Q, dO, statistics
  auto* const rooms = reinterpret_cast<float*>(stages + kStages * B::kStage);
  auto* const own_full = reinterpret_cast<Barrier*>(rooms + kGroups * B::kSums);
  Barrier *const own_empty = own_full + kGroups, *const full = own_empty + kGroups,
                 *const empty = full + kStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kGroups; ++i) own_full[i].init(1), own_empty[i].init(4);
    for (int i = 0; i < kStages; ++i) full[i].init(1), empty[i].init(4 * kGroups);
    barriers_ready();
  }
  __syncthreads();

  const int warpgroup =
      __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);  // for all the warp
  const int turns = call.blocks * call.heads;
  const int query_bricks = (call.s + kBrick - 1) / kBrick;
  Ring<kStages> ring;
  uint32_t own_parity = 0;
  if (warpgroup == 0) {
    leave_registers<B::kLeft>();
    if (threadIdx.x != 0) return;
    for (int index = static_cast<int>(blockIdx.x); index < turns;
         index += static_cast<int>(gridDim.x), own_parity ^= 1) {
      const Turn turn = turn_of(call, index, call.g);
      const int first = turn.block * B::kRows;  // the first keys are seen by the most queries
      for (int i = 0; i < kGroups; ++i) {
        unsigned char* const to = own + i * B::kOwn;
        own_empty[i].wait(own_parity ^ 1);
        own_full[i].expect(B::kOwn);
        load_tile<Brick>(to, maps.k, own_full[i], first + i * kBrick, turn.head, turn.batch);
        load_tile<Brick>(to + Brick::kBytes, maps.v, own_full[i], first + i * kBrick, turn.head,
                         turn.batch);
      }
      for (int head = turn.head * call.r; head < (turn.head + 1) * call.r; ++head) {
        const int64_t row = static_cast<int64_t>(turn.batch) * call.g * call.r + head;
        for (int i = first_seeing<kCausal>(first); i < query_bricks; ++i, ring.next()) {
          unsigned char* const to = stages + ring.stage * B::kStage;
          Barrier& barrier = full[ring.stage];
          empty[ring.stage].wait(ring.parity ^ 1);
          barrier.expect(2 * Brick::kBytes + 2 * B::kRowBytes);
          load_tile<Brick>(to, maps.q, barrier, i * kBrick, head, turn.batch);
          load_tile<Brick>(to + Brick::kBytes, maps.d_o, barrier, i * kBrick, head, turn.batch);
          for (int plane = 0; plane < 2; ++plane) {
            load_bytes(to + 2 * Brick::kBytes + plane * B::kRowBytes,
                       statistics.row(row, plane) + i * kBrick, B::kRowBytes, barrier);
          }
        }
      }
    }
    return;
  }

  take_registers<B::kRegisters>();
  const int group = warpgroup - 1, thread = static_cast<int>(threadIdx.x) % 128;
  const int lane = thread % 32, quad = lane % 4;
  const int row = thread / 32 * 16 + lane / 4;  // and row + 8, of the brick
  unsigned char* const dk_out = outs + group * B::kOwn;
  unsigned char* const dv_out = dk_out + Brick::kBytes;
  const uint32_t k = Brick::base(own + group * B::kOwn), v = k + Brick::kBytes / 16;
  const uint32_t first_stage = Brick::base(stages);
  // The widest heads leave no registers for two blocks of queries at a time.
  constexpr bool kOverlaps = kWidth < 128;
  for (int index = static_cast<int>(blockIdx.x); index < turns;
       index += static_cast<int>(gridDim.x), own_parity ^= 1) {
    const Turn turn = turn_of(call, index, call.g);
    const int first = turn.block * B::kRows, first_key = first + group * kBrick;
    const int begin = min(first_seeing<kCausal>(first), query_bricks);
    // Queries before see none of this warpgroup's keys.
    const int mine = first_key < call.t
                         ? max(begin, min(first_seeing<kCausal>(first_key), query_bricks))
                         : query_bricks;
    float dk[kWidth / 2], dv[kWidth / 2];
    uint32_t p[4][4], ds[4][4];
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) dk[i] = dv[i] = 0;
    own_full[group].wait(own_parity);
    for (int h = 0; h < call.r; ++h) {
      for (int i = begin; i < mine; ++i, ring.next()) {
        full[ring.stage].wait(ring.parity);
        __syncwarp();  // no lane waits any more
        if (lane == 0) empty[ring.stage].arrive();
      }
      for (int i = mine; i < query_bricks; ++i, ring.next()) {
        const int query = i * kBrick;
        const unsigned char* const from = stages + ring.stage * B::kStage;
        const uint32_t q = first_stage + static_cast<uint32_t>(ring.stage) * (B::kStage / 16);
        const uint32_t d_o = q + Brick::kBytes / 16;
        float scores[32], products[32];
        full[ring.stage].wait(ring.parity);
        begin_products();
#pragma unroll
        for (int j = 0; j < kWidth / 16; ++j) {
          product<T, 0>(scores, Brick::along(k, j), Brick::along(q, j), j > 0);
        }
        end_products();
#pragma unroll
        for (int j = 0; j < kWidth / 16; ++j) {
          product<T, 0>(products, Brick::along(v, j), Brick::along(d_o, j), j > 0);
        }
        end_products();
        if constexpr (kOverlaps) {
          wait_products<2>();
          hold(dk), hold(dv);
          if (i > mine && lane == 0) empty[ring.last()].arrive();
        }
        wait_products<1>();
        hold(scores);
        const auto* const statistic =
            reinterpret_cast<const float*>(from + 2 * Brick::kBytes) + 2 * quad;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float2 lse = *reinterpret_cast<const float2*>(statistic + 8 * j);
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            scores[4 * j + c] =
                exp2_of(scores[4 * j + c] * call.scale_log2 - (c % 2 == 0 ? lse.x : lse.y));
          }
        }
        if (kCausal && query < first_key + kBrick) {
#pragma unroll
          for (int j = 0; j < 32; ++j) {
            const int column = query + j / 4 * 8 + 2 * quad + j % 2;
            if (column < first_key + row + j / 2 % 2 * 8) scores[j] = 0;
          }
        }
        operand_of<T>(scores, p);
        begin_products();
#pragma unroll
        for (int j = 0; j < 4; ++j) product<T, 1>(dv, p[j], Brick::across(d_o, j), 1);
        end_products();
        wait_products<1>();
        hold(products);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float2 delta = *reinterpret_cast<const float2*>(statistic + kBrick + 8 * j);
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            scores[4 * j + c] *= products[4 * j + c] - (c % 2 == 0 ? delta.x : delta.y);
          }
        }
        operand_of<T>(scores, ds);
        begin_products();
#pragma unroll
        for (int j = 0; j < 4; ++j) product<T, 1>(dk, ds[j], Brick::across(q, j), 1);
        end_products();
        if constexpr (!kOverlaps) {
          wait_products<0>();
          hold(dk), hold(dv);
          if (lane == 0) empty[ring.stage].arrive();
        }
      }
      wait_products<0>();
      hold(dk), hold(dv);
      if (kOverlaps && mine < query_bricks && lane == 0) empty[ring.last()].arrive();
    }
    __syncwarp();
    if (lane == 0) own_empty[group].arrive();
    if (thread == 0) stores_read();  // of the turn before
    meet_warpgroup(warpgroup);
    const int out_row = anew(row);
#pragma unroll
    for (int j = 0; j < kWidth / 4; ++j) {
      const uint32_t at = Brick::place(out_row + j % 2 * 8, j / 2 * 8 + 2 * quad);
      *reinterpret_cast<uint32_t*>(dk_out + at) =
          pair<T>(dk[2 * j] * call.scale, dk[2 * j + 1] * call.scale);
      *reinterpret_cast<uint32_t*>(dv_out + at) = pair<T>(dv[2 * j], dv[2 * j + 1]);
    }
    shared_written();
    meet_warpgroup(warpgroup);
    if (thread == 0 && first_key < call.t) {
      store_tile<Brick>(maps.dk, dk_out, first_key, turn.head, turn.batch);
      store_tile<Brick>(maps.dv, dv_out, first_key, turn.head, turn.batch);
    }
    if (first_key < call.t && sums.data != nullptr) {
      float* const room = rooms + group * B::kSums;
      const int rows = call.t - first_key;
      sum_rows<T, Brick>(dk_out, rows, room, sums.at(turn, first_key, 1, kWidth), warpgroup);
      sum_rows<T, Brick>(dv_out, rows, room + B::kSums / 2, sums.at(turn, first_key, 2, kWidth),
                         warpgroup);
    }
  }
  if (thread == 0) stores_read();
}

}  // namespace

bool attend_backward_on_tensor_cores(const AttentionShape& shape, const AttentionWork& w,
                                     void* statistics, float* sums, int multiprocessors,
                                     cudaStream_t stream) {
  using W = AttentionWork;
  return with_hopper_shape(shape, [&]<class T, class D, class C>(T, D, C) {
    constexpr int kWidth = D::kWidth;
    constexpr bool kCausal = C::kCausal;
    constexpr int kChunk = Tile<kBrick, kWidth>::kChunk;
    const auto map = [&](int which) { return map_of(shape, w, which, kBrick, kChunk); };
    const int64_t padded = (shape.s + kBrick - 1) / kBrick * kBrick;
    const Statistics rows = {static_cast<float*>(statistics), static_cast<int>(padded),
                             shape.b * shape.g * shape.r * padded};
    CLEAVE_ASSERT(sums == nullptr || (shape.r == 1 && shape.s == shape.t), "sums for {}",
                  shape.text());
    const RowSums row_sums = {sums, static_cast<int>(padded / kBrick),
                              static_cast<int>(shape.g * shape.e)};
    using Q = QueriesBlock<kWidth>;
    const HopperCall by_queries =
        hopper_call(shape, w, W::kQ, Q::kRows, 2 * shape.t * shape.e / shape.r);
    launch_hopper(
        queries_kernel<T, kWidth, kCausal>, by_queries, Q::kThreads, Q::kBytes, multiprocessors,
        stream,
        QueriesMaps{map(W::kQ), map(W::kDo), map(W::kO), map(W::kK), map(W::kV), map(W::kDq)},
        by_queries, rows, row_sums);
    using K = KeysBlock<kWidth>;
    const HopperCall by_keys =
        hopper_call(shape, w, W::kK, K::kRows, 2 * shape.r * shape.s * shape.e);
    launch_hopper(
        keys_kernel<T, kWidth, kCausal>, by_keys, K::kThreads, K::kBytes, multiprocessors, stream,
        KeysMaps{map(W::kQ), map(W::kDo), map(W::kK), map(W::kV), map(W::kDk), map(W::kDv)},
        by_keys, rows, row_sums);
  });
}

void add_attention_sums(const float* sums, int64_t parts, int64_t n, const TensorView& to,
                        cudaStream_t stream) {
  Columns all;
  all.out[0] = any_float(to);
  all.step[0] = to.strides[0];
  add_partials(sums, parts, 3 * n, 1, all, stream);
}

}  // namespace cleave
