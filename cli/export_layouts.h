// What a plan does with modules and between them, as other programs speak of it: how weights are
// split, and where activations lie at the edges of modules.
#pragma once

#include <string>

#include "cli/export_plan.h"

namespace cleave {

// "dp", of "dp2", a second one.
std::string role_of(const std::string& axis);

// Fills in e.modules and e.misfits. `tensor_axis`: -1 when there is none.
void read_layouts(const LoadedPlan& loaded, int tensor_axis, Exported& e);

}  // namespace cleave
