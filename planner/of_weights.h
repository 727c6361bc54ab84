// Which values have to do with weights alone.
#pragma once

#include <vector>

#include "graph/graph.h"

namespace cleave {

// By value: whether it is a parameter, is made of parameters alone (a cast), or is a gradient that
// only the update reads, perhaps added up first, or sent to another stage.
std::vector<bool> values_of_weights(const Graph& graph);
// Whether node n works on weights alone: it updates them, or makes what is made of them.
bool works_on_weights(const Graph& graph, const std::vector<bool>& values_of_weights, NodeId n);
// Whether collectives of value v are counted as those of weights, gradients and states: it is one
// of them, or what works on weights alone makes it (a gradient's norm).
bool counts_as_weights(const Graph& graph, const std::vector<bool>& values_of_weights, Value v);

}  // namespace cleave
