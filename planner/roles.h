// What people would call the axes of a plan: data, tensor or context parallelism.
#pragma once

#include <functional>

#include "planner/plan.h"

namespace cleave {

// Names every axis of plan.mesh by the class that splits most of the work on it: "dp" the batch,
// "cp" the sequence, "tp" any other, "rep" when nothing is split; and sets plan.zero.
void name_axes(const Graph& graph, Plan& plan);

// The share of the bytes of parameters, and of states, that is kept in parts along the axes that
// split the batch (dp and ep). Of a parameter with copies_made_once, these must be, too: they are
// what every micro-batch reads.
struct KeptInParts {
  double parameters = 0, states = 0;
};
KeptInParts kept_in_parts(const Graph& graph, const Plan& plan);
// The same of those for which `counted`, along the axes for which `keeps`.
KeptInParts kept_in_parts(const Graph& graph, const Plan& plan,
                          const std::function<bool(const Source&)>& counted,
                          const std::function<bool(const Source&, const MeshAxis&)>& keeps);

}  // namespace cleave
