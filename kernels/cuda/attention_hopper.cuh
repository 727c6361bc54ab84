// What the kernels on tensor cores share: tensor maps of the operands, and which block does what.
#pragma once

#include <algorithm>

#include "graph/error.h"
#include "kernels/cuda/attention_hopper.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/tensor_map.h"

namespace cleave {

inline constexpr int kBrick = 64;  // rows of a warpgroup

// One call; as in AttentionShape.
struct HopperCall {
  int s, t, g, r;
  int blocks;    // of own rows in a head
  int heads;     // that have own rows: batch times query or key heads
  int together;  // so many heads' walked operands stay in the L2 cache
  float scale, scale_log2;
  float* lse;  // of the forward: strides in elements
  int64_t lse_batch, lse_head, lse_row;
};

// Of kernels whose own rows are those of an operand, in blocks of `rows`; `walked`: numbers that a
// head walks over.
inline HopperCall hopper_call(const AttentionShape& shape, const AttentionWork& w, int own,
                              int rows, int64_t walked) {
  // Fewer heads than these would leave multiprocessors without work at the end of each group.
  constexpr int64_t kCached = int64_t{24} << 20, kFewest = 32;
  const AttentionShape::Place& lse = shape.places[AttentionWork::kLse];
  return {.s = static_cast<int>(shape.s),
          .t = static_cast<int>(shape.t),
          .g = static_cast<int>(shape.g),
          .r = static_cast<int>(shape.r),
          .blocks = static_cast<int>((shape.rows(own) + rows - 1) / rows),
          .heads = static_cast<int>(shape.b * shape.heads(own)),
          .together = static_cast<int>(
              std::min(std::max(kCached / std::max<int64_t>(2 * walked, 1), kFewest),
                       shape.b * shape.heads(own))),
          .scale = static_cast<float>(shape.scale),
          .scale_log2 = static_cast<float>(shape.scale * kLog2E),
          .lse = static_cast<float*>(w.matrices[AttentionWork::kLse].data),
          .lse_batch = lse.batch,
          .lse_head = lse.head,
          .lse_row = lse.row};
}

// The operand as a tensor [batch, heads, rows, width], of which boxes of `rows` rows and a tile's
// chunk of columns are moved.
inline CUtensorMap map_of(const AttentionShape& shape, const AttentionWork& w, int which, int rows,
                          int chunk) {
  const AttentionShape::Place& place = shape.places[static_cast<size_t>(which)];
  return tensor_map(shape.dtype, w.matrices[which].data,
                    {shape.width(which), shape.rows(which), shape.heads(which), shape.b},
                    {place.row, place.head, place.batch}, rows, chunk);
}

// Blocks of the device's multiprocessors take the own blocks in turn: some heads after the others,
// and of these those with the most to do first.
struct Turn {
  int batch, head, head_index;  // head_index: batch and head
  int block;                    // by how much there is to do
};
__device__ inline Turn turn_of(const HopperCall& call, int index, int heads) {
  const int group = index / (call.together * call.blocks);
  const int rest = index - group * call.together * call.blocks;
  const int members = min(call.together, call.heads - group * call.together);
  const int block = rest / members, head_index = group * call.together + rest - block * members;
  return {head_index / heads, head_index % heads, head_index, block};
}
inline int64_t turns_of(const HopperCall& call) {
  return static_cast<int64_t>(call.blocks) * call.heads;
}
// The first of a block's queries, `rows` in each. The last queries see the most keys, so their
// block is the first, and full: where the blocks hold more than all queries, those before query 0
// are none.
__device__ inline int first_query_of(const HopperCall& call, const Turn& turn, int rows) {
  const int bricks = (call.s + kBrick - 1) / kBrick;
  return bricks * kBrick - (turn.block + 1) * rows;
}

// So many keys, of t, are seen by the queries below `end`.
template <bool kCausal>
__device__ inline int seen_keys(int end, int t) {
  return kCausal ? min(end, t) : t;
}
// In so many blocks of `size` keys. Who loads and who computes count them alike.
template <bool kCausal>
__device__ inline int seen_blocks(int end, int t, int size) {
  return (seen_keys<kCausal>(end, t) + size - 1) / size;
}
// The first block of kBrick queries of which one sees the key.
template <bool kCausal>
__device__ inline int first_seeing(int key) {
  return kCausal ? key / kBrick : 0;
}

template <class Kernel, class... Args>
void launch_hopper(Kernel kernel, const HopperCall& call, int threads, int bytes,
                   int multiprocessors, cudaStream_t stream, const Args&... args) {
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  CLEAVE_ASSERT(turns_of(call) < INT32_MAX / 2, "{} blocks of attention", turns_of(call));
  const int64_t blocks = std::min<int64_t>(turns_of(call), multiprocessors);
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
           static_cast<size_t>(bytes), stream>>>(args...);
  cuda_check(cudaGetLastError());
}

// Calls fn with a zero of the type, the width and whether it is causal, as types' values.
template <int kN>
struct Width {
  static constexpr int kWidth = kN;
};
template <bool kB>
struct IsCausal {
  static constexpr bool kCausal = kB;
};
template <class Fn>
bool with_hopper_shape(const AttentionShape& shape, Fn&& fn) {
  if (shape.e != shape.v) return false;
  const auto by_mask = [&](auto zero, auto width) {
    if (shape.causal) {
      fn(zero, width, IsCausal<true>{});
    } else {
      fn(zero, width, IsCausal<false>{});
    }
    return true;
  };
  const auto by_width = [&](auto zero) {
    switch (shape.e) {
      case 64: return by_mask(zero, Width<64>{});
      case 96: return by_mask(zero, Width<96>{});
      case 128: return by_mask(zero, Width<128>{});
      default: return false;
    }
  };
  return shape.dtype == DType::kBF16 ? by_width(bf16{}) : by_width(f16{});
}

}  // namespace cleave
