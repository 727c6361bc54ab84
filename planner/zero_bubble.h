// Where a zero-bubble schedule does its weight gradients.
#pragma once

#include <vector>

#include "planner/schedule.h"

namespace cleave {

// Puts the units of weight gradients into a schedule that has the forwards and backwards of 1f1b.
// Of several ways the one that is fastest with these seconds by chunk (empty: all units alike).
// At most min(stages, micro-batches) micro-batches are in flight on any stage.
void place_weight_gradients(Schedule& schedule, const std::vector<ChunkSeconds>& seconds);

}  // namespace cleave
