// The graph's invariants, checked between passes and in tests.
#pragma once

#include <string>

#include "graph/graph.h"

namespace cleave {

// Throws InternalError naming the node, source or output that breaks a rule:
// - indices are in range, and inputs are defined before they are used;
// - factor sizes and types are those that solve_extents and OpDef::infer give;
// - a view shares the storage and version of its base; a write in place makes the next version of
//   the newest one, with the target's type and geometry; any other output begins a new storage;
// - a node follows an earlier one, and letters that both have, in either case, have equal sizes;
// - sources have different names, begin as they say, and end with a value of their own type;
// - what runs once a micro-batch and what runs once a step can be told apart
// (accumulation_mistake).
void verify(const Graph& graph);

// Why the graph cannot run several micro-batches in a step, or has accumulators that are none;
// empty when nothing is wrong: accumulators start at zero and end with a value made before the
// update, and with several micro-batches the update's nodes come last.
std::string accumulation_mistake(const Graph& graph);

// Why the node cannot share the split of `leader`: the letter whose sizes differ; empty when it
// can.
std::string follower_mistake(const Node& node, const Node& leader);

}  // namespace cleave
