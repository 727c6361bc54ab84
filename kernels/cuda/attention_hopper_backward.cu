// Attention's backward on tensor cores. Scores, weights and their gradients of a warpgroup's 64 own
// rows and 64 walked ones are sums in registers, from which the products that use them take them.
//
// queries' kernel: S = Q K', dP = dO V', dS = P (dP - delta), dQ = scale dS K.
// keys' kernel:    S' = K Q', dP' = V dO', dV = P' dO, dS' = P' (dP' - delta), dK = scale dS' Q.
#include <cmath>

#include "kernels/cuda/attention_hopper.cuh"

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

constexpr int kStages = 2;

// --- By queries --------------------------------------------------------------------------------

template <int kWidth>
struct QueriesBlock {
  // Three warpgroups have 160 registers a thread, two 240.
  static constexpr int kGroups = kWidth <= 96 ? 3 : 2;
  static constexpr int kRegisters = kGroups == 3 ? 160 : 240, kLeft = kGroups == 3 ? 32 : 24;
  static constexpr int kRows = kGroups * kBrick, kThreads = 128 * (kGroups + 1);
  using Brick = Tile<kBrick, kWidth>;
  static constexpr int kOwn = 2 * kGroups * Brick::kBytes;
  static constexpr int kBytes = kOwn + kStages * 2 * Brick::kBytes + 1024 + 1024;
};

struct QueriesMaps {
  CUtensorMap q, d_o, k, v, dq;
};

struct Operand {  // in memory
  const void* data;
  int64_t batch, head, row;
};

template <class T>
__device__ inline float dot8(const T* x, const T* y) {
  const Vec<T, 8> a = load<8>(x), b = load<8>(y);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += number(a.x[i]) * number(b.x[i]);
  return sum;
}

