// An op whose factor is whole, written with ops that can be split along it (OpDef::split).
#pragma once

#include <optional>
#include <vector>

#include "graph/graph.h"
#include "planner/dimensions.h"
#include "planner/mesh.h"

namespace cleave {

struct Decomposition {
  Graph graph;  // one data source for each input of the op, in order
  Dimensions dimensions;
  std::vector<Value> outputs;  // the op's outputs
};

// One node of a decomposition on a mesh: which class splits it on each axis, and the axes on which
// its outputs are then partial and must be all-reduced before anything reads them.
struct DecomposedNode {
  struct AxisSplit {
    int8_t factor = -1;  // -1: not split on this axis
    int8_t atom = 0;
  };
  NodeId node = kNoNode;
  std::vector<AxisSplit> splits;  // one an axis
};

// The op of this call written out for `shards` parts of the factor `letter`; nothing when the op
// does not say how, or when its inputs would have to be taken apart further than `value_atoms`
// (the atoms of each input, outermost first).
std::optional<Decomposition> decompose(const OpDef& op, const OpCall& call, char letter,
                                       int64_t shards,
                                       const std::vector<std::vector<ValueAtom>>& value_atoms);

// Splits every node of a decomposition by the given class on each axis (-1: none), where the node
// has it.
std::vector<DecomposedNode> split_decomposition(const Decomposition& d,
                                                const std::vector<ClassId>& axis_class);

}  // namespace cleave
