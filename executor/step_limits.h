// The limits that a step's update is gated by, as the graph's data.
#pragma once

#include "executor/runtime.h"
#include "executor/spike_guard.h"
#include "graph/graph.h"

namespace cleave {

// What leaves no finite step out.
StepLimits no_limits();

// Fills "loss_limit" and "norm_limit" for the next micro-batch, if the graph has them
// (tracer/optimizer.h).
void set_limits(Runtime& runtime, const Graph& graph, const StepLimits& limits);

}  // namespace cleave
