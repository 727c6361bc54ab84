// Which nodes share a box at each level of detail.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"
#include "graph/repeats.h"
#include "viz/draw.h"

namespace cleave {

struct GraphUnit {
  std::string name;           // "attn", "matmul"
  std::vector<NodeId> nodes;  // of one copy, where copies are drawn once
  Phase phase = Phase::kForward;
  int32_t repeat = -1;   // the repeat that it is part of, and drawn once for
  double flops = 0;      // of all copies
  int32_t forward = -1;  // of a unit of the backward: the unit whose gradients it makes; -1: none
};

struct Units {
  std::vector<GraphUnit> units;
  std::vector<int32_t> of_node;  // -1: not in the picture
  std::vector<Layer> layer;      // of each node
  std::vector<Repeat> repeats;
  int32_t update = -1;  // the box that stands for all of the update; -1: none
};

Units find_units(const Graph& graph, ViewLevel level);

// What the user calls a part of the model, or its gradients; else the output of the graph that it
// makes; empty: neither.
std::string unit_name(const Graph& graph, const Units& units, const GraphUnit& unit);

}  // namespace cleave
