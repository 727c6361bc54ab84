// What `cleave simulate` prints.
#pragma once

#include <string>

#include "cli/model_spec.h"
#include "executor/timeline.h"

namespace cleave {

// One screen: the step by category, for each stage when there are several; what is waited for
// longest; memory.
std::string simulate_report(const TracedModel& model, const Plan& plan, const Program& program,
                            const StepTimeline& timeline, bool overlap, bool colour = false);
// The same numbers; see docs/simulate.md.
std::string simulate_json(const StepTimeline& timeline, bool overlap);

}  // namespace cleave
