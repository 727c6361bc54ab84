// Scratch memory of attention on the GPU, from the sizes alone: what cuDNN's kernels are given, and
// the slices in which its deterministic backward goes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cuda/workspace.h"

namespace cleave {

// Heads that are wider have no kernel.
inline constexpr int kWidestHead = 256;

// The deterministic backward stores the gradient of the weights, which grows with the square of the
// sequence: it goes by as many heads at a time as this many bytes hold.
inline constexpr int64_t kWeightsRoom = int64_t{256} << 20;
inline constexpr int64_t kMostWeightsRoom = int64_t{4} << 30;  // the query heads of one key head
// What a plan of cuDNN's may want backward beside the tensors that are counted below.
inline constexpr int64_t kBackwardRoom = int64_t{1} << 20;

// g key heads serve r query heads each; s queries, t keys, of widths e and v.
struct AttentionSizes {
  int64_t b = 1, g = 1, r = 1, s = 1, t = 1, e = 1, v = 1;
};

// What one execution of cuDNN's deterministic backward takes on: all sizes but the batch and the
// key heads are the whole call's. b = 0: one key head alone takes more than there may be.
struct AttentionSlice {
  int64_t b = 0, g = 0;
};

// The largest divisor of n that is at most `most`, or 1.
inline int64_t divisor(int64_t n, int64_t most) {
  for (int64_t d = std::min(n, most); d > 1; --d) {
    if (n % d == 0) return d;
  }
  return 1;
}

// The bytes of the weights of one key head, of 16 bits, in tiles of 128.
inline int64_t weights_bytes(const AttentionSizes& n) {
  const auto padded = [](int64_t x) { return (x + 127) / 128 * 128; };
  return n.r * padded(n.s) * padded(n.t) * 2;
}

inline AttentionSlice backward_slice(const AttentionSizes& n) {
  const int64_t room = weights_bytes(n);
  if (room > kMostWeightsRoom) return {};
  const int64_t most = kWeightsRoom / std::max<int64_t>(room, 1);  // key heads at a time
  AttentionSlice slice = {divisor(n.b, most / std::max<int64_t>(n.g, 1)), n.g};
  if (slice.b == 1) slice.g = divisor(n.g, most);
  return slice;
}

// Bytes that a plan of cuDNN's may want for one execution: its plans are held to that. Forward, as
// many as a product: where there are products they cost nothing. Backward, of
// each query head in the slice: the weights' gradient, a sum for each query in f32, and, where
// several query heads share their keys, the gradients of those by query head. That, and 256 bytes,
// is what cuDNN 9.14 asked for in every call of the tests.
inline int64_t cudnn_forward_bytes(const AttentionSizes&) { return kProductWorkspace; }
inline int64_t cudnn_backward_bytes(const AttentionSizes& n, const AttentionSlice& slice) {
  const int64_t heads = slice.b * slice.g * n.r;
  int64_t a_head = weights_bytes(n) / std::max<int64_t>(n.r, 1) + n.s * 4;
  if (n.r > 1) a_head += n.t * (n.e + n.v) * 2;
  return aligned_workspace(heads * a_head) + kBackwardRoom;
}
// Of a copy of the log-sum-exps in the layout that cuDNN wants, behind the plan's own.
inline int64_t statistics_bytes(const AttentionSizes& n) {
  return aligned_workspace(n.b * n.g * n.r * n.s * 4);
}

inline AttentionSizes attention_sizes(const OpCall& call, const AttentionFactors& f) {
  const auto size = [&](int8_t factor) {
    return factor < 0 ? 1 : call.extents[static_cast<size_t>(factor)];
  };
  AttentionSizes n = {1, size(f.g), size(f.r), size(f.s), size(f.t), size(f.e), size(f.v)};
  for (const int8_t outer : f.outer) n.b *= size(outer);
  return n;
}

// Whether our own kernels on tensor cores take heads of these widths, as they do first.
inline bool on_tensor_cores(const AttentionSizes& n) {
  return kTensorCoreAttention && n.e == n.v && (n.e == 64 || n.e == 96 || n.e == 128);
}

// Whether the workspace has room for cuDNN in calls of 16 bits: backward not where our own kernels
// are used, unless these are switched off; forward it takes some calls of all widths.
inline bool counts_cudnn(const AttentionSizes& n, bool backward) {
  return !(backward && on_tensor_cores(n)) && n.e % 8 == 0 && n.v % 8 == 0 && n.e <= kWidestHead &&
         n.v <= kWidestHead;
}

// As far as types and sizes tell.
inline bool may_be_cudnn(const OpCall& call, const AttentionSizes& n, bool backward) {
  return is_half(call.in[0].dtype) && call.attrs.real_or("dropout", 0) == 0 &&
         counts_cudnn(n, backward);
}

inline int64_t attention_cuda_workspace(const OpCall& call) {
  const Signature& s = call.signature;
  const AttentionSizes n = attention_sizes(call, {s.inputs()[0], s.inputs()[2], s.outputs()[0]});
  return may_be_cudnn(call, n, false) ? cudnn_forward_bytes(n) + statistics_bytes(n) : 0;
}

// Sums of dq, dk and dv over rows that our own kernels on tensor cores keep, [parts, 3, g e] of
// f32, behind their statistics: a part for each 64 rows. Else the results are summed as tensors
// are.
inline int64_t attention_sum_parts(const AttentionSizes& n) { return n.b * ((n.s + 63) / 64); }
inline bool keeps_attention_sums(const AttentionSizes& n) {
  return on_tensor_cores(n) && n.r == 1 && n.s == n.t;
}
inline int64_t attention_sums_at(const AttentionSizes& n) {
  return aligned_workspace(attention_statistics_bytes(n.b * n.g * n.r, n.s));
}

inline int64_t attention_backward_cuda_workspace(const OpCall& call) {
  const Signature& s = call.signature;
  const AttentionSizes n = attention_sizes(call, {s.inputs()[1], s.inputs()[3], s.inputs()[4]});
  // Of our own kernels: a number for every query, or two and room up to a whole block.
  const int64_t rows = numel(call.in[5].shape);
  int64_t own = rows == 0 ? 0
                          : std::max(rows * statistic_bytes(call.in[0].dtype),
                                     attention_statistics_bytes(rows / n.s, n.s));
  if (call.attrs.integer_or("sum", 0) != 0) {
    own = std::max(own, reduce_room(std::max(numel(call.in[1].shape), numel(call.in[2].shape))));
    if (is_half(call.in[0].dtype) && keeps_attention_sums(n)) {
      own = std::max(own, attention_sums_at(n) + attention_sum_parts(n) * 3 * n.g * n.e * 4);
    }
  }
  const AttentionSlice slice = backward_slice(n);
  if (slice.b == 0 || !may_be_cudnn(call, n, true)) return own;
  return std::max(own, cudnn_backward_bytes(n, slice) + statistics_bytes(n));
}

}  // namespace cleave
