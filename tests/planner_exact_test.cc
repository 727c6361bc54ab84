// The planner against brute force on random small graphs, and against CBC on training steps: equal
// cost, always. Brute force reads docs/planner.md anew and shares only the families' choices and
// the prices of single ops and conversions with the planner.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <random>

#include "executor/lower.h"
#include "graph/verify.h"
#include "models/trace.h"
#include "planner/planner.h"
#include "tests/support/brute_force.h"
#include "tests/support/cbc.h"
#include "tests/support/random_graph.h"

namespace cleave {
namespace {

using testing::BruteForce;
using testing::random_model_graph;
using testing::RandomGraphOptions;
using testing::SpaceRules;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Shapes {
  const char* cluster;
  std::vector<int64_t> mesh;
};
const std::vector<Shapes>& meshes() {
  static const std::vector<Shapes> all = {{"cpu:2", {2}},      {"cpu:3", {3}},    {"cpu:4", {4}},
                                          {"cpu:4", {2, 2}},   {"cpu:6", {2, 3}}, {"2x2xh100", {4}},
                                          {"2x2xcpu", {2, 2}}, {"6xh100", {3, 2}}};
  return all;
}

// Real constants make one term drown the others in graphs as small as these.
Cluster random_cluster(std::mt19937& random, const char* spec) {
  Cluster c = parse_cluster(spec);
  const auto scaled = [&](double& x, double by) {
    x *= std::exp2(std::uniform_real_distribution<double>(-by, by)(random));
  };
  for (Tier& tier : c.tiers) {
    scaled(tier.link.latency, 3), scaled(tier.link.start, 6);
    tier.link.bandwidth *= std::exp2(std::uniform_real_distribution<double>(-14, 0)(random));
  }
  scaled(c.device.op_latency, 4);
  c.device.bandwidth *= std::exp2(std::uniform_real_distribution<double>(-14, 0)(random));
  c.device.f32.peak *= std::exp2(std::uniform_real_distribution<double>(-14, 0)(random));
  c.device.vector_flops = c.device.f32.peak;
  c.device.bf16.peak = 2 * c.device.f32.peak;
  return c;
}

struct Case {
  Graph graph;
  Cluster cluster;
  Mesh mesh;
  PlannerOptions options;
};

Case random_case(std::mt19937& random) {
  Case c;
  RandomGraphOptions graph;
  graph.training = random() % 2 == 0;
  graph.ops = 2 + static_cast<int>(random() % (graph.training ? 3 : 5));
  graph.bf16 = random() % 6 == 0;
  c.graph = random_model_graph(random, graph);
  // Costs of the forward and the backward then count several times.
  if (random() % 3 == 0) c.graph.micro_batches = 2 + static_cast<int64_t>(random() % 3);
  if (!accumulation_mistake(c.graph).empty()) c.graph.micro_batches = 1;
  const Shapes& shapes = meshes()[random() % meshes().size()];
  c.cluster = random_cluster(random, shapes.cluster);
  c.options.mesh.sizes = shapes.mesh;
  c.options.mesh.roles.assign(shapes.mesh.size(), AxisRole::kAny);
  c.options.memory_limit = kInfinity;
  for (size_t a = 0; a < shapes.mesh.size(); ++a) {
    c.mesh.axes.push_back({a == 0 ? "a0" : "a1", shapes.mesh[a]});
  }
  return c;
}

// Every plan that there is, of 2,400 graphs; where there are too many, of random choices.
TEST(Exact, BruteForce) {
  int whole = 0, once = 0;
  double nodes = 0, split = 0, plans = 0;
  constexpr int kGraphs = 2400;
  for (int seed = 0; seed < kGraphs; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937 random(static_cast<unsigned>(seed));
    Case c = random_case(random);
    BruteForce brute(c.graph, c.cluster, c.mesh);
    const double all = brute.assignments();
    brute.restrict_to(c.mesh.axes.size() == 1 ? 4000 : 500, random);
    whole += brute.assignments() == all;
    if (brute.assignments() < all) c.options.preferences = brute.preferences();
    const double expected = brute.cheapest();
    const PlanResult result = find_plan(c.graph, c.cluster, c.options);
    ASSERT_TRUE(result.plan.has_value());
    ASSERT_NEAR(result.plan->certificate.cost, expected, 1e-9 * expected);
    ASSERT_NEAR(result.plan->certificate.gap(), 0, 1e-12);
    once += std::count(brute.once().begin(), brute.once().end(), true) > 0;
    plans += brute.assignments();
    nodes += static_cast<double>(c.graph.nodes().size());
    for (const NodePlan& n : result.plan->nodes) split += n.axes[0].factor >= 0;
  }
  std::printf(
      "%d graphs of %.1f nodes, %d of them whole, %d with ops run once a step; %.0f assignments "
      "each; %.0f %% split\n",
      kGraphs, nodes / kGraphs, whole, once, plans / kGraphs, 100 * split / nodes);
  EXPECT_GT(split, 0.2 * nodes) << "the graphs say nothing";
  EXPECT_GT(once, kGraphs / 50) << "the graphs say nothing of what is made once";
}

// What the space leaves out: ways that several families could share, and forms in which nobody
// makes or reads a value.
TEST(Exact, WhatTheSpaceLeavesOut) {
  double most_shared = 0, most_anywhere = 0;
  int gains_shared = 0, gains_anywhere = 0, graphs = 0, wrong = 0;
  for (int seed = 0; graphs < 400; ++seed) {
    std::mt19937 random(static_cast<unsigned>(seed) + 100000);
    Case c = random_case(random);
    c.graph.micro_batches = 1;  // these graphs have no accumulators, which is where forms matter
    const auto cheapest = [&](SpaceRules rules) {
      std::mt19937 same(static_cast<unsigned>(seed));
      BruteForce brute(c.graph, c.cluster, c.mesh, rules);
      brute.restrict_to(c.mesh.axes.size() == 1 ? 2000 : 100, same);
      c.options.preferences = {};
      return brute.cheapest();
    };
    const double plain = cheapest({});
    const double shared = cheapest({.shared = true}), anywhere = cheapest({.anywhere = true});
    ++graphs;
    wrong += shared > plain * (1 + 1e-9) || anywhere > plain * (1 + 1e-9);
    gains_shared += shared < plain * (1 - 1e-9);
    gains_anywhere += anywhere < plain * (1 - 1e-9);
    most_shared = std::max(most_shared, plain / shared - 1);
    most_anywhere = std::max(most_anywhere, plain / anywhere - 1);
  }
  std::printf("%d graphs: sharing gains in %d (at most %.2f %%), other forms in %d (%.2f %%)\n",
              graphs, gains_shared, 100 * most_shared, gains_anywhere, 100 * most_anywhere);
  EXPECT_EQ(wrong, 0) << "a larger space cannot cost more";
  EXPECT_LT(most_shared, 0.03);
  EXPECT_LT(most_anywhere, 0.03);
}

// --- Training steps of models ----------------------------------------------------------------

struct ModelCase {
  const char* model;
  int64_t layers;
  const char* cluster;
  std::vector<int64_t> mesh;
  bool training = true;
};

Graph step_of(const ModelCase& c) {
  ModelConfig config = model_named(c.model);
  config.layers = c.layers;
  config.batch = 8;
  return trace(config, {.dtype = DType::kBF16, .training = c.training, .optimizer = {}});
}

PlannerOptions without_limit(const std::vector<int64_t>& sizes) {
  PlannerOptions options;
  options.mesh.sizes = sizes;
  options.mesh.roles.assign(sizes.size(), AxisRole::kAny);
  options.memory_limit = kInfinity;
  return options;
}

// CBC's tolerances are absolute: costs are handed to it in units that make the optimum 1e4.
MinSumProblem scaled(const MinSumProblem& problem, double by) {
  MinSumProblem result = problem;
  std::map<const CostTable*, std::shared_ptr<const CostTable>> tables;
  for (CostTerm& term : result.terms) {
    auto& table = tables[term.table.get()];
    if (!table) {
      CostTable copy = *term.table;
      for (double& c : copy.cost) c *= by;
      table = std::make_shared<const CostTable>(std::move(copy));
    }
    term.table = table;
  }
  return result;
}

TEST(Exact, Cbc) {
  if (!cbc_available()) GTEST_SKIP() << "this build has no CBC";
  const std::vector<ModelCase> cases = {
      {"mlp:tiny", 2, "cpu:2", {2}},
      {"mlp:large", 4, "8xh100", {8}},
      {"gpt2:tiny", 2, "cpu:4", {4}},
      {"gpt2:355m", 2, "8xh100", {8}},
      {"llama:tiny", 2, "cpu:4", {4}},
      {"llama:8b", 2, "8xh100", {8}},
      {"gpt2:355m", 1, "4xh100", {2, 2}, false},
      {"bert:large", 2, "4xh100", {4}},
  };
  for (const ModelCase& c : cases) {
    SCOPED_TRACE(c.model);
    const Graph graph = step_of(c);
    const Cluster cluster = parse_cluster(c.cluster);
    const PlanResult result = find_plan(graph, cluster, without_limit(c.mesh));
    ASSERT_TRUE(result.plan.has_value());
    Mesh mesh;
    for (int64_t size : c.mesh) mesh.axes.push_back({fmt::format("a{}", mesh.axes.size()), size});
    const Dimensions dims = find_dimensions(graph);
    Restrictions restrictions;
    restrictions.roles.assign(c.mesh.size(), AxisRole::kAny);
    const Families families(graph, dims, cluster, mesh, restrictions);
    const Costing costing = Costing::plain(graph.micro_batches);
    const PlacementProblem problem(graph, dims, families, cluster, mesh, {}, costing, {});
    const double cost = result.plan->certificate.cost;
    const auto start = std::chrono::steady_clock::now();
    const auto answer = solve_with_cbc(scaled(problem.problem(), 1e4 / cost));
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    ASSERT_TRUE(answer.has_value());
    std::printf("%s, %lld layers on %s: %zu variables, %.6g s; CBC %.2f s, %d nodes\n", c.model,
                static_cast<long long>(c.layers), c.cluster, problem.problem().domain_sizes.size(),
                cost, seconds, answer->nodes);
    EXPECT_NEAR(answer->cost, 1e4, 1e-4);
  }
}

// The optimum of a training step on a mesh of one axis, by the oracle's own tables.
double optimum(const Graph& graph, const ModelCase& c, SpaceRules rules) {
  Mesh mesh;
  mesh.axes = {{"a0", c.mesh.at(0)}};
  const Cluster cluster = parse_cluster(c.cluster);  // the oracle refers to it
  BruteForce brute(graph, cluster, mesh, rules);
  const MinSumResult result = solve_by_elimination(brute.tables());
  EXPECT_TRUE(result.solved());
  return result.solution.cost;
}

// Families tie an op to its backward. Untied, each op of the backward is split as it likes. Both
// with ways shared (see WhatTheSpaceLeavesOut): families that are taken apart share more of them.
TEST(Exact, WhatTyingFamiliesCosts) {
  for (const ModelCase& c : std::vector<ModelCase>{{"mlp:tiny", 2, "cpu:4", {4}},
                                                   {"mlp:large", 2, "8xh100", {8}},
                                                   {"gpt2:tiny", 2, "cpu:4", {4}},
                                                   {"gpt2:355m", 2, "8xh100", {8}},
                                                   {"llama:tiny", 2, "cpu:4", {4}},
                                                   {"llama:8b", 2, "8xh100", {8}},
                                                   {"bert:large", 2, "8xh100", {8}}}) {
    SCOPED_TRACE(c.model);
    const Graph graph = step_of(c);
    const PlanResult found = find_plan(graph, parse_cluster(c.cluster), without_limit(c.mesh));
    ASSERT_TRUE(found.plan.has_value());
    const double cost = found.plan->certificate.cost;
    EXPECT_NEAR(cost, optimum(graph, c, {}), 1e-9 * cost);
    const double tied = optimum(graph, c, {.shared = true});
    const double untied = optimum(testing::with_backward_untied(graph), c, {.shared = true});
    std::printf(
        "%s on %s: found %.6g s, with ways shared %.6g s (%.3f %% less), untied %.6g s "
        "(%.3f %% less)\n",
        c.model, c.cluster, cost, tied, 100 * (cost / tied - 1), untied, 100 * (tied / untied - 1));
    EXPECT_LE(tied, cost * (1 + 1e-9));
    EXPECT_LE(untied, tied * (1 + 1e-9));
    EXPECT_LT(cost, untied * 1.005) << "contraction lost more than it should";
  }
}

}  // namespace
}  // namespace cleave
