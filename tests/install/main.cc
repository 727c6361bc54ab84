// Traces a function of tensors through the installed headers and libraries.
#include "executor/program.h"
#include "planner/mesh.h"
#include "tracer/functional.h"
#include "tracer/tensor.h"

int main() {
  cleave::Tracer tracer("user");
  const cleave::Tensor x = cleave::data("x", {8, 16}, cleave::DType::kF32, {"batch", ""});
  const cleave::Tensor w = cleave::parameter("w", {4, 16}, {cleave::Init::Kind::kNormal, 0.02});
  tracer.output("loss", cleave::mean(cleave::square(cleave::linear(x, w))));
  const cleave::Graph graph = tracer.finish();
  const cleave::Mesh mesh{{{"dp", 2}, {"tp", 2}}};
  return graph.nodes().size() >= 3 && mesh.size() == 4 ? 0 : 1;
}
