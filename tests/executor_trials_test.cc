// The fastest algorithms are found though the clock changes from round to round by more than they
// differ.
#include "executor/trials.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#ifdef CLEAVE_CUDA
#include <optional>

#include "executor/cuda/product_trials.h"
#include "tests/training_plans.h"
#endif

namespace cleave {
namespace {

TEST(Trials, EachAlgorithmIsTriedTwice) {
  const Trials trials({8, 1, 5, 8, 16, 8});
  EXPECT_EQ(trials.rounds(), 32u);
  for (size_t task = 0; task < 6; ++task) {
    const size_t count = std::vector<size_t>{8, 1, 5, 8, 16, 8}[task];
    std::vector<int> tried(count, 0);
    for (size_t r = 0; r < trials.rounds(); ++r) ++tried.at(trials.algorithm(task, r));
    for (const int n : tried) EXPECT_GE(n, 2);
  }
}

TEST(Trials, ThoughTheClockChanges) {
  std::mt19937 random(3);
  const auto uniform = [&](double from, double to) {
    return std::uniform_real_distribution<double>(from, to)(random);
  };
  for (int problem = 0; problem < 20; ++problem) {
    std::vector<size_t> counts = {1};
    const size_t tasks = 3 + static_cast<size_t>(problem) % 12;
    for (size_t t = 1; t < tasks; ++t) counts.push_back(t % 3 == 0 ? 5 : 8);
    std::vector<std::vector<double>> takes;
    std::vector<size_t> best;
    for (const size_t count : counts) {
      takes.emplace_back();
      const double about = uniform(1e-4, 1e-2);
      for (size_t a = 0; a < count; ++a) takes.back().push_back(about * uniform(1.02, 1.3));
      best.push_back(static_cast<size_t>(uniform(0, static_cast<double>(count) - 1e-9)));
      takes.back()[best.back()] = about;
    }
    Trials trials(counts);
    for (size_t r = 0; r < trials.rounds(); ++r) {
      const double clock = uniform(0.9, 1.1);  // the algorithms are 2 % apart
      for (size_t t = 0; t < tasks; ++t) {
        trials.add(t, r, takes[t][trials.algorithm(t, r)] * clock * uniform(0.998, 1.002));
      }
    }
    EXPECT_EQ(trials.fastest(), best) << problem;
  }
}

TEST(Trials, WhatWasNeverMeasuredStaysAsItWas) {
  Trials trials({3, 4});
  for (size_t r = 0; r < trials.rounds(); ++r) {
    trials.add(1, r, trials.algorithm(1, r) == 2 ? 1e-3 : 2e-3);
  }
  EXPECT_EQ(trials.fastest(), (std::vector<size_t>{0, 2}));
  EXPECT_EQ(Trials({}).rounds(), 0u);
  EXPECT_TRUE(Trials({}).fastest().empty());
}

#ifdef CLEAVE_CUDA

// Of programs that train, whose passes change nothing that a step begins with.
TEST(Trials, OfWhichPrograms) {
  for (const char* name : {"gpt2:tiny", "llama:tiny", "mixtral:tiny"}) {
    const ModelConfig config = model_named(name);
    for (const F8Scaling scaling : {F8Scaling::kNone, F8Scaling::kDelayed}) {
      FuseOptions fusing(true);
      fusing.f8.scaling = scaling;
      for (const std::optional<DType> moments : {std::optional<DType>(), {DType::kBF16}}) {
        TraceOptions options;
        options.dtype = DType::kBF16;
        options.optimizer.moments = moments;
        const Graph graph = trace(config, options);
        const Program program = lower(graph, testing::plan_for(graph, "1", {}), fusing);
        EXPECT_TRUE(worth_a_trial(program, 1e6)) << name;
        EXPECT_FALSE(worth_a_trial(program, 1e12)) << name;
      }
    }
  }
  ModelConfig config = model_named("gpt2:tiny");
  config.dropout = 0.1;  // passes are counted
  const Graph graph = testing::training_graph(config, DType::kBF16);
  const Program program = lower(graph, testing::plan_for(graph, "1", {}), FuseOptions(true));
  EXPECT_FALSE(worth_a_trial(program, 0));
}

#endif

}  // namespace
}  // namespace cleave
