// What a plan's pipeline takes, from the loads of its chunks.
#pragma once

#include <vector>

#include "graph/graph.h"
#include "planner/estimate.h"
#include "planner/plan.h"
#include "planner/schedule.h"

namespace cleave {

// The plan's chunks in seconds, by its loads. `counted`: as the search counts them, with ways that
// several families share paid by each (GroupLoad::again).
std::vector<ChunkSeconds> chunk_seconds(const Graph& graph, const Plan& plan, bool counted = false);
// By stage, the seconds of its update, counted likewise.
std::vector<double> update_seconds(const Plan& plan, int32_t stages, bool counted = false);

// Runs the schedule of a plan of several stages: sets the pipeline's seconds, the predicted step,
// and the certificate's cost (counted).
void set_step_seconds(const Graph& graph, Plan& plan, Schedules& schedules);

}  // namespace cleave
