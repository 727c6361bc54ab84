// The smallest model worth splitting, h = gelu(x A) and y = x + h B: its graph, its dimension
// classes, and how far each class runs before devices have to meet.
#include <fmt/ranges.h>

#include "cli/regions_report.h"
#include "graph/text.h"
#include "planner/dimensions.h"
#include "tracer/autodiff.h"
#include "tracer/nn.h"

using namespace cleave;  // NOLINT(build/namespaces)

namespace {

Graph trace_example() {
  constexpr int64_t kBatch = 8, kSequence = 64, kWidth = 128, kInner = 512;
  Tracer tracer("first_graph");
  const Tensor tokens =
      data("input", {kBatch, kSequence, kWidth}, DType::kF32, {"batch", "sequence", "width"});
  const Tensor x = tokens * parameter("scale", {kWidth}, constant(1));  // what comes from below
  const Tensor a = parameter("A", {kWidth, kInner}, normal(0.02));
  const Tensor b = parameter("B", {kInner, kWidth}, normal(0.02));

  const Tensor h = gelu(matmul(x, a));  // [batch, sequence, inner]
  const Tensor y = x + matmul(h, b);    // [batch, sequence, width]

  const std::vector<Tensor> slopes = gradients(mean(square(y)), tracer.parameters());
  for (size_t i = 0; i < slopes.size(); ++i) {
    tracer.output("d" + tracer.name_of(tracer.parameters()[i]), slopes[i]);
  }
  return tracer.finish();
}

}  // namespace

int main() {
  const Graph graph = trace_example();
  fmt::print("{}\n", to_text(graph));

  const Dimensions dims = find_dimensions(graph);
  for (const Source& source : graph.sources()) {
    std::vector<std::string> names;
    for (const ValueAtom& atom : dims.values[static_cast<size_t>(source.value)]) {
      names.push_back(dims.classes[static_cast<size_t>(atom.dimension_class)].name);
    }
    fmt::print("{} [{}]\n", source.name, fmt::join(names, ", "));
  }
  fmt::print("{}", regions_report(graph));
}