template <class T, int kWidth, bool kCausal>
__global__ void __launch_bounds__(QueriesBlock<kWidth>::kThreads, 1)
    queries_kernel(const __grid_constant__ QueriesMaps maps, const HopperCall call,
                   const Operand gradient, const Operand result, const Statistics statistics) {
  using B = QueriesBlock<kWidth>;
  using Brick = typename B::Brick;
  extern __shared__ unsigned char raw[];
  unsigned char* const shared = raw + (1024 - shared_address(raw) % 1024) % 1024;
  unsigned char* const q_tiles = shared;  // kGroups bricks, then as many of dO
  unsigned char* const do_tiles = q_tiles + B::kGroups * Brick::kBytes;
  unsigned char* const stages = shared + B::kOwn;  // K, V; K, V
  auto* const barriers = reinterpret_cast<Barrier*>(stages + kStages * 2 * Brick::kBytes);
  Barrier &own = barriers[0], *const full = barriers + 1, *const empty = full + kStages;

  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const int head_index = static_cast<int>(blockIdx.x) / call.blocks;  // batch, query head
  const int block = call.blocks - 1 - static_cast<int>(blockIdx.x) % call.blocks;
  const int heads = call.g * call.r, head = head_index % heads, batch = head_index / heads;
  const int first = block * B::kRows;
  const int walked = (Seen<kCausal>::keys(first + B::kRows, call.t) + kBrick - 1) / kBrick;
  if (threadIdx.x == 0) {
    own.init(1);
    for (int i = 0; i < kStages; ++i) full[i].init(1), empty[i].init(4 * B::kGroups);
    barriers_ready();
  }
  __syncthreads();

  if (warpgroup == 0) {
    leave_registers<B::kLeft>();
    if (threadIdx.x == 0) {
      own.expect(B::kOwn);
      for (int i = 0; i < B::kGroups; ++i) {
        load_tile<Brick>(q_tiles + i * Brick::kBytes, maps.q, own, first + i * kBrick, head, batch);
        load_tile<Brick>(do_tiles + i * Brick::kBytes, maps.d_o, own, first + i * kBrick, head,
                         batch);
      }
      for (int i = 0; i < walked; ++i) {
        const int stage = i % kStages;
        if (i >= kStages) empty[stage].wait(static_cast<uint32_t>(i / kStages + 1) & 1);
        unsigned char* const to = stages + stage * 2 * Brick::kBytes;
        full[stage].expect(2 * Brick::kBytes);
        load_tile<Brick>(to, maps.k, full[stage], i * kBrick, head / call.r, batch);
        load_tile<Brick>(to + Brick::kBytes, maps.v, full[stage], i * kBrick, head / call.r, batch);
      }
    }
  } else {
    take_registers<B::kRegisters>();
    const int group = warpgroup - 1, thread = static_cast<int>(threadIdx.x) % 128;
    const int lane = thread % 32, quad = lane % 4;
    const int row = thread / 32 * 16 + lane / 4;  // and row + 8, of the brick
    const int first_query = first + group * kBrick;
    float lse[2], delta[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int query = first_query + row + 8 * i;
      lse[i] = INFINITY, delta[i] = 0;
      if (query < call.s) {
        const T* const x = static_cast<const T*>(gradient.data) + batch * gradient.batch +
                           head * gradient.head + query * gradient.row;
        const T* const y = static_cast<const T*>(result.data) + batch * result.batch +
                           head * result.head + query * result.row;
#pragma unroll
        for (int c = 0; c < kWidth / 32; ++c)
          delta[i] += dot8(x + 32 * c + 8 * quad, y + 32 * c + 8 * quad);
        lse[i] = call.lse[batch * call.lse_batch + head * call.lse_head + query * call.lse_row] *
                 1.44269504f;
      }
      delta[i] += __shfl_xor_sync(~0u, delta[i], 1);
      delta[i] += __shfl_xor_sync(~0u, delta[i], 2);
      if (quad == 0 && query < statistics.padded) {
        statistics.row(head_index, 0)[query] = lse[i];
        statistics.row(head_index, 1)[query] = delta[i];
      }
    }
    const uint32_t q = shared_address(q_tiles + group * Brick::kBytes);
    const uint32_t d_o = shared_address(do_tiles + group * Brick::kBytes);
    const int seen = first_query < call.s ? Seen<kCausal>::keys(first_query + kBrick, call.t) : 0;
    const int mine = (seen + kBrick - 1) / kBrick;
    float dq[kWidth / 2];
    uint32_t ds[4][4];
#pragma unroll
    for (float& x : dq) x = 0;
    own.wait(0);
    for (int i = 0; i < mine; ++i) {
      const int stage = i % kStages;
      const uint32_t k = shared_address(stages + stage * 2 * Brick::kBytes);
      const uint32_t v = k + Brick::kBytes;
      float scores[32], products[32];
      full[stage].wait(static_cast<uint32_t>(i / kStages) & 1);
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
      // The gradient's products of the walked keys before have read their tile.
      wait_products<2>();
      hold(dq);
      if (i > 0 && lane == 0) empty[(i - 1) % kStages].arrive();
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
    wait_products<0>();
    hold(dq);
    for (int i = mine > 0 ? mine - 1 : 0; i < walked; ++i) {
      full[i % kStages].wait(static_cast<uint32_t>(i / kStages) & 1);
      if (lane == 0) empty[i % kStages].arrive();
    }
    // Out by way of the queries' own brick.
    unsigned char* const out = q_tiles + group * Brick::kBytes;
#pragma unroll
    for (int j = 0; j < kWidth / 4; ++j) {
      *reinterpret_cast<uint32_t*>(out + Brick::place(row + j % 2 * 8, j / 2 * 8 + 2 * quad)) =
          pair<T>(dq[2 * j] * call.scale, dq[2 * j + 1] * call.scale);
    }
    shared_written();
    meet_warpgroup(warpgroup);
    if (thread == 0 && first_query < call.s) {
      store_tile<Brick>(maps.dq, out, first_query, head, batch);
      stores_read();
    }
  }
}

// --- By keys -----------------------------------------------------------------------------------

template <int kWidth>
struct KeysBlock {
  static constexpr int kGroups = 2, kRegisters = 240, kLeft = 24;
  static constexpr int kRows = kGroups * kBrick, kThreads = 128 * (kGroups + 1);
  using Brick = Tile<kBrick, kWidth>;
  static constexpr int kOwn = 2 * kGroups * Brick::kBytes;
  static constexpr int kRowBytes = kBrick * 4;  // of a plane of statistics
  static constexpr int kStage = 2 * Brick::kBytes + 2 * kRowBytes + 512;  // a multiple of 1024
  static constexpr int kBytes = kOwn + kStages * kStage + 1024 + 1024;
};

struct KeysMaps {
  CUtensorMap q, d_o, k, v, dk, dv;
};

template <class T, int kWidth, bool kCausal>
__global__ void __launch_bounds__(KeysBlock<kWidth>::kThreads, 1)
    keys_kernel(const __grid_constant__ KeysMaps maps, const HopperCall call,
                const Statistics statistics) {
  using B = KeysBlock<kWidth>;
  using Brick = typename B::Brick;
  extern __shared__ unsigned char raw[];
  unsigned char* const shared = raw + (1024 - shared_address(raw) % 1024) % 1024;
  unsigned char* const k_tiles = shared;  // kGroups bricks, then as many of V
  unsigned char* const v_tiles = k_tiles + B::kGroups * Brick::kBytes;
  unsigned char* const stages = shared + B::kOwn;  // Q, dO, statistics
  auto* const barriers = reinterpret_cast<Barrier*>(stages + kStages * B::kStage);
  Barrier &own = barriers[0], *const full = barriers + 1, *const empty = full + kStages;

  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const int head_index = static_cast<int>(blockIdx.x) / call.blocks;  // batch, key head
  const int block = static_cast<int>(blockIdx.x) % call.blocks;       // the first see most queries
  const int head = head_index % call.g, batch = head_index / call.g;
  const int first = block * B::kRows;
  const int end_queries = (call.s + kBrick - 1) / kBrick;
  const int first_queries = Seen<kCausal>::first_queries(first);
  const int walked = max(end_queries - first_queries, 0);  // of each query head
  if (threadIdx.x == 0) {
    own.init(1);
    for (int i = 0; i < kStages; ++i) full[i].init(1), empty[i].init(4 * B::kGroups);
    barriers_ready();
  }
  __syncthreads();

  if (warpgroup == 0) {
    leave_registers<B::kLeft>();
    if (threadIdx.x == 0) {
      own.expect(B::kOwn);
      for (int i = 0; i < B::kGroups; ++i) {
        load_tile<Brick>(k_tiles + i * Brick::kBytes, maps.k, own, first + i * kBrick, head, batch);
        load_tile<Brick>(v_tiles + i * Brick::kBytes, maps.v, own, first + i * kBrick, head, batch);
      }
      for (int i = 0; i < walked * call.r; ++i) {
        const int stage = i % kStages, query_head = head * call.r + i / walked;
        const int query = (first_queries + i % walked) * kBrick;
        if (i >= kStages) empty[stage].wait(static_cast<uint32_t>(i / kStages + 1) & 1);
        unsigned char* const to = stages + stage * B::kStage;
        full[stage].expect(2 * Brick::kBytes + 2 * B::kRowBytes);
        load_tile<Brick>(to, maps.q, full[stage], query, query_head, batch);
        load_tile<Brick>(to + Brick::kBytes, maps.d_o, full[stage], query, query_head, batch);
        const int64_t row = static_cast<int64_t>(batch) * call.g * call.r + query_head;
        for (int plane = 0; plane < 2; ++plane) {
          load_bytes(to + 2 * Brick::kBytes + plane * B::kRowBytes,
                     statistics.row(row, plane) + query, B::kRowBytes, full[stage]);
        }
      }
    }
  } else {
    take_registers<B::kRegisters>();
    const int group = warpgroup - 1, thread = static_cast<int>(threadIdx.x) % 128;
    const int lane = thread % 32, quad = lane % 4;
    const int row = thread / 32 * 16 + lane / 4;  // and row + 8, of the brick
    const int first_key = first + group * kBrick;
    const uint32_t k = shared_address(k_tiles + group * Brick::kBytes);
    const uint32_t v = shared_address(v_tiles + group * Brick::kBytes);
    float dk[kWidth / 2], dv[kWidth / 2];
    uint32_t p[4][4], ds[4][4];
    // The widest heads leave no registers for two blocks of queries at a time.
    constexpr bool kOverlaps = kWidth < 128;
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) dk[i] = dv[i] = 0;
    own.wait(0);
    // Queries before see none of this warpgroup's keys.
    const int unseen =
        first_key < call.t
            ? min(max(Seen<kCausal>::first_queries(first_key) - first_queries, 0), walked)
            : walked;
    for (int h = 0; h < call.r; ++h) {
      for (int i = h * walked; i < h * walked + unseen; ++i) {
        full[i % kStages].wait(static_cast<uint32_t>(i / kStages) & 1);
        if (lane == 0) empty[i % kStages].arrive();
      }
      for (int i = h * walked + unseen; i < (h + 1) * walked; ++i) {
        const int stage = i % kStages, query = (first_queries + i - h * walked) * kBrick;
        const unsigned char* const from = stages + stage * B::kStage;
        const uint32_t q = shared_address(from), d_o = q + Brick::kBytes;
        full[stage].wait(static_cast<uint32_t>(i / kStages) & 1);
        float scores[32], products[32];
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
          if (i > h * walked + unseen && lane == 0) empty[(i - 1) % kStages].arrive();
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
          if (lane == 0) empty[stage].arrive();
        }
      }
      wait_products<0>();
      hold(dk), hold(dv);
      if (kOverlaps && unseen < walked && lane == 0)
        empty[((h + 1) * walked - 1) % kStages].arrive();
    }
    // Out by way of the own bricks, which nobody else reads.
    unsigned char* const dk_out = k_tiles + group * Brick::kBytes;
    unsigned char* const dv_out = v_tiles + group * Brick::kBytes;
#pragma unroll
    for (int j = 0; j < kWidth / 4; ++j) {
      const uint32_t at = Brick::place(row + j % 2 * 8, j / 2 * 8 + 2 * quad);
      *reinterpret_cast<uint32_t*>(dk_out + at) =
          pair<T>(dk[2 * j] * call.scale, dk[2 * j + 1] * call.scale);
      *reinterpret_cast<uint32_t*>(dv_out + at) = pair<T>(dv[2 * j], dv[2 * j + 1]);
    }
    shared_written();
    meet_warpgroup(warpgroup);
    if (thread == 0 && first_key < call.t) {
      store_tile<Brick>(maps.dk, dk_out, first_key, head, batch);
      store_tile<Brick>(maps.dv, dv_out, first_key, head, batch);
      stores_read();
    }
  }
}

