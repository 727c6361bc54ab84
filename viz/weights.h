// Which values have to do with weights alone, and which parts of the model nodes belong to.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"

namespace cleave {

// By value: whether it is a parameter, is made of parameters alone (a cast), or is a gradient that
// only the update reads, perhaps added up first.
std::vector<bool> values_of_weights(const Graph& graph);

// By node: the part of the model as its user named it ("attn"), or the output that an unnamed part
// makes ("loss"); empty: none. And how many equal layers the part is in.
struct PartNames {
  std::vector<std::string> of_node;
  std::vector<int32_t> copies;
};
PartNames part_names(const Graph& graph);

}  // namespace cleave
