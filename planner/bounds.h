// Lower bounds on the step of any pipeline of an arrangement: whatever its cuts, and whatever of
// the compared options each piece of the model takes.
#pragma once

#include <vector>

#include "planner/arrangements.h"
#include "planner/estimate.h"

namespace cleave {

// Whether a stage, or all of them together, hold too much, however the pieces are dealt out and
// run. `limits`: bytes, by stage.
bool nothing_fits(const Arrangement& arrangement, const std::vector<Piece>& pieces,
                  const std::vector<PieceOption>& options, const std::vector<double>& limits,
                  Schedules& schedules);

// The greater of two bounds: capacity_bound (planner/capacity_bound.h), which does not divide
// pieces, and the Lagrangian dual, which does but sees all stages at once. The dual: paths weighted
// to a mean, bytes above a stage's limit priced; for every such weight and price the cheapest way
// to deal out the pieces and to run each, apart from one another, bounds the step from below.
// Ascends until `enough` is reached. `limits`: bytes, by stage; infinite: not priced. `sent`:
// seconds to send what passes between stages.
double pipeline_bound(const Arrangement& arrangement, const std::vector<Piece>& pieces,
                      const std::vector<PieceOption>& options, const std::vector<double>& limits,
                      double sent, double enough, Schedules& schedules);

}  // namespace cleave
