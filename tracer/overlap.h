// Whether two strided views of one storage have an element in common.
#pragma once

#include "graph/graph.h"

namespace cleave {

// True when in doubt, which needs more runs of elements than an ElementGrid counts.
bool overlap(const Geometry& a, const Geometry& b);

// The part of its target that a node's output overwrites in place; the output's whole geometry when
// it has a storage of its own.
Geometry written_part(const Graph& graph, const Node& node, size_t output);

}  // namespace cleave
