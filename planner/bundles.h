// Which steps of different values are one collective: gradients on their way to the update, and new
// parameters and states on their way to where they are kept, move together.
#pragma once

#include <vector>

#include "graph/graph.h"
#include "planner/plan.h"

namespace cleave {

// One step of one bundled form.
struct BundledStep {
  Value value = kNoValue;
  int32_t form = 0;
  size_t step = 0;
};
using Bundle = std::vector<BundledStep>;  // one collective, or a single local step

// The bundles of a plan in the order in which they are executed, one after the other: those of the
// values that the update makes, at its end, or those of all other values, before it. A form begins
// in the round after the last of the form that it is made from; in one round, collectives of one
// kind, reduction, axis, element type and pipeline stage are one.
std::vector<Bundle> bundles(const Graph& graph, const Plan& plan, bool made_by_update);

// By value: the pipeline stage that holds it.
std::vector<int32_t> stages_of_values(const Graph& graph, const Plan& plan);

// A bundle's collective is of the kind of its first step, on that one's axis.
const Step& step_of(const Plan& plan, const BundledStep& step);
// What a bundle's collective takes beyond the seconds of its steps, which count bytes alone.
double start_seconds(const Plan& plan, const Bundle& bundle);

}  // namespace cleave
