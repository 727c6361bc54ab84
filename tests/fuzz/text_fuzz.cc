// The text form of a graph: what is accepted verifies, prints and reads back the same, also through
// JSON, and can be drawn.
#include <algorithm>

#include "graph/dependencies.h"
#include "graph/json.h"
#include "graph/text.h"
#include "graph/verify.h"
#include "kernels/ops.h"
#include "tests/fuzz/fuzz.h"
#include "viz/draw.h"

using namespace cleave;  // NOLINT(build/namespaces)

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  Graph graph;
  if (!fuzz::accepted([&] { graph = graph_from_text(input, ops::find); })) return 0;
  verify(graph);
  const std::string text = to_text(graph);
  fuzz::expect_same(to_text(graph_from_text(text, ops::find)), text);
  const bool ascii = std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
  if (ascii) {  // in JSON bytes that are not UTF-8 become U+FFFD
    fuzz::expect_same(to_text(graph_from_json_text(to_json_text(graph), ops::find)), text);
  }
  dependencies(graph);
  fuzz::accepted([&] { to_dot(draw(graph, ViewLevel::kBlock)); });
  return 0;
}
