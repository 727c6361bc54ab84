// Views and writes in place: what the tracer makes of them, and what may not be reordered.
#include <fmt/format.h>

#include "graph/dependencies.h"
#include "graph/text.h"
#include "tracer/tensor.h"

using namespace cleave;  // NOLINT(build/namespaces)

int main() {
  Tracer tracer("in_place");
  const Tensor x = data("x", {4, 6}, DType::kF32);
  const Tensor sum = x + 1.0;                       // [4, 6]
  const Tensor left = sum.slice(1, 0, 3);           // [4, 3], the storage of `sum`
  const Tensor before = square(left);               // reads `left` as it is now
  left.mul_(2.0);                                   // the next version of it: `sum` reads it too
  const Tensor after = square(sum.slice(1, 2, 6));  // one column of which was just written
  tracer.output("before", before);
  tracer.output("after", after);
  const Graph graph = tracer.finish();

  fmt::print("{}\n", to_text(graph));
  for (const Dependency& d : dependencies(graph)) {
    fmt::print("{} before {}: {}\n", graph.node(d.before).op->name, graph.node(d.after).op->name,
               name_of(d.kind));
  }
}
