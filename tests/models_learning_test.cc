// Every family, cut down to a size that runs in a moment, starts at the loss of a uniform guess and
// learns a batch by heart.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "models/trace.h"
#include "tests/support/interpreter.h"

namespace cleave {
namespace {

constexpr int64_t kBatch = 2, kSequence = 8, kVocab = 32;

ModelConfig small(const std::string& name, std::initializer_list<std::string> settings = {}) {
  ModelConfig config = model_named(name);
  // Of every family, what it does not read too.
  config.layers = 2, config.hidden = 16, config.heads = 2, config.kv_heads = 0, config.ffn = 32;
  config.vocab = kVocab, config.sequence = kSequence, config.batch = kBatch;
  config.experts = 4, config.expert_ffn = 0;
  config.q_rank = config.kv_rank = 8;
  config.head_width = config.value_width = 8, config.rotary_width = 4;
  config.top_k = std::min<int64_t>(config.top_k, 2);
  config.dense_layers = std::min<int64_t>(config.dense_layers, 1);
  for (const std::string& s : settings) set_value(config, s);
  return config;
}

// Each token is followed by the one three further; BERT's targets are left out but for every third.
std::vector<double> tokens(int64_t shift, bool masked) {
  std::vector<double> numbers;
  for (int64_t i = 0; i < kBatch * kSequence; ++i) {
    const int64_t token = (i * 3 + shift) % kVocab;
    numbers.push_back(masked && i % 3 != 0 ? -100.0 : static_cast<double>(token));
  }
  return numbers;
}

std::vector<double> losses(const ModelConfig& config, const OptimizerOptions& optimizer,
                           int steps) {
  const Graph graph = trace(config, {DType::kF64, /*training=*/true, optimizer});
  Interpreter interpreter(graph);
  interpreter.set("tokens", tokens(0, false));
  interpreter.set("targets", tokens(3, objective_of(config) == Objective::kMaskedTokens));
  std::vector<double> result;
  for (int step = 0; step < steps; ++step) {
    interpreter.run();
    const auto results = interpreter.results();
    result.push_back(results.at("loss")[0]);
    for (const Source& s : graph.sources()) {
      if (s.kind != SourceKind::kData) interpreter.set(s.name, results.at(s.name));
    }
  }
  return result;
}

OptimizerOptions adamw() {
  OptimizerOptions options;
  options.lr = 1e-2;
  options.schedule = OptimizerOptions::Schedule::kConstant;
  options.warmup = 2;
  return options;
}

class EveryFamily : public testing::TestWithParam<std::string> {};

TEST_P(EveryFamily, StartsAtAUniformGuessAndLearns) {
  const std::vector<double> curve = losses(small(GetParam()), adamw(), 25);
  EXPECT_NEAR(curve.front(), std::log(kVocab), 0.25);
  EXPECT_LT(curve.back(), 0.5 * curve.front());
}

TEST_P(EveryFamily, LearnsBySgdToo) {
  OptimizerOptions options = adamw();
  options.kind = OptimizerOptions::Kind::kSgd;
  options.lr = 0.1;
  options.weight_decay = 0;
  const std::vector<double> curve = losses(small(GetParam()), options, 25);
  EXPECT_LT(curve.back(), 0.95 * curve.front());
}

TEST_P(EveryFamily, LearnsWithDropout) {
  const std::vector<double> without = losses(small(GetParam()), adamw(), 25);
  const std::vector<double> with = losses(small(GetParam(), {"dropout=0.1"}), adamw(), 25);
  EXPECT_NE(with.front(), without.front());
  EXPECT_LT(with.back(), 0.7 * with.front());
}

INSTANTIATE_TEST_SUITE_P(Models, EveryFamily,
                         testing::Values("gpt2:124m", "gpt3:175b", "llama:8b", "llama:1b",
                                         "qwen2.5:1.5b", "mixtral:tiny", "mixtral:8x7b",
                                         "deepseek:671b", "bert:base", "mlp:tiny"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::ranges::replace_if(
                               name, [](char c) { return c == ':' || c == '.'; }, '_');
                           return name;
                         });

// The mean is over the masked tokens only: what the others' targets would be does not matter, nor
// how many there are.
TEST(Bert, LossIsTheMeanOverMaskedTokens) {
  const ModelConfig config = small("bert:base");
  const Graph graph = trace(config, {DType::kF64, /*training=*/false, {}});
  Interpreter interpreter(graph);
  interpreter.set("tokens", tokens(0, false));
  const auto loss_at = [&](std::initializer_list<int> masked) {
    std::vector<double> targets(kBatch * kSequence, -100.0);
    for (const int i : masked) targets[static_cast<size_t>(i)] = 5;
    interpreter.set("targets", targets);
    interpreter.run();
    return interpreter.results().at("loss")[0];
  };
  const double a = loss_at({2}), b = loss_at({9});
  EXPECT_NE(a, b);
  EXPECT_NEAR(loss_at({2, 9}), (a + b) / 2, 1e-12);
}

// Attention sees the past only in a decoder, and both sides in BERT.
TEST(Models, OnlyBertSeesWhatComesLater) {
  for (const std::string name : {"gpt2:124m", "llama:8b", "mixtral:tiny", "mixtral:8x7b",
                                 "deepseek:671b", "bert:base", "mlp:tiny"}) {
    ModelConfig config = small(name, {"batch=1"});
    // So little that tokens are dropped: the later ones, which the earlier ones do not see.
    if (config.capacity_factor > 0) config.capacity_factor = 0.5;
    const Graph graph = trace(config, {DType::kF64, /*training=*/false, {}});
    Interpreter interpreter(graph);
    // Only the last token changes: what earlier ones see of it shows in their losses.
    const auto losses_per_token = [&](double last) {
      std::vector<double> in = {1, 2, 3, 4, 5, 6, 7, last};
      interpreter.set("tokens", in);
      interpreter.set("targets", {2, 3, 4, 5, 6, 7, 8, 9});
      interpreter.run();
      for (const Node& node : graph.nodes()) {
        if (node.op->name == "cross_entropy") return interpreter.numbers(node.outputs[0]);
      }
      return std::vector<double>{};
    };
    const std::vector<double> one = losses_per_token(8), other = losses_per_token(20);
    ASSERT_EQ(one.size(), 8u);
    EXPECT_EQ(one[0] != other[0], name == "bert:base") << name;
    EXPECT_EQ(one[6] != other[6], name == "bert:base") << name;
    EXPECT_NE(one[7], other[7]) << name;
  }
}

}  // namespace
}  // namespace cleave
