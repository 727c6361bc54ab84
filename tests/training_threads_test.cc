// The bits of a training run do not depend on the number of threads of a device.
#include <gtest/gtest.h>

#include "tests/training_plans.h"

namespace cleave::testing {
namespace {

Curve run_with(const ModelConfig& config, int threads) {
  const Graph graph = training_graph(config, DType::kF32);
  const Cluster cluster = parse_cluster("cpu:1");
  PlannerOptions options;
  options.memory_limit = INFINITY;
  const PlanResult found = find_plan(graph, cluster, options);
  return run(lower(graph, *found.plan), config, nullptr, {.seed = 42, .threads = threads});
}

TEST(TrainingThreads, OneTwoAndFiveGiveTheSameBits) {
  for (const char* name : {"gpt2:tiny", "llama:tiny", "bert:base"}) {
    ModelConfig config = model_named(name);
    config.layers = 2, config.hidden = 96, config.heads = 6, config.batch = 6;
    config.kv_heads = config.family == "llama" ? 2 : 0;
    config.ffn = 320, config.vocab = 384, config.sequence = 48, config.dropout = 0.1;
    const Curve one = run_with(config, 1);
    for (const int threads : {2, 5}) {
      const Curve many = run_with(config, threads);
      EXPECT_EQ(one.loss, many.loss) << name << ", " << threads << " threads";
      EXPECT_EQ(one.grad_norm, many.grad_norm) << name << ", " << threads << " threads";
    }
  }
}

}  // namespace
}  // namespace cleave::testing
