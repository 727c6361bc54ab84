// Element sets of two views, and what an in-place node touches.
#include "tracer/overlap.h"

#include "graph/element_set.h"

namespace cleave {

bool overlap(const Geometry& a, const Geometry& b) {
  const Geometry both[] = {a, b};
  const ElementGrid grid(both);
  return overlap(grid.set(a), grid.set(b));
}

Geometry written_part(const Graph& graph, const Node& node, size_t output) {
  const Geometry& whole = graph.value(node.outputs[output]).geometry;
  if (node.op->written == nullptr || node.overwrites(output) == kNoValue) return whole;
  const std::vector<TensorType> in = graph.input_types(node);
  const auto part = node.op->written(Graph::call(node, in), whole);
  return part ? (*part)[output] : whole;
}

}  // namespace cleave
