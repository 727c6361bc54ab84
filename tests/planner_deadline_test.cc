// A search with a deadline: it stops, everywhere, and is the same search when it has time enough.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "cli/model_spec.h"
#include "cli/planning.h"
#include "planner/planner.h"

namespace cleave {
namespace {

using Clock = std::chrono::steady_clock;

TracedModel small_model() {
  ModelSpec spec;
  spec.name = "gpt2:tiny";
  spec.set = {"layers=2", "hidden=32"};
  spec.batch = 4;
  return trace_model(std::move(spec), nullptr);
}

// On meshes alone, and over the whole space.
class Deadline : public ::testing::TestWithParam<bool> {
 protected:
  Deadline() : model_(small_model()), cluster_(parse_cluster("cpu:4")) {
    options_ = planner_options(model_.graph, "", "");
    options_.space.stages = options_.space.recompute = options_.space.offload = GetParam();
  }

  TracedModel model_;
  Cluster cluster_;
  PlannerOptions options_;
};

TEST_P(Deadline, StopsASearchWhenItHasPassed) {
  options_.deadline = Clock::now();
  EXPECT_THROW(find_plan(model_.graph, cluster_, options_), SearchStopped);
}

TEST_P(Deadline, StopsASearchUnderWay) {
  // The deadline passes while the search waits for its first question about memory.
  std::atomic<int> asked = 0;
  options_.deadline = Clock::now() + std::chrono::seconds(2);
  const auto live_bytes = options_.live_bytes;
  options_.live_bytes = [&, live_bytes](const Graph& graph, const Plan& plan) {
    ++asked;
    std::this_thread::sleep_until(options_.deadline);
    return live_bytes(graph, plan);
  };
  EXPECT_THROW(find_plan(model_.graph, cluster_, options_), SearchStopped);
  EXPECT_GE(asked, 1);
}

TEST_P(Deadline, ChangesNothingWhenThereIsTime) {
  const PlanResult without = find_plan(model_.graph, cluster_, options_);
  options_.deadline = Clock::now() + std::chrono::hours(1);
  const PlanResult with = find_plan(model_.graph, cluster_, options_);
  ASSERT_TRUE(without.plan && with.plan);
  EXPECT_EQ(without.plan->choices, with.plan->choices);
  EXPECT_EQ(without.plan->certificate.cost, with.plan->certificate.cost);
  EXPECT_EQ(without.candidates.size(), with.candidates.size());
}

INSTANTIATE_TEST_SUITE_P(Spaces, Deadline, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "whole" : "meshes"; });

}  // namespace
}  // namespace cleave
