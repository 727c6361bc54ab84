// A measured step beside the predicted one, in one file.
#pragma once

#include <string>

#include "executor/runtime.h"
#include "planner/plan.h"

namespace cleave {

// Writes the trace (executor/chrome_trace.h) of a recorded step of the plan's program. Throws Error
// when the file cannot be written.
void write_profile(const std::string& path, const Program& program, const Plan& plan,
                   const StepResult& step);

}  // namespace cleave
