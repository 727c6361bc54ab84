// What the backward computes again: the same numbers to the bit, less memory.
#include "planner/rewrite.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "graph/dependencies.h"
#include "graph/repeats.h"
#include "graph/text.h"
#include "graph/verify.h"
#include "planner/plan_json.h"
#include "planner/remake.h"
#include "tests/training_plans.h"
#include "tracer/functional.h"
#include "tracer/optimizer.h"

namespace cleave {
namespace {

using testing::config_for;
using testing::models;
using testing::plan_for;

// The nodes of the forward inside repeated layers, but for those that make what the next layer
// starts from. Dropped between layers, all else is computed again from a layer's input.
std::vector<NodeId> inside_layers(const Graph& graph) {
  const std::vector<bool> possible = can_be_remade(graph);
  const Layers layers = layers_of(graph, repeats(graph));
  std::vector<bool> carries(graph.nodes().size(), false);
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.phase != Phase::kForward) continue;
    for (Value v : node.inputs) {
      const NodeId maker = graph.value(v).producer;
      if (maker != kNoNode && layers.nodes[static_cast<size_t>(maker)] != layers.nodes[n]) {
        carries[static_cast<size_t>(maker)] = true;
      }
    }
  }
  std::vector<NodeId> result;
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    if (graph.nodes()[n].phase != Phase::kForward || layers.nodes[n].copy < 0) continue;
    if (possible[n] && !carries[n]) result.push_back(static_cast<NodeId>(n));
  }
  return result;
}

std::vector<NodeId> nodes_of_ops(const Graph& graph, const std::vector<std::string_view>& ops) {
  std::vector<NodeId> result;
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.phase != Phase::kForward) continue;
    if (std::find(ops.begin(), ops.end(), node.op->name) != ops.end()) {
      result.push_back(static_cast<NodeId>(n));
    }
  }
  return result;
}

std::vector<NodeId> random_nodes(const Graph& graph, uint64_t seed) {
  const std::vector<bool> possible = can_be_remade(graph);
  const double share = testing::chance(seed, "share");
  std::vector<NodeId> result;
  for (size_t n = 0; n < possible.size(); ++n) {
    if (possible[n] && testing::chance(seed, fmt::format("node {}", n)) < share) {
      result.push_back(static_cast<NodeId>(n));
    }
  }
  return result;
}

// Copies stand right before who needs them, follow what they repeat and leave nothing of it to be
// read; all else is as it was.
void expect_remade(const Graph& traced, const RewrittenGraph& now, const std::vector<NodeId>& set) {
  verify(now.graph);
  const Graph& g = now.graph;
  ASSERT_EQ(now.origin.size(), g.nodes().size());
  const std::vector<NodeId> repeated = repeated_nodes(g);
  const std::vector<Repeat> runs = repeats(g);
  EXPECT_EQ(runs, repeats(traced));
  const Layers layers = layers_of(g, runs);
  std::vector<NodeId> originals;
  for (size_t n = 0; n < g.nodes().size(); ++n) {
    const Node &node = g.nodes()[n], &was = traced.node(now.origin[n]);
    EXPECT_EQ(node.op, was.op);
    EXPECT_EQ(node.attrs, was.attrs);
    EXPECT_EQ(node.loc.line, was.loc.line);
    EXPECT_EQ(g.scopes()[size_t(node.scope)], traced.scopes()[size_t(was.scope)]);
    if (repeated[n] == kNoNode) {
      originals.push_back(now.origin[n]);
      EXPECT_EQ(node.phase, was.phase);
      continue;
    }
    EXPECT_EQ(node.phase, Phase::kBackward);
    EXPECT_EQ(node.follows, repeated[n]);
    EXPECT_EQ(now.origin[static_cast<size_t>(repeated[n])], now.origin[n]);
    EXPECT_EQ(layers.nodes[n], layers.nodes[static_cast<size_t>(repeated[n])]);
  }
  std::vector<NodeId> all(traced.nodes().size());
  for (size_t n = 0; n < all.size(); ++n) all[n] = static_cast<NodeId>(n);
  EXPECT_EQ(originals, all);
  for (const Node& node : g.nodes()) {
    if (node.phase != Phase::kBackward) continue;
    for (Value v : node.inputs) {
      const NodeId maker = g.value(v).producer;
      if (maker == kNoNode || g.node(maker).phase != Phase::kForward) continue;
      EXPECT_FALSE(
          std::binary_search(set.begin(), set.end(), now.origin[static_cast<size_t>(maker)]))
          << to_text(g, maker) << " is still read by the backward";
    }
  }
}

testing::Curve train(const Graph& graph, const ModelConfig& config) {
  const Plan plan = plan_for(graph, "1", {});
  return testing::run(lower(graph, plan), config, &plan);
}

class Remade : public ::testing::TestWithParam<size_t> {};

TEST_P(Remade, TrainsTheSameToTheBit) {
  const ModelConfig config = config_for(models()[GetParam()], 1);
  const Graph graph = testing::training_graph(config, DType::kF32);
  const testing::Curve kept = train(graph, config);
  ASSERT_LT(kept.loss.back(), kept.loss.front() - 0.05);
  EXPECT_EQ(rewritten(graph, {}).graph.nodes().size(), graph.nodes().size());
  std::vector<std::pair<std::string, std::vector<NodeId>>> sets = {
      {"nothing", {}},
      {"all inside layers", inside_layers(graph)},
      {"attention", nodes_of_ops(graph, {"attention"})},
      {"activations", nodes_of_ops(graph, {"gelu", "silu", "swiglu", "layer_norm", "rms_norm"})},
      {"all", random_nodes(graph, 0)}};
  const std::vector<bool> possible = can_be_remade(graph);
  sets.back().second.clear();
  for (size_t n = 0; n < possible.size(); ++n) {
    if (possible[n]) sets.back().second.push_back(static_cast<NodeId>(n));
  }
  for (uint64_t seed = 0; seed < 4; ++seed) {
    sets.emplace_back(fmt::format("random {}", seed), random_nodes(graph, seed));
  }
  for (const auto& [name, set] : sets) {
    SCOPED_TRACE(name);
    const RewrittenGraph now = rewritten(graph, {.remade = set, .cuts = {}});
    expect_remade(graph, now, set);
    EXPECT_EQ(graph_hash(now.graph) == graph_hash(graph),
              now.graph.nodes().size() == graph.nodes().size());
    const testing::Curve again = train(now.graph, config);
    EXPECT_EQ(again.loss, kept.loss);
    EXPECT_EQ(again.grad_norm, kept.grad_norm);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Remade, ::testing::Range<size_t>(0, 5),
                         [](const auto& i) { return std::string(models()[i.param].label); });

}  // namespace
}  // namespace cleave
