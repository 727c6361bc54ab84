// The wide search: against the exact optimum, the same on any number of threads, plans that can be
// run, pins that are kept, and the folded graph beside the whole one.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "executor/lower.h"
#include "models/trace.h"
#include "planner/outline.h"
#include "planner/plan_json.h"
#include "planner/solver.h"
#include "tests/planner_joint_cases.h"

namespace cleave {
namespace {

using testing::JointCase;
using testing::random_case;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Its menu of recomputation holds more than the exhaustive one: compared without.
TEST(Wide, NotBelowTheOptimum) {
  std::vector<double> above;
  int none = 0;
  for (int seed = 0; above.size() < 60; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937 random(static_cast<unsigned>(seed));
    JointCase c = random_case(random);
    if (c.cluster.size() > 3 || c.recipe.contracts) continue;  // exact in moments
    c.options.space.recompute = false;
    c.options.memory_limit = kInfinity;
    c.options.space.exhaustive = false;
    PlanResult wide = find_plan(*c.graph, c.cluster, c.options);
    ASSERT_TRUE(wide.plan.has_value());
    if (seed % 2 == 1) {  // a limit that asks for something else
      c.options.memory_limit = 0.9 * static_cast<double>(wide.plan->predicted.peak_bytes);
      wide = find_plan(*c.graph, c.cluster, c.options);
    }
    c.options.space.exhaustive = true;
    c.options.pins.schedule = std::nullopt;
    const PlanResult exact = find_plan(*c.graph, c.cluster, c.options);
    if (!wide.plan) {
      none += exact.plan.has_value();
      continue;
    }
    ASSERT_TRUE(exact.plan.has_value());
    const double optimum = exact.plan->certificate.cost;
    const bool zero_bubble = wide.plan->pipeline.schedule == ScheduleKind::kZeroBubble;
    if (!zero_bubble) {  // which the exhaustive space leaves out
      EXPECT_GE(wide.plan->certificate.cost, optimum * (1 - 1e-9));
    }
    EXPECT_LE(wide.plan->certificate.lower_bound, optimum * (1 + 1e-9));
    above.push_back(wide.plan->certificate.cost / optimum - 1);
  }
  std::sort(above.begin(), above.end());
  std::printf(
      "above the optimum: median %.2f %%, nine in ten %.2f %%, worst %.2f %%; %d not found\n",
      100 * above[above.size() / 2], 100 * above[above.size() * 9 / 10], 100 * above.back(), none);
  EXPECT_LT(above[above.size() / 2], 0.01);
}

TEST(Wide, ThreadsDoNotMatter) {
  for (int seed = 0; seed < 12; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937 random(static_cast<unsigned>(seed));
    JointCase c = random_case(random);
    c.options.space.exhaustive = false;
    c.options.memory_limit = kInfinity;
    std::vector<std::string> found;
    for (int threads : {1, 4}) {
      c.options.threads = threads;
      PlanResult r = find_plan(*c.graph, c.cluster, c.options);
      ASSERT_TRUE(r.plan.has_value());
      r.plan->search_seconds = 0;
      found.push_back(plan_to_json(*r.graph, *r.plan).dump());
    }
    EXPECT_EQ(found[0], found[1]);
  }
}

std::shared_ptr<const Graph> model(const char* name, int64_t layers, int64_t micro_batches) {
  ModelConfig config = model_named(name);
  config.layers = layers;
  config.batch = 8 / micro_batches;
  TraceOptions options;
  options.optimizer.micro_batches = micro_batches;
  return std::make_shared<const Graph>(trace(config, options));
}

PlannerOptions wide_options(const std::vector<std::string>& pins) {
  PlannerOptions options;
  options.space.stages = options.space.recompute = true;
  options.pins = parse_pins(pins, "--pin");
  options.live_bytes = stage_live_bytes;
  options.peak_bytes = stage_peak_bytes;
  return options;
}

// Pins name ops of the graph that is planned, which is not the one that was given when the search
// divides the step into micro-batches.
TEST(Wide, StagesAndCutsArePinnedInEveryNumberOfMicroBatches) {
  const auto graph = model("gpt2:tiny", 4, 1);
  for (const std::string pin : {"h.1=stage 1", "h.2=cut", "h.0=stage 0"}) {
    SCOPED_TRACE(pin);
    PlannerOptions options = wide_options({"pp=2", "schedule=1f1b", pin});
    options.trace = [](int64_t micro_batches) { return model("gpt2:tiny", 4, micro_batches); };
    const PlanResult r = find_plan(*graph, parse_cluster("cpu:4"), options);
    ASSERT_TRUE(r.plan.has_value());
    ASSERT_GT(r.graph->micro_batches, 1);
    const NodePins pinned = node_pins(options.pins, *r.graph);
    for (size_t n = 0; n < r.graph->nodes().size(); ++n) {
      if (r.graph->nodes()[n].phase != Phase::kForward || pinned.stage_of[n] < 0) continue;
      if (r.graph->nodes()[n].op->transfer) continue;  // of the scope that it leaves
      EXPECT_EQ(r.plan->pipeline.stage_of(static_cast<NodeId>(n)), pinned.stage_of[n]);
    }
    for (NodeId n : pinned.cuts) {
      EXPECT_NE(r.plan->pipeline.stage_of(n), r.plan->pipeline.stage_of(n - 1));
    }
  }
}

// Stages that do not fit when they are even do fit with fewer layers first: holding less costs
// less.
TEST(Wide, HoldsLessRatherThanMovingLayers) {
  ModelConfig config = model_named("gpt2:355m");
  config.layers = 8;
  TraceOptions options;
  options.dtype = DType::kBF16;
  options.optimizer.micro_batches = 16;
  const Graph graph = trace(config, options);
  PlannerOptions wide =
      wide_options({"pp=4", "tp=2", "schedule=1f1b", "chunks=1", "recompute=selective", "zero=0"});
  wide.memory_limit = kInfinity;
  const PlanResult free = find_plan(graph, parse_cluster("8xh100"), wide);
  ASSERT_TRUE(free.plan);
  wide.memory_limit = 0.95 * static_cast<double>(free.plan->predicted.peak_bytes);
  const PlanResult tight = find_plan(graph, parse_cluster("8xh100"), wide);
  ASSERT_TRUE(tight.plan);
  // Moving a layer on would be 22 % slower.
  EXPECT_LE(tight.plan->predicted.step_seconds, 1.02 * free.plan->predicted.step_seconds);
}

TEST(Wide, PlansCanBeRunAndPinsAreKept) {
  const auto graph = model("gpt2:tiny", 4, 4);
  const Cluster cluster = parse_cluster("cpu:4");
  for (const std::vector<std::string>& pins :
       std::vector<std::vector<std::string>>{{},
                                             {"pp=2"},
                                             {"pp=4"},
                                             {"pp=2", "chunks=2"},
                                             {"pp=2", "schedule=zero-bubble"},
                                             {"pp=2", "recompute=full"},
                                             {"recompute=selective"},
                                             {"pp=1"}}) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(pins, " ")));
    PlannerOptions options = wide_options(pins);
    const PlanResult r = find_plan(*graph, cluster, options);
    ASSERT_TRUE(r.plan.has_value());
    const Plan& plan = *r.plan;
    const Pins& p = options.pins;
    if (p.stages) {
      EXPECT_EQ(plan.pipeline.stages, *p.stages);
    }
    if (p.chunks) {
      EXPECT_EQ(plan.pipeline.chunks, *p.chunks);
    }
    if (p.schedule) {
      EXPECT_EQ(plan.pipeline.schedule, *p.schedule);
    }
    if (p.recompute) {
      EXPECT_FALSE(plan.rewrite.remade.empty());
    }
    lower(*r.graph, plan);  // which checks the program's types
    const auto peaks = stage_peak_bytes(*r.graph, plan);
    EXPECT_EQ(peaks.size(), static_cast<size_t>(plan.pipeline.stages));
    EXPECT_EQ(*std::max_element(peaks.begin(), peaks.end()), plan.predicted.peak_bytes);
    EXPECT_LE(plan.certificate.lower_bound, plan.certificate.cost);
    // And within a limit that it does not fit in: another plan, or none.
    options.memory_limit = 0.8 * static_cast<double>(plan.predicted.peak_bytes);
    const PlanResult less = find_plan(*graph, cluster, options);
    if (!less.plan) continue;
    for (int64_t peak : stage_peak_bytes(*less.graph, *less.plan)) {
      EXPECT_LE(static_cast<double>(peak), options.memory_limit);
    }
  }
}

