// The chains of work that any step with a schedule contains: what bounds it from below.
#pragma once

#include <vector>

#include "planner/schedule.h"

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
std::vector<CriticalPath> critical_paths(const Schedule& schedule);

}  // namespace cleave
