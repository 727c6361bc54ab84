// A graph's synchronization-free regions, for people.
#pragma once

#include <string>

#include "graph/graph.h"

namespace cleave {

// `colour`: for a terminal.
std::string regions_report(const Graph& graph, bool colour = false);

}  // namespace cleave