// Layers left out cost what those that stand for them do.
TEST(Wide, FoldedIsWhole) {
  for (const char* name : {"mlp:tiny", "gpt2:tiny", "llama:tiny", "bert:base"}) {
    for (const char* spec : {"cpu:2", "cpu:4", "8xh100"}) {
      SCOPED_TRACE(fmt::format("{} on {}", name, spec));
      const auto graph = model(name, 7, 1);
      const Cluster cluster = parse_cluster(spec);
      const Outline outline = outline_of(graph);
      const PreparedGraph folded = prepare_folded(outline, {});
      EXPECT_LT(folded.graph->nodes().size(), graph->nodes().size());
      std::vector<NodeId> same(graph->nodes().size());
      for (size_t n = 0; n < same.size(); ++n) same[n] = static_cast<NodeId>(n);
      const PreparedGraph whole = prepare(outline, graph, same);
      Mesh mesh;
      mesh.axes = {{"a0", cluster.size()}};
      Costing costing;
      for (const FoldedGroup& g : outline.folded.groups) {
        costing.runs.push_back({g.weight, g.weight, g.weight});
        costing.prices.emplace_back();
        costing.in_flight.push_back(1);
      }
      const std::vector<AxisRole> roles = {AxisRole::kAny};
      const Solved a = PlacementSolver(folded, cluster, mesh, roles, {}).solve(costing);
      const Solved b = PlacementSolver(whole, cluster, mesh, roles, {}).solve(Costing::plain(1));
      ASSERT_TRUE(a.plan && b.plan);
      std::printf("%s on %s: folded %.9g, whole %.9g\n", name, spec, a.minimum, b.minimum);
      EXPECT_NEAR(a.minimum, b.minimum, 1e-9 * b.minimum);
    }
  }
}

}  // namespace
}  // namespace cleave
