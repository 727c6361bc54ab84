// A predicted step as a file for chrome://tracing and Perfetto.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "executor/timeline.h"

namespace cleave {

// Trace Event Format (JSON): a process is a rank, with its number; a thread is a stream of it;
// complete events ("X") are instructions, in microseconds, none overlapping another of its thread;
// the counter "memory" has the bytes in use. `ranks`: ascending, of the whole program: rank
// s * mesh.size() + r is rank r of stage s.
std::string chrome_trace(const Program& program, const Cluster& cluster,
                         const StepTimeline& timeline, const std::vector<int64_t>& ranks);

}  // namespace cleave
