// Pictures of graphs and plans at three levels of detail.
#pragma once

#include <cstdint>
#include <string_view>

#include "graph/graph.h"
#include "planner/plan.h"
#include "viz/picture.h"

namespace cleave {

enum class ViewLevel : uint8_t {
  kModel,  // a box a part of a layer; repeated layers drawn once
  kBlock,  // a box an op of one layer; the whole graph when nothing repeats
  kRaw,    // a box a node
};
ViewLevel view_level_named(std::string_view name);  // throws Error

// Forward and backward stand side by side, the backward upwards.
Picture draw(const Graph& graph, ViewLevel level);
Picture draw(const Graph& graph, const Plan& plan, ViewLevel level);

}  // namespace cleave
