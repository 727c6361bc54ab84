// Every plan of a small training step over the whole joint space: arrangements, cuts between
// pieces, what every piece computes again, placements, what is kept. The oracle of the exhaustive
// search: it looks at all of them and runs the schedule of each, without bounds, multipliers or
// elimination.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/planner.h"

namespace cleave::testing {

// Seconds of a step, and bytes that the fullest device holds at most.
struct JointPoint {
  double seconds = 0;
  double bytes = 0;
};

struct JointSpace {
  std::vector<JointPoint> frontier;  // no other plan is better in both; by ascending bytes
  double plans = 0;                  // complete choices that there are
  int64_t variants = 0;              // rewritten graphs on a mesh under a schedule
  bool too_large = false;            // given up

  // The quickest that fits; infinite when none does.
  double cheapest(double limit) const;
};

// Reads of `options`: the mesh, preferences, the space's stages and recompute, trace. Pins are not
// looked at. `batch`: sequences of a step. `visits`: partial plans looked at before it gives up.
JointSpace joint_space(const Graph& graph, const Cluster& cluster, const PlannerOptions& options,
                       int64_t batch, double visits);

}  // namespace cleave::testing
