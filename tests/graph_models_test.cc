// The graphs of the built-in models are sound, and survive being written down.
#include <gtest/gtest.h>

#include <algorithm>

#include "graph/dependencies.h"
#include "graph/json.h"
#include "graph/text.h"
#include "graph/verify.h"
#include "kernels/ops.h"
#include "models/trace.h"
#include "tests/graph_random.h"

namespace cleave {
namespace {

class ModelGraph : public testing::TestWithParam<const char*> {
 protected:
  static Graph graph() {
    ModelConfig config = model_named(GetParam());
    config.layers = 2;
    config.dense_layers = std::min<int64_t>(config.dense_layers, 1);
    config.dropout = 0.1;
    return trace(config);
  }
};

TEST_P(ModelGraph, IsSound) { EXPECT_NO_THROW(verify(graph())); }

TEST_P(ModelGraph, RoundTrips) {
  const Graph g = graph();
  const std::string text = to_text(g), json = to_json_text(g);
  const Graph from_text = graph_from_text(text, ops::find);
  const Graph from_json = graph_from_json_text(json, ops::find);
  test_ops::expect_same(g, from_text);
  test_ops::expect_same(g, from_json);
  EXPECT_EQ(to_text(from_json), text);
  EXPECT_EQ(to_json_text(from_text), json);
}

// Every order that the dependencies allow computes the same: each read still comes after the write
// that made its value, and before the next write of what it read.
TEST_P(ModelGraph, DependenciesKeepTheValues) {
  const Graph g = graph();
  const std::vector<bool> live = live_nodes(g);
  std::vector<std::vector<NodeId>> before(g.nodes().size());
  for (const Dependency& d : dependencies(g)) {
    EXPECT_LT(d.before, d.after);
    before[static_cast<size_t>(d.after)].push_back(d.before);
  }
  std::vector<std::vector<bool>> ancestors(before.size(), std::vector<bool>(before.size()));
  for (size_t n = 0; n < before.size(); ++n) {
    for (NodeId b : before[n]) {
      ancestors[n][static_cast<size_t>(b)] = true;
      for (size_t a = 0; a < n; ++a) {
        if (ancestors[static_cast<size_t>(b)][a]) ancestors[n][a] = true;
      }
    }
  }
  // A view's numbers come from the maker of its base.
  const auto maker = [&](Value v) {
    NodeId n = g.value(v).producer;
    while (n != kNoNode && is_view(g, g.node(n))) n = g.value(g.node(n).inputs[0]).producer;
    return n;
  };
  int checked = 0;
  for (size_t n = 0; n < before.size(); ++n) {
    const Node& node = g.nodes()[n];
    if (!live[n] || is_view(g, node)) continue;
    for (Value v : node.inputs) {
      const NodeId m = maker(v);
      if (m == kNoNode) continue;
      EXPECT_TRUE(ancestors[n][static_cast<size_t>(m)]) << m << " before " << n;
      ++checked;
    }
    for (Value target : node.writes) {
      if (target == kNoValue) continue;
      for (size_t r = 0; r < n; ++r) {
        const auto& in = g.nodes()[r].inputs;
        if (!live[r] || std::find(in.begin(), in.end(), target) == in.end()) continue;
        if (is_view(g, g.nodes()[r])) continue;
        EXPECT_TRUE(ancestors[n][r]) << r << " before the write by " << n;
        ++checked;
      }
    }
  }
  EXPECT_GT(checked, 100);
}

INSTANTIATE_TEST_SUITE_P(Families, ModelGraph,
                         testing::Values("mlp:tiny", "gpt2:tiny", "gpt2:1558m", "llama:tiny",
                                         "llama:405b", "mixtral:tiny", "deepseek:671b",
                                         "bert:large"),
                         [](const auto& info) {
                           std::string name = info.param;
                           name[name.find(':')] = '_';
                           return name;
                         });

}  // namespace
}  // namespace cleave
