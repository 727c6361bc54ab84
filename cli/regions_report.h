// A graph's synchronization-free regions, for people.
#pragma once

#include <string>

#include "graph/graph.h"

namespace cleave {

std::string regions_report(const Graph& graph);

}  // namespace cleave
