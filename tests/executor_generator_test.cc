// Generated text: greedy text against the scores that an interpreter computes, the same text on any
// mesh, a window that slides, samples that end, and models that cannot generate.
#include "executor/generator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/ops.h"
#include "models/next_token.h"
#include "tests/support/interpreter.h"
#include "tests/training_plans.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

using Weights = std::map<std::string, std::vector<std::byte>>;

ModelConfig small(const char* name, int64_t batch, std::vector<std::string> settings = {}) {
  ModelConfig c = config_for({"", name, std::move(settings)}, 2);
  c.batch = batch;
  return c;
}

Graph loss_graph(const ModelConfig& c) {
  return trace(c, {.dtype = DType::kF64, .training = false, .optimizer = {}});
}

// Weights after some steps on the rule of batch_of: then scores differ from token to token.
Weights trained(ModelConfig c, int steps = 60) {
  c.batch = 8;
  OptimizerOptions optimizer;
  optimizer.lr = 1e-2;
  optimizer.warmup = 2;
  optimizer.total_steps = steps;
  const Graph graph = trace(c, {.dtype = DType::kF64, .training = true, .optimizer = optimizer});
  CpuRuntime runtime(lower(graph, plan_for(graph, "1", {})), {.seed = 1});
  runtime.initialize();
  for (int step = 0; step < steps; ++step) {
    feed(runtime, c, step);
    runtime.step();
  }
  Weights weights;
  for (const Source& s : graph.sources()) {
    if (s.kind == SourceKind::kParameter) weights[s.name] = runtime.read_source(s.name);
  }
  return weights;
}

std::unique_ptr<Scorer> scorer_on(const ModelConfig& c, const Weights& weights,
                                  const std::string& mesh) {
  const Graph graph = next_token_graph(loss_graph(c));
  auto scorer = std::make_unique<Scorer>(lower(graph, plan_for(graph, mesh, {})));
  for (const Source& s : graph.sources()) {
    if (s.kind != SourceKind::kData) scorer->runtime().write_source(s.name, weights.at(s.name));
  }
  return scorer;
}

std::vector<std::vector<int32_t>> samples_on(const ModelConfig& c, const Weights& weights,
                                             const std::string& mesh,
                                             const std::vector<int32_t>& prompt,
                                             const GenerateOptions& options) {
  const auto scorer = scorer_on(c, weights, mesh);
  return generate([&](int64_t) -> Scorer& { return *scorer; }, prompt, options).samples;
}

// The scores of every position of one window, from the loss's own graph.
std::vector<double> interpreted(const ModelConfig& c, const Weights& weights,
                                std::vector<int32_t> window) {
  const Graph graph = loss_graph(c);
  Interpreter interpreter(graph);
  const auto doubles = [](const auto& x) { return std::vector<double>(x.begin(), x.end()); };
  for (const Source& s : graph.sources()) {
    if (s.kind == SourceKind::kData) continue;
    const auto& bytes = weights.at(s.name);
    interpreter.set(s.name, doubles(std::span(reinterpret_cast<const double*>(bytes.data()),
                                              bytes.size() / sizeof(double))));
  }
  window.resize(static_cast<size_t>(c.sequence), 0);
  interpreter.set("tokens", doubles(window));
  interpreter.set("targets", std::vector<double>(window.size(), 0));
  interpreter.run();
  for (const Node& node : graph.nodes()) {
    if (node.op == &ops::cross_entropy) return interpreter.numbers(node.inputs[0]);
  }
  return {};
}

class Generator : public ::testing::TestWithParam<const char*> {};

// The text is longer than two windows.
TEST_P(Generator, TakesTheBestTokenOfTheLastWindow) {
  const ModelConfig c = small(GetParam(), 1);
  const Weights weights = trained(c);
  const std::vector<int32_t> prompt = {1, 8, 43};
  const GenerateOptions options{.sampling = {.temperature = 0}, .tokens = 2 * c.sequence};
  std::vector<int32_t> text = prompt;
  const auto samples = samples_on(c, weights, "1", prompt, options);
  ASSERT_EQ(samples.size(), 1u);
  ASSERT_EQ(samples[0].size(), static_cast<size_t>(options.tokens));
  const auto vocab = static_cast<size_t>(c.vocab), sequence = static_cast<size_t>(c.sequence);
  for (const int32_t token : samples[0]) {
    const size_t seen = std::min(text.size(), sequence);
    const std::vector<double> scores =
        interpreted(c, weights, {text.end() - static_cast<int64_t>(seen), text.end()});
    const auto row = scores.begin() + static_cast<int64_t>((seen - 1) * vocab);
    const auto best = std::max_element(row, row + static_cast<int64_t>(vocab)) - row;
    ASSERT_EQ(token, best) << "after " << text.size() << " tokens";
    text.push_back(token);
  }
  // It has learnt the rule, so that the text is not the same token again and again.
  int by_rule = 0;
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    by_rule += text[i + 1] == (text[i] * 5 + 3) % c.vocab;
  }
  EXPECT_GT(by_rule, static_cast<int>(text.size()) / 2);
}

