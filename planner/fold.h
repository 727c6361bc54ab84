// A graph with fewer of its repeated layers, for estimates that cost as much for a hundred layers
// as for four: of each repeat the first two and the last two copies are kept, and the inner two
// stand for those left out.
#pragma once

#include <cstdint>
#include <vector>

#include "graph/graph.h"
#include "graph/repeats.h"
#include "planner/pieces.h"

namespace cleave {

// Nodes of one piece, or the values that pass between the copies of a repeat.
struct FoldedGroup {
  int32_t piece = -1;              // of the whole graph; -1: values between copies
  int32_t repeat = -1, copy = -1;  // of the piece
  double weight = 1;               // how many pieces, or passages, it stands for
  bool inside = false;             // of passages: those between the copies that stand for others
};

struct FoldedGraph {
  Graph graph;
  std::vector<int32_t> group_of;        // by node
  std::vector<int32_t> group_of_value;  // by value; of sources: that of its first reader
  std::vector<FoldedGroup> groups;
  std::vector<NodeId> twins;   // by node: the second kept copy's, for the third: to be split alike
  std::vector<NodeId> origin;  // by node: in the whole graph
  std::vector<int32_t> group_of_piece;  // by piece of the whole graph

  // How many passages between kept copies the values of such a group make.
  double passages(size_t group) const;
};

// A repeat whose inner copies differ in the backward or the update, that has at most four, or that
// is `whole` (by repeat; empty: none is), is kept whole, each copy a group of weight 1.
FoldedGraph fold(const Graph& graph, const std::vector<Repeat>& repeats, const Layers& layers,
                 const std::vector<Piece>& pieces, const std::vector<bool>& whole = {});

}  // namespace cleave
