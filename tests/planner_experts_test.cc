// Expert parallelism, found by a planner that knows no experts: tokens are split by sequence, the
// experts by number, and between the two lies an all-to-all.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>

#include "executor/lower.h"
#include "models/trace.h"
#include "planner/planner.h"
#include "tests/training_plans.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

struct Planned {
  Graph graph;
  Plan plan;
};

// In whatever memory it takes.
Planned plan_model(const ModelConfig& config, DType dtype, const std::string& cluster,
                   const std::string& mesh, const Preferences& preferences = {}) {
  TraceOptions options;
  options.dtype = dtype;
  Planned p{trace(config, options), {}};
  PlannerOptions planner;
  planner.mesh = parse_mesh(mesh);
  planner.memory_limit = std::numeric_limits<double>::infinity();
  planner.preferences = preferences;
  PlanResult result = find_plan(p.graph, parse_cluster(cluster), planner);
  EXPECT_TRUE(result.plan.has_value());
  if (result.plan) p.plan = std::move(*result.plan);
  return p;
}

// The letters that forward nodes of an op in the experts' scope are split by on the only axis, and
// how often.
std::map<char, int> splits(const Planned& p, std::string_view op) {
  std::map<char, int> found;
  for (size_t n = 0; n < p.graph.nodes().size(); ++n) {
    const Node& node = p.graph.nodes()[n];
    const std::string& scope = p.graph.scopes()[static_cast<size_t>(node.scope)];
    if (node.phase != Phase::kForward || node.op->name != op || !scope.ends_with(".experts")) {
      continue;
    }
    const int factor = p.plan.nodes[n].axes[0].factor;
    ++found[factor < 0 ? '-' : node.signature->factors()[static_cast<size_t>(factor)].letter];
  }
  return found;
}

struct Traffic {
  int64_t count = 0;
  double bytes = 0;
};

Traffic all_to_alls(const Planned& p, Phase phase) {
  Traffic t;
  for (const PlannedCollectives& c : p.plan.collectives) {
    if (c.parameters || c.phase != phase || c.kind != StepKind::kAllToAll) continue;
    t.count += c.count;
    t.bytes += c.bytes;
  }
  return t;
}

TEST(Experts, AreSplitWhereTheTokensAreNot) {
  ModelConfig config = model_named("mixtral:8x7b");
  config.batch = 64;
  const auto with_layers = [&](int64_t layers) {
    config.layers = layers;
    return plan_model(config, DType::kBF16, "8xh100", "8");
  };
  const Planned five = with_layers(5), four = with_layers(4);
  // Tokens go out and come back by sequence; the experts' products go by expert.
  EXPECT_EQ(splits(five, "dispatch"), (std::map<char, int>{{'b', 5}}));
  EXPECT_EQ(splits(five, "combine"), (std::map<char, int>{{'b', 5}}));
  EXPECT_EQ(splits(five, "matmul"), (std::map<char, int>{{'e', 15}}));
  EXPECT_EQ(splits(five, "swiglu"), (std::map<char, int>{{'e', 5}}));
  EXPECT_NEAR(five.plan.certificate.gap(), 0, 1e-9);
  // A layer: there and back, forward and backward, each of all choices' rows of 8 sequences; a
  // rank keeps an eighth.
  for (const Phase phase : {Phase::kForward, Phase::kBackward}) {
    const Traffic a = all_to_alls(five, phase), b = all_to_alls(four, phase);
    EXPECT_EQ(a.count - b.count, 2);
    const double rows = 8 * 4096 * 2 * config.capacity_factor;
    EXPECT_NEAR(a.bytes - b.bytes, 2 * rows * 4096 * 2 * 7 / 8, 1);
  }
}

// Each rank has its own experts' weights and states, and nothing of others': no gradient of them is
// reduced.
TEST(Experts, WeightsOfSplitExpertsStayWhereTheyAre) {
  ModelConfig config = model_named("mixtral:8x7b");
  config.batch = 64;
  config.layers = 4;
  const Planned p = plan_model(config, DType::kBF16, "8xh100", "8");
  int found = 0;
  for (const Source& s : p.graph.sources()) {
    if (s.name.find(".experts.") == std::string::npos) continue;
    ASSERT_FALSE(p.plan.values[static_cast<size_t>(s.value)].empty());
    const Placement held = p.plan.values[static_cast<size_t>(s.value)][0].placements[0];
    EXPECT_TRUE(held.is_shard() && held.atom == 0) << s.name;
    ++found;
  }
  EXPECT_EQ(found, 4 * 3 * 3);
}