TEST_P(Generator, WritesTheSameOnAnyMesh) {
  const ModelConfig c = small(GetParam(), 4);
  const Weights weights = trained(c);
  const std::vector<int32_t> prompt = {1, 8};
  const GenerateOptions options{.sampling = {.temperature = 1.2, .top_k = 20, .seed = 3},
                                .tokens = 24};
  const auto one = samples_on(c, weights, "1", prompt, options);
  ASSERT_EQ(one.size(), 4u);
  EXPECT_NE(one[0], one[1]);  // samples are drawn for themselves
  for (const char* mesh : {"dp=2", "tp=2", "4", "2x2", "dp=4"}) {
    EXPECT_EQ(samples_on(c, weights, mesh, prompt, options), one) << mesh;
  }
  // The first sample does not depend on how many there are.
  const auto alone = samples_on(small(GetParam(), 1), weights, "1", prompt, options);
  EXPECT_EQ(alone[0], one[0]);
  GenerateOptions other = options;
  other.sampling.seed = 4;
  EXPECT_NE(samples_on(c, weights, "1", prompt, other), one);
}

INSTANTIATE_TEST_SUITE_P(Models, Generator, ::testing::Values("gpt2:124m", "llama:8b"),
                         [](const auto& info) {
                           return std::string(info.param).substr(0, 4) == "gpt2" ? "gpt" : "llama";
                         });

TEST(Generator, SamplesEndForThemselves) {
  const ModelConfig c = small("mlp:tiny", 3);
  const Weights weights = trained(c);
  const auto scorer = scorer_on(c, weights, "1");
  GenerateOptions options{.sampling = {.temperature = 2, .seed = 5}, .tokens = 200, .end = 7};
  std::vector<std::vector<int32_t>> heard(3);
  const Generated g = generate(
      [&](int64_t) -> Scorer& { return *scorer; }, std::vector<int32_t>{1}, options,
      [&](int64_t sample, int32_t token) { heard[static_cast<size_t>(sample)].push_back(token); });
  EXPECT_EQ(heard, g.samples);
  int64_t drawn = 0;
  for (size_t s = 0; s < 3; ++s) {
    ASSERT_TRUE(g.ended[s]);
    EXPECT_EQ(std::count(g.samples[s].begin(), g.samples[s].end(), 7), 0);
    drawn += static_cast<int64_t>(g.samples[s].size()) + 1;
  }
  EXPECT_EQ(g.tokens, drawn);
  EXPECT_NE(g.samples[0].size(), g.samples[1].size());
  // Until it ends a sample is what it is without an end.
  options.end = -1;
  const Generated longer =
      generate([&](int64_t) -> Scorer& { return *scorer; }, std::vector<int32_t>{1}, options);
  for (size_t s = 0; s < 3; ++s) {
    const size_t n = g.samples[s].size();
    EXPECT_EQ(longer.samples[s][n], 7);
    EXPECT_TRUE(std::equal(g.samples[s].begin(), g.samples[s].end(), longer.samples[s].begin()));
  }
}

std::string refusal(const ModelConfig& c, const std::vector<int32_t>& prompt) {
  try {
    samples_on(c, trained(c, 5), "1", prompt, {.sampling = {}, .tokens = 2});
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

TEST(Generator, RefusesWhatItCannotContinue) {
  const ModelConfig gpt = small("gpt2:124m", 1);
  EXPECT_EQ(refusal(gpt, {3}), "accepted");
  EXPECT_NE(refusal(gpt, {}).find("the prompt is empty"), std::string::npos);
  EXPECT_EQ(refusal(gpt, {3, 64}),
            "token 2 of the prompt is 64, but the model knows tokens 0 to 63");
  EXPECT_NE(refusal(gpt, {-1}).find("token 1 of the prompt is -1"), std::string::npos);
  // It looks both ways; that is seen, not known.
  EXPECT_NE(refusal(small("bert:base", 1), {3}).find("looks both ways"), std::string::npos);
}

}  // namespace
}  // namespace cleave
