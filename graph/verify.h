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
// - sources have different names, begin as they say, and end with a value of their own type.
void verify(const Graph& graph);

// Why the node cannot share the split of `leader`: the letter whose sizes differ; empty when it
// can.
std::string follower_mistake(const Node& node, const Node& leader);

}  // namespace cleave
