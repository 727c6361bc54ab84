// From a position along the whole of a factor to this shard's index there: the inverse of
// Extent::position.
#pragma once

#include <cstdint>

#include "graph/kernel_args.h"

namespace cleave {

// The i with extent.position(i) == position; -1 when the position is in another shard.
// REQUIRES: 0 <= position < extent.global.
inline int64_t local_index(const Extent& extent, int64_t position) {
  int64_t i = position, size = extent.global;
  for (const Cut& cut : extent.cuts) {
    const int64_t block = size / cut.blocks, chunk = block / cut.parts;
    const int64_t within = i % block;
    if (within / chunk != cut.index) return -1;
    i = i / block * chunk + within % chunk;
    size /= cut.parts;
  }
  return i;
}

}  // namespace cleave
