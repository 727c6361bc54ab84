// What people would call the axes of a plan: data, tensor or context parallelism.
#pragma once

#include "planner/plan.h"

namespace cleave {

// Names every axis of plan.mesh by the class that splits most of the work on it: "dp" the batch,
// "cp" the sequence, "tp" any other, "rep" when nothing is split; and sets plan.zero.
void name_axes(const Graph& graph, Plan& plan);

}  // namespace cleave
