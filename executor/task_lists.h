// From a stage's program to the tasks of its units, in the order in which a rank that overlaps
// communication with computation issues them.
#pragma once

#include <string>
#include <vector>

#include "executor/program.h"
#include "executor/tasks.h"
#include "planner/cluster.h"
#include "planner/plan.h"

namespace cleave {

struct TimelineOptions {
  // Whether collectives run beside computation; else everything runs in the program's order, one
  // after the other.
  bool overlap = true;
  // Collectives of bundled values (gradients, new parameters) are done in buckets of at least so
  // many bytes of one rank's values, each as soon as its values are there.
  double bucket_bytes = 64 << 20;
  // A collective whose operands are there before its unit begins (the gather of a parameter that is
  // held in parts) starts ahead of its use: while so many bytes of results wait for theirs, or one
  // result. And as many bytes of what only the update waits for (reduced gradients on their way to
  // an accumulator) may be under way before computation waits for them.
  double ahead_bytes = 512 << 20;
};

// Streams of a rank: computation; one for the collectives of each tier of the network; messages to
// later and to earlier chunks; what waits for those that come from there; copies to the host's
// memory and from it.
inline constexpr int32_t kComputeStream = 0;
int32_t stream_count(const Cluster& cluster);
int32_t stream_of(const Program& program, const Cluster& cluster, const Instr& instr);
std::string stream_name(const Cluster& cluster, int32_t stream);  // "collectives over NVLink"

// The tasks of one step of a program. `plan`: see InstrCosts.
StepTasks step_tasks(const Program& program, const Cluster& cluster, const TimelineOptions& options,
                     const Plan* plan = nullptr);

}  // namespace cleave
