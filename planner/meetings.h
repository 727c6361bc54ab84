// Where devices meet: every collective of a plan, with what one device of its stage sends in a
// step. All that is said of a plan's collectives adds up these.
#pragma once

#include <vector>

#include "graph/graph.h"
#include "planner/plan.h"

namespace cleave {

struct Meeting {
  const Step* step = nullptr;  // of the plan
  Phase phase = Phase::kForward;
  int32_t stage = 0;       // of the pipeline
  bool weights = false;    // moves weights, gradients or states; else activations
  bool bundled = false;    // joined with others of its kind
  NodeId node = kNoNode;   // the op that it is inside of; kNoNode: it is between ops
  Value value = kNoValue;  // that it moves, between ops
  int64_t times = 1;       // a step
  double bytes = 0;        // sent by one device of the stage in a step
  double seconds = 0;      // in a step, with its share of the start of its bundle, by bytes
};

// Those inside of ops by node, then those between ops by value.
std::vector<Meeting> meetings(const Graph& graph, const Plan& plan);

}  // namespace cleave
