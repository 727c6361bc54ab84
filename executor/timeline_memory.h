// What of a rank's memory is in use when.
#pragma once

#include <vector>

#include "executor/timeline.h"

namespace cleave {

// The bytes in use of a rank of one stage over the step, from the stage's events; see
// StageTimeline::memory.
std::vector<MemoryPoint> memory_of(const Program& program, const StepTasks::Stage& tasks,
                                   int32_t stage, const std::vector<TimelineEvent>& events,
                                   double step_seconds);

}  // namespace cleave
