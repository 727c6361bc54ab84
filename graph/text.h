// The graph's text form: one line a source, node or output. It reads well and round-trips exactly;
// docs/graph.md describes it.
//
//   graph mlp
//
//   data %0 x: f32[8, 64] (batch, width)
//   param %1 fc.weight: f32[32, 64] = normal(0.02) -> %9
//
//   forward
//   %2: f32[8, 32] = matmul(%0, %1) "bk,nk->bn" in fc @mlp.cc:12
//   %3: f32[8, 32] = dropout(%2, %5) "bs,->bs|b:indexed,s:indexed" {p: 0.1} writes %2
//
//   backward
//   %7: f32[8, 32] = gelu_backward(%2, %6) "bs,bs->bs" follows %3 in fc @mlp.cc:13
//
//   output loss %5
#pragma once

#include <string>
#include <string_view>

#include "graph/record.h"

namespace cleave {

std::string to_text(const Graph& graph);
// One node, as in the text of its graph.
std::string to_text(const Graph& graph, NodeId node);

// Reads the text form. Throws Error, beginning with "line N:", when the text is malformed or does
// not describe a graph: types are inferred again and must equal those written.
Graph graph_from_text(std::string_view text, OpLookup lookup);

}  // namespace cleave
