// The exhaustive search against brute force over the whole joint space, with a memory limit,
// pipelines and recomputation.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <limits>
#include <optional>
#include <random>

#include "planner/planner.h"
#include "tests/planner_joint_cases.h"
#include "tests/support/joint_brute_force.h"

namespace cleave::testing {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Forbids more choices until brute force is quick; no space when it never is.
inline std::optional<JointSpace> small_space(JointCase& c, uint64_t seed, double visits) {
  for (double share : {0.0, 0.5, 0.7, 0.85}) {
    c.options.preferences = share == 0 ? Preferences{} : some_choices(seed, share);
    JointSpace space = joint_space(*c.graph, c.cluster, c.options, c.recipe.batch, visits);
    if (!space.too_large) return space;
  }
  return std::nullopt;
}

// The least bytes that any plan needs, what the fastest holds, and limits in between.
inline std::vector<double> limits_of(const JointSpace& space, std::mt19937& random) {
  const double least = space.frontier.front().bytes, most = space.frontier.back().bytes;
  std::vector<double> limits = {std::numeric_limits<double>::infinity(), least + 0.5};
  for (int i = 0; i < 2; ++i) {
    limits.push_back(least + (most - least) * std::uniform_real_distribution<double>(0, 1)(random));
  }
  return limits;
}

// Problems of the seeds first, first + stride, ...
inline void compare_with_brute_force(int first, int stride, int wanted) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  int problems = 0, graphs = 0, pipelines = 0, recomputing = 0, tight = 0, dropped = 0, once = 0;
  double plans = 0, variants = 0, brute_seconds = 0, search_seconds = 0;
  for (int seed = first; problems < wanted; seed += stride) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937 random(static_cast<unsigned>(seed));
    JointCase c = random_case(random);
    auto start = std::chrono::steady_clock::now();
    const auto space = small_space(c, static_cast<uint64_t>(seed), 1e5);
    brute_seconds += seconds_since(start);
    if (!space) {
      ++dropped;
      continue;
    }
    ++graphs;
    plans += space->plans;
    variants += static_cast<double>(space->variants);
    start = std::chrono::steady_clock::now();
    for (const double limit : limits_of(*space, random)) {
      c.options.memory_limit = limit;
      const double expected = space->cheapest(limit);
      const PlanResult result = find_plan(*c.graph, c.cluster, c.options);
      ASSERT_TRUE(result.plan.has_value());
      const Plan& plan = *result.plan;
      ASSERT_NEAR(plan.certificate.cost, expected, 1e-9 * expected) << "limit " << limit;
      ASSERT_NEAR(plan.certificate.lower_bound, expected, 1e-8 * expected) << "not closed";
      ASSERT_LE(plan.certificate.lower_bound, expected * (1 + 1e-9));
      ++problems;
      pipelines += plan.pipeline.stages > 1;
      recomputing += !plan.rewrite.remade.empty();
      once += c.recipe.made && result.graph->micro_batches > 1;
      tight += expected > space->cheapest(kInfinity) * (1 + 1e-9);
    }
    // Nothing fits in less than the least.
    c.options.memory_limit = space->frontier.front().bytes - 0.5;
    if (c.options.memory_limit > 0) {
      ASSERT_FALSE(find_plan(*c.graph, c.cluster, c.options).plan.has_value());
    }
    search_seconds += seconds_since(start);
  }
  std::printf(
      "%d problems of %d graphs (%d others too large), %.0f rewritten graphs and %.0f plans each; "
      "%d pipelines, %d recompute, %d make weights once a step, %d slower than without a limit; "
      "brute force %.1f s, the search %.1f s\n",
      problems, graphs, dropped, variants / graphs, plans / graphs, pipelines, recomputing, once,
      tight, brute_seconds, search_seconds);
  EXPECT_GT(once, 0) << "the problems say nothing of what is made once";
  EXPECT_GT(pipelines, problems / 5) << "the problems say little of pipelines";
  EXPECT_GT(recomputing, problems / 50) << "the problems say little of recomputation";
  EXPECT_GT(tight, problems / 4) << "the limits say little";
}

}  // namespace cleave::testing
