// An op whose factor is whole, written with ops that can be split along it (OpDef::split).
#pragma once

#include <optional>
#include <vector>

#include "graph/graph.h"
#include "planner/dimensions.h"
#include "planner/mesh.h"

namespace cleave {

struct Expansion {
  Graph graph;  // one data source for each input of the op, in order
  Dimensions dimensions;
  std::vector<Value> outputs;  // the op's outputs
};

// One node of an expansion on a mesh: which of its factors is split on each axis. A factor that an
// output lacks leaves it partial there; see combined_inside.
struct ExpandedNode {
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
std::optional<Expansion> expand_op(const OpDef& op, const OpCall& call, char letter, int64_t shards,
                                   const std::vector<std::vector<ValueAtom>>& value_atoms);

// Splits every node of an expansion by the given class on each axis (-1: none), where the node
// has it.
std::vector<ExpandedNode> split_expansion(const Expansion& d,
                                          const std::vector<ClassId>& axis_class);

// Whether a partial result inside an expansion is combined at once, on an axis that splits the
// expanded factor or not. On the axes of the op's plain factors its own results stay partial,
// unless another part reads them.
bool combined_inside(const Expansion& d, Value v, bool axis_is_expanded);

}  // namespace cleave
