// What dimension classes are called where people read: "batch", "heads", "mlp inner", "vocabulary".
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"
#include "planner/dimensions.h"

namespace cleave {

// A few words for every class, from what the user wrote and what the graph shows: the role of its
// data, what ops do with it (a table's rows, an attention's heads), whether repeated layers pass it
// on ("width"), the part of the model that it stays inside ("mlp inner"), or, when nothing else is
// known, the parameter that it was first seen in. Classes of equal layers are called the same;
// those that only happen to be have their place in brackets.
std::vector<std::string> class_words(const Graph& graph, const Dimensions& dimensions);

}  // namespace cleave
