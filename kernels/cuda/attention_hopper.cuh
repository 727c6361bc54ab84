// What the kernels on tensor cores share: tensor maps of the operands, and which block does what.
#pragma once

#include <cudaTypedefs.h>

#include "graph/error.h"
#include "kernels/cuda/attention_hopper.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/hopper.cuh"

namespace cleave {

inline constexpr int kBrick = 64;  // rows of a warpgroup

// One call; as in AttentionShape.
struct HopperCall {
  int s, t, g, r;
  int blocks;  // of own rows in a head
  float scale, scale_log2;
  float* lse;  // of the forward: strides in elements
  int64_t lse_batch, lse_head, lse_row;
};

inline HopperCall hopper_call(const AttentionShape& shape, const AttentionWork& w, int64_t own,
                              int rows) {
  const AttentionShape::Place& lse = shape.places[AttentionWork::kLse];
  constexpr double kLog2E = 1.4426950408889634;
  return {.s = static_cast<int>(shape.s),
          .t = static_cast<int>(shape.t),
          .g = static_cast<int>(shape.g),
          .r = static_cast<int>(shape.r),
          .blocks = static_cast<int>((own + rows - 1) / rows),
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
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                cudaEnableDefault, &found));
    CLEAVE_ASSERT(found == cudaDriverEntryPointSuccess, "the driver has no tensor maps");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  const AttentionShape::Place& place = shape.places[static_cast<size_t>(which)];
  const cuuint64_t sizes[] = {
      static_cast<cuuint64_t>(shape.width(which)), static_cast<cuuint64_t>(shape.rows(which)),
      static_cast<cuuint64_t>(shape.heads(which)), static_cast<cuuint64_t>(shape.b)};
  const cuuint64_t steps[] = {2 * static_cast<cuuint64_t>(place.row),
                              2 * static_cast<cuuint64_t>(place.head),
                              2 * static_cast<cuuint64_t>(place.batch)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(chunk), static_cast<cuuint32_t>(rows), 1, 1};
  const cuuint32_t every[] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      encode(&map,
             shape.dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                         : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
             4, w.matrices[which].data, sizes, steps, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
             chunk == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CLEAVE_ASSERT(result == CUDA_SUCCESS, "a tensor map for {} was refused: {}", shape.text(),
                static_cast<int>(result));
  return map;
}

// The queries of which key sees some, and the keys that a query sees.
template <bool kCausal>
struct Seen {
  // Of keys first, first + 1, ...: the first block of 64 queries that sees one.
  static __device__ int first_queries(int key) { return kCausal ? key / kBrick : 0; }
  // So many keys are seen by the queries below `end`, of t.
  static __device__ int keys(int end, int t) { return kCausal ? min(end, t) : t; }
};

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
