// The last resort when a model does not fit: states that only the update needs are kept in the
// host's memory, and come to the device for as long as it takes to update them.
#pragma once

#include "graph/graph.h"
#include "planner/cluster.h"

namespace cleave {

// A state of some size that nothing but the update reads or writes (an optimizer's moments).
bool can_be_offloaded(const Graph& graph, const Source& source);

// Seconds a step to bring so many bytes of one rank to the device and back.
double offload_seconds(const Cluster& cluster, double bytes);

}  // namespace cleave
