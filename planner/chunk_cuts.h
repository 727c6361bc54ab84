// Where a pipeline cuts the pieces of a model into chunks: a list of the first piece of each chunk,
// ascending. Chunk c lies on stage c % stages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "planner/arrangements.h"

namespace cleave {

// What is fixed of the cuts. Empty lists: nothing is pinned.
struct CutRules {
  bool even = false;              // chunks of equal length, though others promise to be quicker
  bool thorough = false;          // look longer for quicker ones
  std::vector<int32_t> stage_of;  // by piece; -1: any
  std::vector<bool> begins;       // by piece: a chunk begins with it
};

// Whether pins allow these cuts of so many pieces.
bool allowed(const std::vector<int32_t>& first_piece, int32_t pieces, int32_t stages,
             const CutRules& rules);

// The largest chunk as small as possible, then the sum of squares. Empty when the rules leave
// nothing. `weights`: by piece.
std::vector<int32_t> deal_out(const std::vector<double>& weights, int32_t stages, int32_t chunks,
                              const CutRules& rules);

// The pieces dealt out to so many stages, in their order and at least one each, so that the longest
// sum is least: that sum; 0 when there are fewer pieces than stages.
double least_longest(const std::vector<double>& seconds, int32_t stages);

// A piece fewer in chunk `from`, which has two or more, one more in chunk `to`: those between move
// on by one.
std::vector<int32_t> moved(std::vector<int32_t> first_piece, size_t from, size_t to);

// Where pieces do not come out even, chunks as equal as can be leave some stages with more than
// others in each of their chunks. Downhill from these cuts: from the stage that has most to where
// all together gain most, by a soft maximum over stages, and what it takes to pass through the
// longest row of chunks. `weights`: seconds of a micro-batch, by piece.
std::vector<int32_t> with_even_stages(const Arrangement& arrangement,
                                      const std::vector<double>& weights, const CutRules& rules,
                                      std::vector<int32_t> first_piece);

}  // namespace cleave
