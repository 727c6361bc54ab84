// Lower bounds on the step of any pipeline of an arrangement: whatever its cuts, and whatever of
// the compared options each piece of the model takes.
#pragma once

#include <vector>

#include "planner/arrangements.h"
#include "planner/estimate.h"

namespace cleave {

// A chain of work, each part of which waits for the one before, so that a step takes at least as
// long: how often it counts a chunk's forward, its backward, of its backward only what the chunk
// before waits for, a stage's update, and something sent from stage to stage.
struct CriticalPath {
  int32_t kind = 0;                                // of those below
  int32_t stage = 0;                               // whose units it follows
  std::vector<double> forward, backward, awaited;  // by chunk
  std::vector<double> update;                      // by stage
  double sends = 0;
};

// Chains that every step with this schedule contains, whatever units take. For each stage s:
// 0. the first micro-batch's way to it, all its units, and its update;
// 1. the first micro-batch's way to the end and back to it, its units from there on, its update;
// 2. the same up to its last forward, then the last micro-batch's way to the end and back (not for
//    zero-bubble schedules, where a backward is two units);
// 3. the first micro-batch's way to it, its units up to its last backward, and that one's way back
//    to the first stage, and its update;
// 4. unless there are very many units, what its last unit waited for in a run in which all units
//    are equal but those of this stage, which take a little longer, and its update.
std::vector<CriticalPath> critical_paths(const Arrangement& arrangement, Schedules& schedules);

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
