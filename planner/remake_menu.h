// Which nodes are worth computing again in the backward, at several prices of memory.
#pragma once

#include <vector>

#include "planner/outline.h"
#include "planner/plan.h"

namespace cleave {

// Ways to recompute, from nothing (always the first) to everything between the pieces, each a
// minimum cut: with what is kept at so many seconds a byte and what is computed again at its own
// seconds, nothing is cheaper. Only what passes between pieces is always kept. Seconds and bytes
// are those of one rank under `plan`, a plan for the folded graph without recomputation. At most
// `most` of them.
std::vector<RemakeMode> remake_menu(const Outline& outline, const PreparedGraph& folded,
                                    const Plan& plan, size_t most);

// Everything in repeated layers that can be computed again and does not pass to another piece.
RemakeMode full_mode(const Outline& outline);
// The ops that contract values made of the step's data with each other (attention), and what only
// connects two of them.
RemakeMode selective_mode(const Outline& outline);

}  // namespace cleave
