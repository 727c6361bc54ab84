// A plan on one screen, for people.
#pragma once

#include <string>

#include "cli/model_spec.h"
#include "planner/plan.h"

namespace cleave {

// `limit`: bytes a device that the plan had to fit in; may be infinite. `colour`: for a terminal.
std::string plan_report(const TracedModel& model, const Plan& plan, double limit,
                        bool colour = false);

}  // namespace cleave
