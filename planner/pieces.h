// A model taken apart, in the order of its forward, into the pieces between which a pipeline may
// cut it.
#pragma once

#include <cstdint>
#include <vector>

#include "graph/graph.h"
#include "graph/repeats.h"

namespace cleave {

// Consecutive nodes of the forward of the whole graph.
struct Piece {
  NodeId first = kNoNode;  // of the forward; a cut before this piece names this node
  int32_t repeat = -1, copy = -1;
  int32_t like = 0;  // pieces of one number are alike
};

// Where a single value of the step's data passes (besides sources), and at the borders of repeated
// layers. In order; the first begins with the first node.
std::vector<Piece> pieces_of(const Graph& graph, const std::vector<Repeat>& repeats);

// By node: its piece. Nodes of the forward by their place; others where the one that they follow
// is, or else where the last of their operands was made, or where the source that they read first
// is read first.
std::vector<int32_t> pieces_of_nodes(const Graph& graph, const std::vector<Piece>& pieces);

}  // namespace cleave
