// What the backward computes again: the same numbers to the bit, less memory.
#include "planner/rewrite.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "graph/dependencies.h"
#include "graph/repeats.h"
#include "graph/text.h"
#include "graph/verify.h"
#include "planner/plan_json.h"
#include "planner/remake.h"
#include "tests/support/brute_force.h"
#include "tests/support/random_graph.h"
#include "tests/support/sanitized.h"
#include "tests/training_pipeline.h"
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
  for (uint64_t seed = 0; seed < drawn(4u); ++seed) {
    sets.emplace_back(fmt::format("random {}", seed), random_nodes(graph, seed));
  }
  for (const auto& [name, set] : sets) {
    SCOPED_TRACE(name);
    const RewrittenGraph now = rewritten(graph, {.remade = set, .cuts = {}});
    expect_remade(graph, now, set);
    EXPECT_EQ(now.graph.nodes().size() > graph.nodes().size(), !set.empty());
    EXPECT_EQ(graph_hash(now.graph) == graph_hash(graph), set.empty());
    const testing::Curve again = train(now.graph, config);
    EXPECT_EQ(again.loss, kept.loss);
    EXPECT_EQ(again.grad_norm, kept.grad_norm);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Remade, ::testing::Range<size_t>(0, 5),
                         [](const auto& i) { return std::string(models()[i.param].label); });

// --- Memory --------------------------------------------------------------------------------------

struct Bytes {
  int64_t held = 0, live = 0, peak = 0;  // without parameters and states
};

Bytes bytes_of(const Graph& traced, const std::vector<NodeId>& set) {
  const Graph graph = rewritten(traced, {.remade = set, .cuts = {}}).graph;
  const Plan plan = plan_for(graph, "1", {});
  const int64_t states = plan.predicted.state_bytes;
  EXPECT_LE(plan.predicted.held_bytes, live_bytes(graph, plan));
  return {plan.predicted.held_bytes - states, live_bytes(graph, plan) - states,
          peak_bytes(graph, plan) - states};
}

// With everything inside layers computed again, a layer more is the input of a layer more: 4 bytes
// an element in single precision, 2sbh in half.
TEST(Recomputation, KeepsOnlyTheLayersInputs) {
  for (size_t m : {0, 1, 2, 4}) {
    SCOPED_TRACE(models()[m].label);
    ModelConfig config = config_for(models()[m], 1);
    const int64_t input = 4 * config.batch * config.sequence * config.hidden;
    std::vector<Bytes> none, full, attention;
    for (int64_t layers : {4, 5}) {
      config.layers = layers;
      const Graph graph = testing::training_graph(config, DType::kF32);
      none.push_back(bytes_of(graph, {}));
      full.push_back(bytes_of(graph, inside_layers(graph)));
      attention.push_back(bytes_of(graph, nodes_of_ops(graph, {"attention"})));
    }
    // A layer of BERT ends in a norm, which keeps its mean and deviation.
    const int64_t statistics = m == 4 ? 2 * 4 * config.batch * config.sequence : 0;
    EXPECT_EQ(full[1].held - full[0].held, input + statistics);
    // Gradients of the added layer's parameters live until the update.
    EXPECT_LT(full[1].peak, none[1].peak / 2);
    EXPECT_LT(full[1].live, none[1].live / 2);
    EXPECT_GT(none[1].held - none[0].held, 8 * input);
    // Neither the output of attention is kept, nor its log-sum-exp.
    const int64_t once = input + 4 * config.batch * config.sequence * config.heads;
    EXPECT_EQ((none[1].held - none[0].held) - (attention[1].held - attention[0].held), once);
  }
}

// --- On several devices --------------------------------------------------------------------------

TEST(Recomputation, RandomPlansTrainLikeOneDevice) {
  int plans = 0;
  double worst = 0;
  for (size_t m = 0; m < drawn(size_t{5}); ++m) {
    for (int devices : m == 1 ? std::vector<int>{2, 4, 8} : std::vector<int>{2, 4}) {
      const ModelConfig config = config_for(models()[m], devices);
      const Graph traced = testing::training_graph(config, DType::kF64);
      const testing::Curve one = testing::on_one_device(traced, config);
      const std::vector<std::string> meshes = testing::meshes_of(devices);
      for (uint64_t seed = 0; seed < 2; ++seed) {
        const uint64_t own = 100 * m + 10 * static_cast<uint64_t>(devices) + seed;
        const std::vector<NodeId> set =
            seed == 0 ? inside_layers(traced) : random_nodes(traced, own);
        const RewrittenGraph now = rewritten(traced, {.remade = set, .cuts = {}});
        expect_remade(traced, now, set);
        const std::string& mesh = meshes[own % meshes.size()];
        SCOPED_TRACE(fmt::format("{} on {}, seed {}", models()[m].label, mesh, own));
        const Plan plan = plan_for(now.graph, mesh, own);
        const testing::Curve curve = testing::run(lower(now.graph, plan), config, &plan);
        const double d = testing::distance(curve, one);
        EXPECT_LE(d, testing::kF64);
        worst = std::max(worst, d);
        ++plans;
      }
    }
  }
  fmt::print("{} plans with recomputation, the worst differs by {:.1e}\n", plans, worst);
}

