// What else could have been chosen for an op, and what that would have cost.
#pragma once

#include <vector>

#include "planner/planner.h"

namespace cleave {

// One choice of a family's split, everything else chosen anew for it.
struct Alternative {
  std::vector<AxisOption> choice;  // by axis
  bool chosen = false;             // as the plan has it
  bool possible = false;           // some plan has it; else the numbers mean nothing
  double seconds = 0;              // of a step, as the search counts
  double compute_seconds = 0, communication_seconds = 0;
  int64_t held_bytes = 0;  // parameters, states and what is kept for the backward, of one rank
};

// Every choice that the family of this node has on the plan's mesh, at the plan's price of memory,
// whatever its limit: the exact optimum over everything else. `alike`: nodes whose families are
// given the same choice (leaders of equal layers); `node` need not be among them. The chosen one
// first, then by seconds. `most_seconds`: after which no further choice is tried. `graph`: the one
// that the plan is for.
std::vector<Alternative> alternatives_of(const Graph& graph, const Plan& plan, NodeId node,
                                         const std::vector<NodeId>& alike, double most_seconds);

// The node whose split this one shares: the first of its family. Or, of what follows a node that is
// made_once and so is split by itself, that node.
NodeId leader_of(const Graph& graph, NodeId node);

}  // namespace cleave
