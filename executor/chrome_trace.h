// A predicted step, and a measured one beside it, as a file for chrome://tracing and Perfetto.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "executor/timeline.h"

namespace cleave {

// Trace Event Format (JSON): a process is a rank, with its number; a thread is a stream of it;
// complete events ("X") are instructions, in microseconds, none overlapping another of its thread;
// the counter "memory" has the bytes in use. `ranks`: ascending, of the whole program: rank
// s * mesh.size() + r is rank r of stage s. `measured`, by rank of the whole program, are processes
// of their own, whose numbers follow those of all ranks.
struct MeasuredStep {
  double seconds = 0;
  std::vector<StageTimeline> ranks;
};
std::string chrome_trace(const Program& program, const Cluster& cluster,
                         const StepTimeline& timeline, const std::vector<int64_t>& ranks,
                         const MeasuredStep* measured = nullptr);

}  // namespace cleave
