// The graph as JSON, for other programs; docs/graph.md has the schema.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "graph/record.h"

namespace cleave {

// Reads JSON that a stranger may have written: throws Error when it is malformed, nested more than
// 100 deep, or has an object of more than 1000 keys, which the library would search one by one.
nlohmann::ordered_json parse_json(std::string_view text);

nlohmann::ordered_json to_json(const Graph& graph);
// Throws Error, naming the entry, when the JSON does not follow the schema or describe a graph.
Graph graph_from_json(const nlohmann::ordered_json& json, OpLookup lookup);

// The same as text: one line a source, node and output.
std::string to_json_text(const Graph& graph);
Graph graph_from_json_text(std::string_view text, OpLookup lookup);

}  // namespace cleave
