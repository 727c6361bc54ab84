#include "planner/of_weights.h"

#include <algorithm>

namespace cleave {
namespace {

size_t at(int32_t i) { return static_cast<size_t>(i); }

// Of values of one shape, element by element: a sum, a cast.
bool is_sum(const Node& node) {
  if (node.outputs.size() != 1) return false;
  const auto& inputs = node.signature->inputs();
  return std::all_of(inputs.begin(), inputs.end(),
                     [&](const OperandDims& in) { return in == node.signature->outputs()[0]; });
}

}  // namespace

std::vector<bool> values_of_weights(const Graph& graph) {
  std::vector<bool> result(graph.values().size());
  std::vector<std::vector<NodeId>> readers(graph.values().size());
  for (const Source& s : graph.sources()) result[at(s.value)] = s.kind == SourceKind::kParameter;
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    for (Value v : node.inputs) readers[at(v)].push_back(static_cast<NodeId>(n));
    const bool made =
        node.phase == Phase::kForward && !node.inputs.empty() &&
        std::all_of(node.inputs.begin(), node.inputs.end(), [&](Value v) { return result[at(v)]; });
    for (Value v : node.outputs) result[at(v)] = made;
  }
  for (size_t n = graph.nodes().size(); n-- > 0;) {
    const Node& node = graph.nodes()[n];
    if (node.phase != Phase::kBackward) continue;
    for (Value v : node.outputs) {
      result[at(v)] = !readers[at(v)].empty() &&
                      std::all_of(readers[at(v)].begin(), readers[at(v)].end(), [&](NodeId r) {
                        const Node& reader = graph.node(r);
                        return reader.phase == Phase::kUpdate ||
                               (is_sum(reader) && result[at(reader.outputs[0])]);
                      });
    }
  }
  return result;
}

bool works_on_weights(const Graph& graph, const std::vector<bool>& values_of_weights, NodeId n) {
  const Node& node = graph.node(n);
  if (node.phase == Phase::kUpdate) return true;
  return node.phase == Phase::kForward && !node.inputs.empty() &&
         values_of_weights[at(node.outputs[0])];
}

bool counts_as_weights(const Graph& graph, const std::vector<bool>& values_of_weights, Value v) {
  const NodeId producer = graph.value(v).producer;
  return values_of_weights[at(v)] || producer == kNoNode ||
         works_on_weights(graph, values_of_weights, producer);
}

}  // namespace cleave
