// Which nodes share a box at each level of detail.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"
#include "graph/repeats.h"
#include "viz/draw.h"

namespace cleave {

struct Unit {
  std::string name;           // "attn", "matmul"
  std::vector<NodeId> nodes;  // of one copy, where copies are drawn once
  Phase phase = Phase::kForward;
  int32_t repeat = -1;  // the repeat that it is part of, and drawn once for
  double flops = 0;     // of all copies
};

struct Units {
  std::vector<Unit> units;
  std::vector<int32_t> of_node;  // -1: not in the picture
  std::vector<Layer> layer;      // of each node
  std::vector<Repeat> repeats;
  int32_t update = -1;  // the box that stands for all of the update; -1: none
};

Units find_units(const Graph& graph, ViewLevel level);

}  // namespace cleave