// The axes that split the experts' products by number, together.
int64_t ways_by_expert(const Graph& graph, const Plan& plan) {
  int64_t least = std::numeric_limits<int64_t>::max();
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    const std::string& scope = graph.scopes()[static_cast<size_t>(node.scope)];
    if (node.phase != Phase::kForward || node.op->name != "matmul" || !scope.ends_with(".experts"))
      continue;
    int64_t ways = 1;
    for (size_t a = 0; a < plan.nodes[n].axes.size(); ++a) {
      const int factor = plan.nodes[n].axes[a].factor;
      const bool by_expert =
          factor >= 0 && node.signature->factors()[static_cast<size_t>(factor)].letter == 'e';
      if (by_expert) ways *= plan.mesh.axes[a].size;
    }
    least = std::min(least, ways);
  }
  return least;
}

// Nobody asks for experts to be split: on a node, the mesh and what is computed again left to the
// search, within the node's memory, they are; without, it takes longer.
TEST(Experts, AreSplitByWhoeverSearchesAllMeshes) {
  ModelConfig config = model_named("mixtral:8x7b");
  config.batch = 64;
  config.layers = 8;
  TraceOptions trace_options;
  trace_options.dtype = DType::kBF16;
  const Graph graph = trace(config, trace_options);
  const Cluster cluster = parse_cluster("8xh100");
  PlannerOptions options;
  options.space.recompute = true;
  options.live_bytes = stage_live_bytes;
  const PlanResult free = find_plan(graph, cluster, options);
  ASSERT_TRUE(free.plan);
  EXPECT_LE(static_cast<double>(free.plan->predicted.peak_bytes), cluster.device.memory);
  EXPECT_EQ(ways_by_expert(*free.graph, *free.plan), 8);
  options.preferences.choice = [&](NodeId leader, const std::vector<AxisOption>& choice) {
    const Node& node = graph.node(leader);
    const bool experts = graph.scopes()[static_cast<size_t>(node.scope)].ends_with(".experts");
    for (const AxisOption& o : choice) {
      if (experts && o.letter == 'e') return std::numeric_limits<double>::infinity();
    }
    return 0.0;
  };
  options.space.recompute = false;  // preferences speak of this graph's nodes
  options.memory_limit = std::numeric_limits<double>::infinity();
  const PlanResult whole = find_plan(graph, cluster, options);
  ASSERT_TRUE(whole.plan);
  EXPECT_EQ(ways_by_expert(*whole.graph, *whole.plan), 1);
  fmt::print("experts split: {:.0f} ms; not, in any memory: {:.0f} ms and {:.0f} GiB a device\n",
             1e3 * free.plan->predicted.step_seconds, 1e3 * whole.plan->predicted.step_seconds,
             static_cast<double>(whole.plan->predicted.peak_bytes) / (1 << 30));
  EXPECT_GT(static_cast<double>(whole.plan->predicted.peak_bytes), cluster.device.memory);
}

// The same on CPU devices, run: with a capacity an all-to-all, without one partial sums.
TEST(Experts, SplitByNumberTrainLikeOneDevice) {
  const auto by_number = [](const Graph& graph) {
    Preferences p;
    p.choice = [&graph](NodeId leader, const std::vector<AxisOption>& options) {
      const Node& node = graph.node(leader);
      const bool product = node.op->name == "matmul" || node.op->name == "grouped_matmul";
      const bool here = graph.scopes()[static_cast<size_t>(node.scope)].ends_with(".experts");
      return product && here && options[0].letter != 'e' ? 1e3 : 0.0;
    };
    return p;
  };
  for (const char* capacity : {"capacity_factor=1.25", "capacity_factor=0"}) {
    for (const char* name : {"mixtral:tiny", "deepseek:tiny"}) {
      for (const int devices : {2, 4, 8}) {
        SCOPED_TRACE(fmt::format("{} {} on {}", name, capacity, devices));
        const ModelConfig config = config_for({"", name, {capacity}}, devices);
        const Graph graph = training_graph(config, DType::kF64);
        PlannerOptions options;
        options.mesh = parse_mesh(fmt::format("{}", devices));
        options.preferences = by_number(graph);
        const auto found = find_plan(graph, parse_cluster(fmt::format("cpu:{}", devices)), options);
        ASSERT_TRUE(found.plan);
        const Planned p{graph, *found.plan};
        const bool grouped = config.capacity_factor == 0;
        const int products = 3 * static_cast<int>(config.layers - config.dense_layers);
        EXPECT_EQ(splits(p, grouped ? "grouped_matmul" : "matmul"),
                  (std::map<char, int>{{'e', products}}));
        const Curve one = on_one_device(graph, config);
        EXPECT_LE(distance(run(lower(graph, p.plan), config, &p.plan), one), kF64);
      }
    }
  }
}

}  // namespace
}  // namespace cleave
