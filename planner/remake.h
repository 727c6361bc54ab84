// Recomputation: nodes of the forward that run a second time in the backward, so that what they
// make need not be kept until then.
#pragma once

#include <vector>

#include "planner/rewrite.h"

namespace cleave {

// By node: whether it may run again in the backward. It must be of the forward, write nothing in
// place, be no transfer or made_once, and read nothing that is overwritten before the backward has
// last read what the forward made.
std::vector<bool> can_be_remade(const Graph& graph);

// The graph with these nodes computed again in the backward, as far as it reads what they make, and
// with them the views of what they make. A copy
// - is of the backward, follows the node that it repeats, and has its op, factors, attributes
//   (random numbers are drawn by counters: the same bits), line, scope and chunk;
// - reads other copies where there are any, else what the node itself reads;
// - stands just before the first node of the backward that needs it, so that it is held no longer
//   than it must be.
// The backward then reads nothing that a remade node itself made. Nodes are numbered as in
// `from.graph`. Throws InternalError for one that cannot be remade.
RewrittenGraph remade(const RewrittenGraph& from, const std::vector<NodeId>& nodes);

// By node: the one it computes again, kNoNode for all others. It is found in the graph itself: a
// node of the backward repeats the one it follows when op, factors and attributes are equal and
// each operand is the same value, or the same output of a node that repeats its maker.
std::vector<NodeId> repeated_nodes(const Graph& graph);

}  // namespace cleave
