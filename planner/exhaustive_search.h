// The exact optimum over the whole space, for graphs small enough to look at all of it.
#pragma once

#include <vector>

#include "planner/outline.h"
#include "planner/planner.h"

namespace cleave {

// The ways to recompute that each piece chooses from: none, selective_mode, full_mode, as far as
// they differ.
std::vector<RemakeMode> exhaustive_menu(const Outline& outline);

// Every arrangement, every cut of it between pieces, every way to recompute of every piece; each
// closed exactly (Closing). Throws Error when there are more than a hundred thousand of them.
PlanResult search_exhaustively(const Graph& graph, const Cluster& cluster,
                               const PlannerOptions& options);

}  // namespace cleave
