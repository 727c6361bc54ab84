// Repeated layers, found in the graph itself: nodes of the forward that occur again and again in
// the same arrangement. Nobody names them.
#pragma once

#include <cstdint>
#include <vector>

#include "graph/graph.h"

namespace cleave {

// What a node does, whatever its operands are called: op, factors, sizes, attributes (but for the
// text `name`, which keys random streams), operands' types, phase. Equal in every process.
uint64_t node_hash(const Graph& graph, NodeId node);

// Nodes first, first+1, ... first + count*period - 1 are `count` copies of `period` nodes.
struct Repeat {
  NodeId first = kNoNode;
  NodeId period = 0;
  int32_t count = 0;
  bool operator==(const Repeat&) const = default;

  NodeId end() const { return first + period * count; }
};

// The runs of at least two copies that cover the most nodes of the forward, without overlap,
// in order. Nodes at the same place of two copies have equal hashes, and each operand of one is, to
// the operand of the other,
// - the same value, made outside of the run;
// - a source of the same type, each used by its own copy only, at the same places;
// - made as many nodes before it; or, in the first copy, whatever the run starts from where a later
//   copy takes a value from the copy before it.
// Of several places where copies can begin, the one with the fewest values passing between copies.
std::vector<Repeat> repeats(const Graph& graph);

// Which copy of which repeat a node or source belongs to; -1 when to none.
struct Layer {
  int32_t repeat = -1;
  int32_t copy = -1;
  bool operator==(const Layer&) const = default;
};

// Nodes of the forward by their place. Of the backward and the update: a node that follows another
// belongs where that one does, one that reads parameters where they do. Of the rest, a node of the
// backward (a sum of gradients) belongs where the last of its inputs was made, one of the update
// where all of them were. A source belongs where all of its readers in the forward do, or, with
// none there, all of its readers.
struct Layers {
  std::vector<Layer> nodes, sources;  // by index
};
Layers layers_of(const Graph& graph, const std::vector<Repeat>& repeats);

}  // namespace cleave