// --- The search on graphs with copies
// -------------------------------------------------------------

TEST(Recomputation, SearchEqualsBruteForce) {
  int cases = 0, copies = 0;
  for (unsigned seed = 0; seed < drawn(150u); ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937 random(seed);
    testing::RandomGraphOptions graph_options;
    graph_options.training = true;
    graph_options.ops = 2 + static_cast<int>(random() % 3);
    const Graph traced = testing::random_model_graph(random, graph_options);
    const std::vector<NodeId> set = random_nodes(traced, seed);
    const Graph graph = rewritten(traced, {.remade = set, .cuts = {}}).graph;
    if (graph.nodes().size() == traced.nodes().size()) continue;
    verify(graph);
    copies += static_cast<int>(graph.nodes().size() - traced.nodes().size());
    Cluster cluster = parse_cluster("cpu:4");
    cluster.tiers[0].link.bandwidth *= std::exp2(-static_cast<double>(random() % 14));
    cluster.device.bandwidth *= std::exp2(-static_cast<double>(random() % 10));
    Mesh mesh;
    mesh.axes = {{"a0", 4}};
    if (random() % 3 == 0) mesh.axes = {{"a0", 2}, {"a1", 2}};
    testing::BruteForce brute(graph, cluster, mesh);
    brute.restrict_to(2000, random);
    PlannerOptions options;
    options.preferences = brute.preferences();
    for (const MeshAxis& a : mesh.axes) options.mesh.sizes.push_back(a.size);
    options.mesh.roles.assign(mesh.axes.size(), AxisRole::kAny);
    const PlanResult result = find_plan(graph, cluster, options);
    ASSERT_TRUE(result.plan.has_value());
    EXPECT_NEAR(result.plan->certificate.cost / brute.cheapest(), 1, 1e-9);
    EXPECT_LE(result.plan->predicted.held_bytes, live_bytes(graph, *result.plan));
    ++cases;
  }
  fmt::print("{} graphs with {} copies\n", cases, copies);
  EXPECT_GT(cases, drawn(80));
}

// --- What cannot be remade
// ------------------------------------------------------------------------

// A sum over chunks that only the update reads (the experts' balance of all layers) moves there:
// asked to be remade, it has nothing that the backward could find made again.
TEST(Recomputation, LeavesASumOverChunksToTheUpdate) {
  ModelConfig config = config_for(models()[6], 2);
  config.layers = 3;
  const Graph traced = testing::step_graph(config, 1);
  const std::vector<bool> possible = can_be_remade(traced);
  std::vector<NodeId> sums;
  for (size_t n = 0; n < possible.size(); ++n) {
    if (possible[n] && traced.nodes()[n].op->sums) sums.push_back(static_cast<NodeId>(n));
  }
  ASSERT_FALSE(sums.empty());
  int moved = 0;
  for (int chunks : {2, 3, 4}) {
    const RewrittenGraph r = rewritten(traced, {sums, testing::even_cuts(traced, chunks)});
    verify(r.graph);
    for (size_t n = 0; n < r.origin.size(); ++n) {
      const bool was = std::binary_search(sums.begin(), sums.end(), r.origin[n]);
      moved += was && r.graph.nodes()[n].phase == Phase::kUpdate;
    }
  }
  EXPECT_GT(moved, 0);
}

TEST(Recomputation, RefusesWhatIsOverwritten) {
  const Graph graph = trace_training_step(
      "in place",
      [] {
        const Tensor x = data("x", {8, 16}, DType::kF32, {"batch", ""});
        const Tensor w = parameter("w", {16, 16}, {Init::Kind::kNormal, 0.1});
        const Tensor h = linear(x, w);  // read by the first gelu, then overwritten
        const Tensor a = gelu(h.clone());
        Tensor b = a * a;
        b += a;
        return mean(gelu(b));
      },
      {});
  const std::vector<bool> possible = can_be_remade(graph);
  int refused = 0, of_forward = 0;
  for (size_t n = 0; n < possible.size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.phase != Phase::kForward) {
      EXPECT_FALSE(possible[n]);
    } else {
      ++of_forward;
    }
    if (possible[n]) continue;
    refused += node.phase == Phase::kForward;
    EXPECT_THROW(rewritten(graph, {.remade = {static_cast<NodeId>(n)}, .cuts = {}}), InternalError);
  }
  EXPECT_EQ(refused, 1);
  EXPECT_GT(of_forward, 5);
  EXPECT_THROW(rewritten(graph, {.remade = {100000}, .cuts = {}}), InternalError);
  EXPECT_THROW(rewritten(graph, {.remade = {-1}, .cuts = {}}), InternalError);
}

}  // namespace
}  // namespace cleave
