// Optimizer states in the host's memory: the same numbers to the bit, less of the device's memory,
// and only when nothing else fits.
#include "planner/offload.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "planner/plan_json.h"
#include "tests/training_plans.h"

namespace cleave {
namespace {

using testing::config_for;
using testing::models;

std::vector<bool> all_states(const Graph& graph) {
  std::vector<bool> result;
  for (const Source& s : graph.sources()) result.push_back(can_be_offloaded(graph, s));
  return result;
}

TEST(Offload, OnlyWhatTheUpdateAloneNeeds) {
  const Graph graph = testing::training_graph(config_for(models()[1], 1), DType::kF32);
  int moments = 0;
  for (const Source& s : graph.sources()) {
    const bool moment = s.name.starts_with("adam.") && numel(graph.type(s.value).shape) >= 1024;
    EXPECT_EQ(can_be_offloaded(graph, s), moment) << s.name;
    moments += moment;
  }
  EXPECT_GT(moments, 10);
}

TEST(Offload, TrainsTheSameToTheBit) {
  for (size_t m : {1, 3, 5}) {
    for (int devices : {1, 2, 4}) {
      const ModelConfig config = config_for(models()[m], devices);
      const Graph graph = testing::training_graph(config, DType::kF32, models()[m].optimizer);
      const std::vector<std::string> meshes = testing::meshes_of(devices);
      for (uint64_t seed = 0; seed < 2; ++seed) {
        const std::string& mesh = meshes[(m + 5 * seed) % meshes.size()];
        SCOPED_TRACE(fmt::format("{} on {}, seed {}", models()[m].label, mesh, seed));
        Plan plan = testing::plan_for(graph, mesh, seed == 0 ? std::optional<uint64_t>() : seed);
        const Program on_device = lower(graph, plan);
        plan.on_host = all_states(graph);
        const Program on_host = lower(graph, plan);
        int64_t bytes = 0;
        for (size_t s = 0; s < plan.on_host.size(); ++s) {
          if (!plan.on_host[s]) continue;
          const Value v = graph.sources()[s].value;
          bytes += numel(plan.layout(v, 0).local_shape(plan.mesh)) * 4;
        }
        EXPECT_EQ(on_host.host_bytes, bytes);
        EXPECT_EQ(on_device.host_bytes, 0);
        if (bytes > 0) {
          EXPECT_LT(on_host.arena_bytes, on_device.arena_bytes - bytes / 2);
        }
        const testing::Curve one = testing::run(on_device, config, &plan);
        const testing::Curve two = testing::run(on_host, config, &plan);
        EXPECT_EQ(one.loss, two.loss);
        EXPECT_EQ(one.grad_norm, two.grad_norm);
      }
    }
  }
}

TEST(Offload, IsTheLastResortAndNoMoreThanNeeded) {
  const ModelConfig config = config_for(models()[0], 2);
  const Graph graph = testing::training_graph(config, DType::kF32);
  PlannerOptions options;
  options.mesh = parse_mesh("dp=2");
  options.live_bytes = [](const Graph& g, const Plan& p) {
    return std::vector<int64_t>{live_bytes(g, p)};
  };
  options.peak_bytes = [](const Graph& g, const Plan& p) {
    return std::vector<int64_t>{peak_bytes(g, p)};
  };
  const Cluster cluster = parse_cluster("cpu:2");
  options.space.offload = true;
  const PlanResult free = find_plan(graph, cluster, options);
  ASSERT_TRUE(free.plan.has_value());
  EXPECT_EQ(free.plan->predicted.host_bytes, 0);
  EXPECT_EQ(std::count(free.plan->on_host.begin(), free.plan->on_host.end(), true), 0);
  int offloaded = 0;
  for (double share = 0.95; share > 0.1; share -= 0.05) {
    options.memory_limit = share * static_cast<double>(free.plan->predicted.peak_bytes);
    SCOPED_TRACE(fmt::format("{:.2f} of the peak", share));
    options.space.offload = false;
    const PlanResult without = find_plan(graph, cluster, options);
    options.space.offload = true;
    const PlanResult with = find_plan(graph, cluster, options);
    if (without.plan) {
      ASSERT_TRUE(with.plan.has_value());
      EXPECT_EQ(with.plan->predicted.host_bytes, 0);
      EXPECT_EQ(with.plan->certificate.cost, without.plan->certificate.cost);
      continue;
    }
    if (!with.plan) continue;
    ++offloaded;
    const Plan& plan = *with.plan;
    const Program program = lower(*with.graph, plan);
    EXPECT_EQ(plan.predicted.peak_bytes, program.arena_bytes);
    EXPECT_EQ(plan.predicted.host_bytes, program.host_bytes);
    EXPECT_LE(static_cast<double>(program.arena_bytes), options.memory_limit);
    double seconds = 0;
    for (size_t s = 0; s < plan.on_host.size(); ++s) {
      if (!plan.on_host[s]) continue;
      const Value v = with.graph->sources()[s].value;
      const int64_t bytes = 4 * numel(plan.layout(v, 0).local_shape(plan.mesh));
      seconds += offload_seconds(cluster, static_cast<double>(bytes));
    }
    EXPECT_GT(seconds, 0);
    EXPECT_NEAR(plan.predicted.host_seconds, seconds, 1e-9 * seconds);
    EXPECT_NEAR(plan.predicted.compute_seconds + plan.predicted.communication_seconds,
                plan.predicted.step_seconds, 1e-9 * plan.predicted.step_seconds);
    // A saved plan keeps them there.
    const auto json = nlohmann::ordered_json::parse(plan_to_json(*with.graph, plan).dump());
    const Plan again = plan_from_json(json, *with.graph, {});
    EXPECT_EQ(again.on_host, plan.on_host);
    EXPECT_NEAR(again.certificate.cost, plan.certificate.cost, 1e-9 * plan.certificate.cost);
    EXPECT_EQ(peak_bytes(*with.graph, again), program.arena_bytes);
    // One more state on the device would be too many.
    Plan more = plan;
    const auto next = std::find(more.on_host.begin(), more.on_host.end(), true);
    ASSERT_NE(next, more.on_host.end());
    *next = false;
    EXPECT_GT(static_cast<double>(peak_bytes(*with.graph, more)), options.memory_limit);
  }
  EXPECT_GT(offloaded, 0);
}

TEST(Offload, OnlyCopiesTouchTheHost) {
  const Graph graph = testing::training_graph(config_for(models()[0], 1), DType::kF32);
  Plan plan = testing::plan_for(graph, "1", {});
  Program program = lower(graph, plan);
  for (ProgramSource& s : program.sources) {
    if (!s.name.starts_with("adam.m.wte")) continue;
    s.on_host = true;
    program.buffers[static_cast<size_t>(program.tensor(s.tensor).buffer)].host = true;
  }
  program.arena_bytes = 0;
  try {
    check(program);
    ADD_FAILURE() << "it was not noticed";
  } catch (const InternalError& e) {
    EXPECT_NE(std::string(e.what()).find("which only copies touch"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace cleave
