#include "planner/expansion.h"

#include <fmt/format.h>

#include <algorithm>

namespace cleave {

std::optional<Expansion> expand_op(const OpDef& op, const OpCall& call, char letter, int64_t shards,
                                   const std::vector<std::vector<ValueAtom>>& value_atoms) {
  if (op.split == nullptr) return std::nullopt;
  Expansion d;
  std::vector<Value> inputs;
  for (size_t i = 0; i < call.in.size(); ++i) {
    Source source;
    source.name = fmt::format("in{}", i);
    inputs.push_back(d.graph.add_source(std::move(source), call.in[i]));
  }
  d.outputs = op.split({d.graph, call, letter, shards, inputs});
  if (d.outputs.empty()) return std::nullopt;
  for (size_t o = 0; o < d.outputs.size(); ++o) {
    d.graph.add_output(fmt::format("out{}", o), d.outputs[o]);
  }
  d.dimensions = find_dimensions(d.graph);
  for (size_t i = 0; i < inputs.size(); ++i) {
    // The op sees only sizes, so a dimension of several atoms is one here; it must stay whole, or
    // be the one atom it is.
    const auto& atoms = d.dimensions.values[static_cast<size_t>(inputs[i])];
    if (atoms.size() != call.in[i].shape.size() || atoms.size() != value_atoms[i].size()) {
      return std::nullopt;
    }
  }
  return d;
}

std::vector<ExpandedNode> split_expansion(const Expansion& d,
                                          const std::vector<ClassId>& axis_class) {
  std::vector<ExpandedNode> result;
  for (size_t n = 0; n < d.graph.nodes().size(); ++n) {
    ExpandedNode split;
    split.node = static_cast<NodeId>(n);
    split.splits.resize(axis_class.size());
    const auto& factors = d.dimensions.factors[n];
    for (size_t a = 0; a < axis_class.size(); ++a) {
      for (size_t f = 0; f < factors.size() && axis_class[a] >= 0; ++f) {
        for (size_t k = 0; k < factors[f].size(); ++k) {
          if (factors[f][k].dimension_class != axis_class[a]) continue;
          split.splits[a] = {static_cast<int8_t>(f), static_cast<int8_t>(k)};
        }
      }
    }
    result.push_back(std::move(split));
  }
  return result;
}

bool combined_inside(const Expansion& d, Value v, bool axis_is_expanded) {
  const auto reads = [v](const Node& n) {
    return std::find(n.inputs.begin(), n.inputs.end(), v) != n.inputs.end();
  };
  return axis_is_expanded || std::any_of(d.graph.nodes().begin(), d.graph.nodes().end(), reads);
}

}  // namespace cleave
