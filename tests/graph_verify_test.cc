// verify accepts what Graph makes, and notices every kind of planted mistake.
#include "graph/verify.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "graph/error.h"
#include "tests/graph_random.h"

namespace cleave {

// Opens a graph for surgery.
struct GraphSurgeon {
  Graph& graph;
  Node& node(size_t n) { return graph.nodes_[n]; }
  ValueInfo& value(size_t v) { return graph.values_[v]; }
  Source& source(size_t s) { return graph.sources_[s]; }
  Output& output(size_t o) { return graph.outputs_[o]; }
  std::vector<int32_t>& newest() { return graph.newest_; }
  std::vector<ValueInfo>& values() { return graph.values_; }
};

namespace {

namespace op = test_ops;

TEST(Verify, AcceptsRandomGraphs) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    const Graph g = op::random_graph(seed);
    EXPECT_NO_THROW(verify(g)) << "seed " << seed;
  }
}

// A data source that no op reads, and an output names.
TEST(Verify, AcceptsWhatIsLeftOfAGraphWithoutDeadNodes) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    Graph g = op::random_graph(seed);
    g.add_output("input", g.sources()[0].value);
    const Graph live = without_dead_nodes(g);
    ASSERT_NO_THROW(verify(live)) << "seed " << seed;
    EXPECT_EQ(live.outputs().size(), g.outputs().size());
  }
}

// Values: %0 x, %1 w, %2 product, %3 gelu in place, %4 slice of it, %5 gradient, %6 new w.
Graph sound() {
  Graph g;
  Source x = op::source("x");
  x.roles = {"batch", "width"};
  const Value a = g.add_source(x, {DType::kF32, {8, 4}});
  const Value w = g.add_source(op::source("w", SourceKind::kParameter), {DType::kF32, {6, 4}});
  g.cursor.loc = {g.intern_file("m.cc"), 3};
  const Value h = g.add1(op::matmul, {a, w}, "bk,nk->bn");
  const Value y = g.add1(op::gelu, {h}, {}, {}, {h});
  g.add1(op::slice, {y}, "aX->aY", {{"start", 1}, {"step", 2}, {"Y", 2}});
  g.cursor = {.phase = Phase::kBackward, .follows = 0, .loc = {}, .scope = 0};
  const Value dw = g.add1(op::matmul, {y, a}, "bn,bk->nk");
  g.cursor = {.phase = Phase::kUpdate, .follows = kNoNode, .loc = {}, .scope = 0};
  g.set_final(w, g.add1(op::sgd, {w, dw}, {}, {}, {w}));
  g.add_output("y", y);
  g.cursor = {};
  return g;
}