template <class Kernel, class... Args>
void launch(Kernel kernel, int64_t blocks, int threads, int bytes, cudaStream_t stream,
            const Args&... args) {
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
           static_cast<size_t>(bytes), stream>>>(args...);
  cuda_check(cudaGetLastError());
}

int padded(int64_t queries) { return static_cast<int>((queries + kBrick - 1) / kBrick * kBrick); }

}  // namespace

bool attend_backward_on_tensor_cores(const AttentionShape& shape, const AttentionWork& w,
                                     void* statistics, cudaStream_t stream) {
  using W = AttentionWork;
  return with_hopper_shape(shape, [&]<class T, class D, class C>(T, D, C) {
    constexpr int kWidth = D::kWidth;
    constexpr bool kCausal = C::kCausal;
    constexpr int kChunk = Tile<kBrick, kWidth>::kChunk;
    const auto map = [&](int which) { return map_of(shape, w, which, kBrick, kChunk); };
    const auto operand = [&](int which) {
      const AttentionShape::Place& place = shape.places[static_cast<size_t>(which)];
      return Operand{w.matrices[which].data, place.batch, place.head, place.row};
    };
    const int64_t heads = shape.b * shape.g * shape.r;
    const Statistics rows = {static_cast<float*>(statistics), padded(shape.s),
                             heads * padded(shape.s)};
    using Q = QueriesBlock<kWidth>;
    const HopperCall by_queries = hopper_call(shape, w, shape.s, Q::kRows);
    launch(queries_kernel<T, kWidth, kCausal>, by_queries.blocks * heads, Q::kThreads, Q::kBytes,
           stream, QueriesMaps{map(W::kQ), map(W::kDo), map(W::kK), map(W::kV), map(W::kDq)},
           by_queries, operand(W::kDo), operand(W::kO), rows);
    using K = KeysBlock<kWidth>;
    const HopperCall by_keys = hopper_call(shape, w, shape.t, K::kRows);
    launch(keys_kernel<T, kWidth, kCausal>, by_keys.blocks * shape.b * shape.g, K::kThreads,
           K::kBytes, stream,
           KeysMaps{map(W::kQ), map(W::kDo), map(W::kK), map(W::kV), map(W::kDk), map(W::kDv)},
           by_keys, rows);
  });
}

}  // namespace cleave
