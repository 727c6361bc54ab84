// The JSON form: exact round trips, the documented schema, and clear refusals.
#include "graph/json.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "graph/error.h"
#include "graph/text.h"
#include "tests/graph_random.h"

namespace cleave {
namespace {

namespace op = test_ops;
using Json = nlohmann::ordered_json;

TEST(GraphJson, RandomGraphsRoundTrip) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    const Graph g = op::random_graph(seed);
    const std::string json = to_json_text(g);
    const Graph read = graph_from_json_text(json, op::find);
    ASSERT_EQ(to_json_text(read), json);
    op::expect_same(g, read);
    EXPECT_EQ(to_text(read), to_text(g));
    EXPECT_EQ(Json::parse(json), to_json(g));
    if (testing::Test::HasFailure()) FAIL() << "seed " << seed << "\n" << json;
  }
}

Json small() {
  Graph g;
  g.name = "small";
  Source x = op::source("x");
  x.roles = {"batch", "width"};
  const Value v = g.add_source(x, {DType::kF32, {4, 6}});
  Source w = op::source("w", SourceKind::kParameter);
  w.init = {Init::Kind::kNormal, 0.02};
  const Value p = g.add_source(w, {DType::kF32, {4, 6}});
  g.cursor.scope = g.intern_scope("fc");
  g.cursor.loc = {g.intern_file("m.cc"), 7};
  const Value y = g.add1(op::mul, {v, p}, {}, {{"eps", 1e-5}, {"n", int64_t{1}}});
  g.cursor = {.phase = Phase::kUpdate, .follows = 0, .loc = {}, .scope = 0};
  const Value next = g.add1(op::sgd, {p, y}, "bs,bs->bs", {}, {p});
  g.set_final(p, next);
  g.add_output("y", y);
  return to_json(g);
}

TEST(GraphJson, IsAsTheManualShows) {
  std::ifstream file(std::string(CLEAVE_SOURCE_DIR) + "/docs/graph.md");
  std::stringstream stream;
  stream << file.rdbuf();
  const std::string manual = stream.str();
  const size_t begin = manual.find("```json\n") + 8;
  EXPECT_EQ(small(), Json::parse(manual.substr(begin, manual.find("```\n", begin) - begin)));
}

TEST(GraphJson, MistakesNameTheirEntry) {
  struct Case {
    std::string_view pointer;
    Json value;
    std::string_view message;
  };
  const std::vector<Case> cases = {
      {"/cleave_graph", 2, "'cleave_graph' is 2"},
      {"/name", 3, "'name' is not a string"},
      {"/nodes", "x", "'nodes' is not a list"},
      {"/extra", 1, "unknown key 'extra'"},
      {"/sources/0", 5, "sources[0]: not an object"},
      {"/sources/0/value", -1, "sources[0]: 'value' holds a number out of range"},
      {"/sources/0/roles", {1, 2}, "sources[0]: 'roles' holds something else"},
      {"/sources/0/type/shape", {4, 0}, "sources[0]: 'shape' holds a number out of range"},
      {"/sources/1/init", nullptr, "sources[1]: not an object"},
      {"/sources/1/name", "x", "sources[1]: there are two inputs or states named 'x'"},
      {"/sources/1/final", 2.5, "sources[1]: 'final' holds something else than an integer"},
      {"/sources/0/final", 2, "sources[0]: data 'x' cannot have a next value"},
      {"/nodes/0/op", "mull", "nodes[0]: unknown op 'mull'"},
      {"/nodes/0/typo", 1, "nodes[0]: unknown key 'typo'"},
      {"/nodes/0/in", {0, 3}, "nodes[0]: %3 is not defined before this"},
      {"/nodes/0/types", Json::array(), "nodes[0]: each value needs its type"},
      {"/nodes/0/out", Json::array(), "nodes[0]: each value needs its type"},
      {"/nodes/0/factors", "b", "nodes[0]: factor string \"b\""},
      {"/nodes/0/attrs/n", nullptr, "nodes[0]: 'n' holds something else than an integer"},
      {"/nodes/1/writes", {nullptr, 1}, "nodes[1]: 1 values, but 2 targets"},
      {"/nodes/1/follows", 1, "nodes[1]: follows a node that does not come before it"},
      {"/nodes/1/phase", "middle", "nodes[1]: unknown phase 'middle'"},
      {"/outputs/0/value", 4, "outputs[0]: %4 is not defined"},
  };
  for (const Case& c : cases) {
    Json json = small();
    json[Json::json_pointer(std::string(c.pointer))] = c.value;
    try {
      graph_from_json(json, op::find);
      ADD_FAILURE() << "accepted " << c.pointer << " = " << c.value;
    } catch (const Error& e) {
      EXPECT_EQ(std::string(e.what()).substr(0, c.message.size()), c.message) << c.pointer;
    }
  }
  for (const char* key : {"cleave_graph", "name", "sources", "nodes", "outputs"}) {
    Json json = small();
    json.erase(key);
    EXPECT_THROW(graph_from_json(json, op::find), Error) << key;
  }
  EXPECT_THROW(graph_from_json_text("{", op::find), Error);
}

}  // namespace
}  // namespace cleave
