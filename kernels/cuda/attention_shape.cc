#include "kernels/cuda/attention_shape.h"

#include <fmt/format.h>

#include <algorithm>

namespace cleave {

using W = AttentionWork;

bool AttentionShape::by_keys(int which) {
  return which == W::kK || which == W::kV || which == W::kDk || which == W::kDv;
}

int64_t AttentionShape::width(int which) const {
  switch (which) {
    case W::kLse: return 1;
    case W::kV:
    case W::kO:
    case W::kDo:
    case W::kDv: return v;
    default: return e;
  }
}

std::vector<int> AttentionShape::operands() const {
  if (!backward) return {W::kQ, W::kK, W::kV, W::kO, W::kLse};
  return {W::kQ, W::kK, W::kV, W::kO, W::kLse, W::kDo, W::kDq, W::kDk, W::kDv};
}

std::string AttentionShape::text() const {
  return fmt::format(
      "attention{} of {}, {} x {} heads ({} of keys), {} queries, {} keys of {}/{}{}",
      backward ? "'s backward" : "", name_of(dtype), b, g * r, g, s, t, e, v,
      causal ? ", causal" : "");
}

std::optional<AttentionShape> shape_of(const AttentionWork& w, AttentionMask mask, bool backward) {
  const bool half = w.dtype == DType::kBF16 || w.dtype == DType::kF16;
  if (!half || w.lse_dtype != DType::kF32 || w.dropout || mask == AttentionMask::kOther) return {};
  if (w.loops.count * w.r * w.s * w.t == 0 || (w.s == 1 && w.t == 1)) return {};
  if (w.e % 8 != 0 || w.v % 8 != 0) return {};
  AttentionShape shape = {.backward = backward,
                          .causal = mask == AttentionMask::kCausal,
                          .dtype = w.dtype,
                          .g = w.loops.size[w.loops.dims - 1],
                          .r = w.r,
                          .s = w.s,
                          .t = w.t,
                          .e = w.e,
                          .v = w.v,
                          .scale = w.scale,
                          .places = {}};
  const std::vector<int> operands = shape.operands();
  // The loops but the last, over the key heads, have to be one.
  for (int d = 0; d + 1 < w.loops.dims; ++d) {
    const int64_t size = w.loops.size[d];
    if (size == 1) continue;
    for (const int i : operands) {
      int64_t& step = shape.places[static_cast<size_t>(i)].batch;
      if (shape.b > 1 && step != w.loops.step[d][i] * size) return {};
      step = w.loops.step[d][i];
    }
    shape.b *= size;
  }
  for (const int i : operands) {
    AttentionShape::Place& place = shape.places[static_cast<size_t>(i)];
    const int64_t key_head = w.loops.step[w.loops.dims - 1][i], member = w.r_steps[i];
    place.row = w.matrices[i].row;
    place.head = key_head;
    if (!AttentionShape::by_keys(i) && shape.r > 1) {
      if (shape.g > 1 && key_head != member * shape.r) return {};
      place.head = member;
    }
    // Steps along what has one element are any: these make equal calls one shape.
    const int64_t width = shape.width(i), heads = shape.heads(i), rows = shape.rows(i);
    if (heads == 1) place.head = width;
    if (rows == 1) place.row = width * heads;
    if (shape.b == 1) place.batch = std::max(place.head * heads, place.row * rows);
    for (const int64_t step : {place.batch, place.head, place.row}) {
      if (step <= 0 || (i != W::kLse && step % 8 != 0)) return {};
    }
    if (i == W::kLse) continue;
    if (w.matrices[i].column != 1 || reinterpret_cast<uintptr_t>(w.matrices[i].data) % 16 != 0) {
      return {};
    }
  }
  return shape;
}

}  // namespace cleave
