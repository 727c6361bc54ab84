// Which parts of the model nodes belong to.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"

namespace cleave {

// By node: the part of the model as its user named it ("attn"), or the output that an unnamed part
// makes ("loss"); empty: none.
std::vector<std::string> part_names(const Graph& graph);

}  // namespace cleave