TEST(Verify, NoticesEachPlantedMistake) {
  struct Case {
    std::string_view where, message;  // parts of what verify says
    std::function<void(GraphSurgeon&)> plant;
  };
  using S = GraphSurgeon&;
  const std::vector<Case> cases = {
      {"source 0", "no value %77", [](S s) { s.source(0).value = 77; }},
      {"source 1", "a second source", [](S s) { s.source(1).name = "x"; }},
      {"source 0", "%1 is not its value", [](S s) { s.source(0).value = 1; }},
      {"source 0", "1 roles", [](S s) { s.source(0).roles.pop_back(); }},
      {"source 1", "starts at nan", [](S s) { s.source(1).init.a = std::nan(""); }},
      {"source 0", "shape", [](S s) { s.value(0).type.shape[0] = 0; }},
      {"source 1", "no storage 99", [](S s) { s.value(1).storage = 99; }},
      {"source 1", "not the beginning", [](S s) { s.value(1).storage = 0; }},
      {"source 1", "not the beginning", [](S s) { s.value(1).version = 1; }},
      {"source 1", "does not fill", [](S s) { s.value(1).geometry.offset = 1; }},
      {"'w'", "no value %-1", [](S s) { s.source(1).final = kNoValue; }},
      {"'w'", "the next value is f32[8, 6]", [](S s) { s.source(1).final = 3; }},
      {"'x'", "data has a next value", [](S s) { s.source(0).final = 2; }},
      {"output 'y'", "no value %50", [](S s) { s.output(0).value = 50; }},
      {"node 0", "without an op", [](S s) { s.node(0).op = nullptr; }},
      {"node 0", "no value %-3", [](S s) { s.node(0).inputs[0] = -3; }},
      {"node 0", "reads %3 before it is made", [](S s) { s.node(0).inputs[0] = 3; }},
      {"node 0", "makes %0 again", [](S s) { s.node(0).outputs[0] = 0; }},
      {"node 0", "0 outputs", [](S s) { s.node(0).outputs.clear(); }},
      {"node 0", "no scope 5", [](S s) { s.node(0).scope = 5; }},
      {"node 0", "no file 9", [](S s) { s.node(0).loc.file = 9; }},
      {"node 0", "factor sizes", [](S s) { s.node(0).extents[0] = 9; }},
      {"node 0", "dimension", [](S s) { s.node(0).signature = &Signature::get("bk,kn->bn"); }},
      {"node 0", "operands", [](S s) { s.node(0).inputs.pop_back(); }},
      {"node 0", "%2 is inferred to be f32[8, 6]",
       [](S s) { s.value(2).type.dtype = DType::kF64; }},
      {"node 0", "does not name it", [](S s) { s.value(2).producer = 1; }},
      {"node 0", "does not name it", [](S s) { s.value(2).output = 1; }},
      {"node 0", "does not fill",
       [](S s) {
         s.value(2).geometry.strides = {1, 8};
       }},
      {"node 0", "not the beginning", [](S s) { s.value(2).version = 1; }},
      {"node 1", "2 targets", [](S s) { s.node(1).writes.push_back(kNoValue); }},
      {"node 1", "not the beginning", [](S s) { s.node(1).writes.clear(); }},
      {"node 1", "not the next version", [](S s) { s.value(3).version = 2; }},
      {"node 1", "not the next version", [](S s) { s.value(3).storage = 0; }},
      {"node 1", "not the next version", [](S s) { s.value(3).geometry.offset = 2; }},
      {"node 1", "writes %5 before it is made", [](S s) { s.node(1).writes[0] = 5; }},
      {"node 2", "not a view of %3", [](S s) { s.value(4).version = 0; }},
      {"node 2", "not a view of %3", [](S s) { s.value(4).storage = 0; }},
      {"node 2", "not a view of %3", [](S s) { s.value(4).geometry.offset = 0; }},
      {"node 2", "not a view of %2", [](S s) { s.node(2).inputs[0] = 2; }},
      {"node 3", "follows node 3", [](S s) { s.node(3).follows = 3; }},
      {"node 3", "follows node -2", [](S s) { s.node(3).follows = -2; }},
      {"node 3", "factor 'k' is 6, but 4",
       [](S s) {
         s.node(3).signature = &Signature::get("bk,bn->kn");
         s.node(3).extents = {8, 6, 4};
       }},
      {"node 3", "factor 'K' is 6, but 4",
       [](S s) {
         s.node(3).signature = &Signature::get("bK,bn->Kn");
         s.node(3).extents = {8, 6, 4};
       }},
      {"node 4", "version 0, but version 1 is newest",
       [](S s) {
         s.node(3).op = &op::copy;  // a write of w that the sgd does not know of
         s.node(3).inputs = {1};
         s.node(3).signature = &Signature::get("nk->nk");
         s.node(3).extents = {6, 4};
         s.node(3).writes = {1};
         s.value(5).storage = 1;
         s.value(5).version = 1;
       }},
      {"graph", "nothing makes %7", [](S s) { s.values().push_back(s.value(0)); }},
      {"graph", "reaches version 1, not 3", [](S s) { s.newest()[1] = 3; }},
      {"graph", "storage 4 reaches version -1", [](S s) { s.newest().push_back(0); }},
  };
  const Graph good = sound();
  EXPECT_NO_THROW(verify(good));
  for (size_t i = 0; i < cases.size(); ++i) {
    Graph g = good;
    GraphSurgeon surgeon{g};
    cases[i].plant(surgeon);
    try {
      verify(g);
      ADD_FAILURE() << "case " << i << " (" << cases[i].message << ") is not noticed";
    } catch (const InternalError& e) {
      const std::string said = e.what();
      EXPECT_NE(said.find(cases[i].where), std::string::npos) << "case " << i << ": " << said;
      EXPECT_NE(said.find(cases[i].message), std::string::npos) << "case " << i << ": " << said;
    }
  }
}

// No index of a value or a node can be changed unnoticed.
TEST(Verify, RandomDamageOfIndices) {
  std::mt19937 random(1);
  const Graph good = sound();
  for (int round = 0; round < 2000; ++round) {
    Graph g = good;
    GraphSurgeon s{g};
    const size_t v = random() % g.values().size(), n = random() % g.nodes().size();
    const int32_t shift = random() % 2 ? 1 : -1;
    switch (random() % 7) {
      case 0: s.value(v).storage += shift; break;
      case 1: s.value(v).version += shift; break;
      case 2: s.value(v).producer += shift; break;
      case 3: s.value(v).source += shift; break;
      case 4: s.node(n).outputs[0] += shift; break;
      case 5: s.node(n).extents[random() % s.node(n).extents.size()] += shift; break;
      default: s.value(v).geometry.shape[0] += shift; break;
    }
    EXPECT_THROW(verify(g), InternalError);
  }
}

}  // namespace
}  // namespace cleave
