// The JSON form of a graph: what is accepted verifies, and reads back the same, also through text.
#include "graph/json.h"

#include "graph/text.h"
#include "graph/verify.h"
#include "kernels/ops.h"
#include "tests/fuzz/fuzz.h"

using namespace cleave;  // NOLINT(build/namespaces)

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  Graph graph;
  if (!fuzz::accepted([&] { graph = graph_from_json_text(input, ops::find); })) return 0;
  verify(graph);
  const std::string json = to_json_text(graph);
  fuzz::expect_same(to_json_text(graph_from_json_text(json, ops::find)), json);
  fuzz::expect_same(to_json_text(graph_from_text(to_text(graph), ops::find)), json);
  return 0;
}
