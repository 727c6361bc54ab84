// The graph of the next token's scores: they are those that give the loss, for built-in models and
// a user's own, on one device and split.
#include "models/next_token.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "graph/verify.h"
#include "kernels/ops.h"
#include "tests/training_plans.h"
#include "tracer/functional.h"
#include "tracer/nn.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

// --- Models --------------------------------------------------------------------------------------

// A user's: attention and MLP side by side, learned positions, writes in place, and dropout, which
// is off.
Tensor wild(const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
  const Embedding embed("embed", c.vocab, c.hidden);
  Tensor x = embed(tokens) + parameter("positions", {c.sequence, c.hidden}, normal(0.5));
  x = dropout(x, c.dropout);
  for (int64_t i = 0; i < c.layers; ++i) {
    const Scope block(fmt::format("blocks.{}", i));
    const RmsNorm norm("norm", c.hidden);
    const SelfAttention attention("attention", c.hidden, c.heads, {.dropout = c.dropout});
    const Linear up("up", c.hidden, 2 * c.hidden), down("down", 2 * c.hidden, c.hidden);
    const Tensor n = norm(x);
    const Tensor half = 0.5 * n;  // one position of n is read before all of it
    const Tensor outer = square(relu(up(n)));
    const Tensor inner = outer.clone();
    inner.mul_(2.0);
    outer.add_(1.0);
    x = x + attention(n) + dropout(down(inner + outer), c.dropout) + half;
    if (i == 0) x.add_(n);
  }
  const Tensor logits = 5.0 * tanh(linear(RmsNorm("last", c.hidden)(x), embed.weight) / 5.0);
  return cross_entropy(logits, targets);
}

// Flattens batch and sequence before the loss, as much PyTorch code does.
Tensor flattened(const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
  const Embedding embed("embed", c.vocab, c.hidden);
  const SelfAttention attention("attention", c.hidden, c.heads, {});
  const Linear head("head", c.hidden, c.vocab);
  const Tensor x = embed(tokens);
  const Tensor logits = head(x + attention(x));
  return cross_entropy(logits.reshape({c.batch * c.sequence, c.vocab}),
                       targets.reshape({c.batch * c.sequence}), /*ignore=*/-100);
}

struct Case {
  std::string label;
  ModelConfig config;
  LossFunction loss;  // empty: built in
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Model& m : models()) {
    if (std::string_view(m.name).starts_with("bert")) continue;
    all.push_back({m.label, config_for(m, 2), {}});
    all.back().config.balance_loss = all.back().config.z_loss = 0;  // the scores' loss alone
  }
  all.push_back({"mlp", config_for({"", "mlp:tiny", {}}, 2), {}});
  ModelConfig own = config_for({"", "gpt2:124m", {"dropout=0.2"}}, 2);
  own.family = "own";
  all.push_back({"wild", own, wild});
  all.push_back({"flattened", own, flattened});
  return all;
}

Graph loss_graph(const Case& c, DType dtype) {
  const TraceOptions options{.dtype = dtype, .training = false, .optimizer = {}};
  return c.loss ? trace(c.label, c.config, c.loss, options) : trace(c.config, options);
}

// --- Running -------------------------------------------------------------------------------------

void write_numbers(CpuRuntime& runtime, const char* name, std::span<const int32_t> numbers) {
  runtime.set_data(name, std::as_bytes(numbers));
}

Batch batch_for(const Case& c) {
  ModelConfig gpt = c.config;
  gpt.family = "gpt2";
  return batch_of(gpt, 3);
}

// Scores [position][batch * vocab], of the initial weights.
std::vector<std::vector<double>> all_scores(const Case& c, const Graph& graph, const Plan& plan) {
  CpuRuntime runtime(lower(graph, plan), {.seed = 42, .compare_ranks = true});
  runtime.initialize();
  const Batch batch = batch_for(c);
  std::vector<std::vector<double>> scores;
  for (int32_t position = 0; position < c.config.sequence; ++position) {
    write_numbers(runtime, "tokens", batch.tokens);
    write_numbers(runtime, "position", {&position, 1});
    const StepResult r = runtime.step();
    expect_planned(r.collectives, plan);
    EXPECT_EQ(r.outputs.size(), 1u);
    EXPECT_EQ(r.outputs[0].name, "scores");
    EXPECT_EQ(r.outputs[0].shape, (Shape{c.config.batch, c.config.vocab}));
    scores.push_back(r.outputs[0].values);
  }
  return scores;
}

double loss_on_one_device(const Case& c, DType dtype) {
  const Graph graph = loss_graph(c, dtype);
  CpuRuntime runtime(lower(graph, plan_for(graph, "1", {})), {.seed = 42});
  runtime.initialize();
  const Batch batch = batch_for(c);
  write_numbers(runtime, "tokens", batch.tokens);
  write_numbers(runtime, "targets", batch.targets);
  return runtime.step().value("loss");
}

double loss_from_scores(const Case& c, const std::vector<std::vector<double>>& scores) {
  const Batch batch = batch_for(c);
  const auto vocab = static_cast<size_t>(c.config.vocab);
  const auto sequence = static_cast<size_t>(c.config.sequence);
  double sum = 0;
  for (size_t b = 0; b < static_cast<size_t>(c.config.batch); ++b) {
    for (size_t s = 0; s < sequence; ++s) {
      const double* x = scores[s].data() + b * vocab;
      const double top = *std::max_element(x, x + vocab);
      double total = 0;
      for (size_t v = 0; v < vocab; ++v) total += std::exp(x[v] - top);
      sum += top + std::log(total) - x[batch.targets[b * sequence + s]];
    }
  }
  return sum / static_cast<double>(c.config.batch * c.config.sequence);
}

double distance(const std::vector<std::vector<double>>& a,
                const std::vector<std::vector<double>>& b) {
  double worst = a.size() == b.size() ? 0 : INFINITY, size = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    for (size_t j = 0; j < a[i].size(); ++j) {
      worst = std::max(worst, std::abs(a[i][j] - b[i][j]));
      size = std::max(size, std::abs(b[i][j]));
      if (std::isnan(a[i][j])) worst = INFINITY;
    }
  }
  return worst / size;
}

class EveryModel : public ::testing::TestWithParam<size_t> {};

TEST_P(EveryModel, ScoresAreThoseOfTheLossOnAnyMesh) {
  const Case c = cases()[GetParam()];
  for (const DType dtype : {DType::kF64, DType::kF32}) {
    const double tolerance = dtype == DType::kF64 ? kF64 : kF32;
    const Graph graph = next_token_graph(loss_graph(c, dtype));
    verify(graph);
    const auto one = all_scores(c, graph, plan_for(graph, "1", {}));
    const double loss = loss_on_one_device(c, dtype);
    EXPECT_NEAR(loss_from_scores(c, one), loss, tolerance * loss);
    double worst = 0;
    std::set<uint64_t> seen;
    for (const char* mesh : {"2", "dp=2", "tp=2", "4", "tp=4", "2x2", "dp=2,tp=2"}) {
      for (const std::optional<uint64_t> seed :
           {std::optional<uint64_t>{}, std::optional<uint64_t>{GetParam()}}) {
        const Plan plan = plan_for(graph, mesh, seed);
        if (!seen.insert(fingerprint(plan)).second) continue;
        worst = std::max(worst, distance(all_scores(c, graph, plan), one));
        EXPECT_LE(worst, tolerance) << mesh;
      }
    }
    fmt::print("{} in {}: {} plans, the worst differs by {:.1e}\n", c.label, name_of(dtype),
               seen.size(), worst);
  }
}

TEST_P(EveryModel, WhatOnlyTheLossOrTrainingNeedsIsGone) {
  const Case c = cases()[GetParam()];
  const Graph graph = next_token_graph(loss_graph(c, DType::kF32));
  EXPECT_EQ(graph.source_named("targets"), nullptr);
  EXPECT_EQ(graph.source_named("step"), nullptr);
  ASSERT_NE(graph.source_named("position"), nullptr);
  for (const Node& node : graph.nodes()) {
    EXPECT_NE(node.op, &ops::dropout);
    EXPECT_NE(node.op, &ops::cross_entropy);
    EXPECT_FALSE(node.attrs.has("dropout"));
  }
}

// The scores of all positions are nowhere computed.
TEST_P(EveryModel, TheHeadSeesOnePosition) {
  Case c = cases()[GetParam()];
  c.config.vocab = 4096;
  const Graph graph = next_token_graph(loss_graph(c, DType::kF32));
  const int64_t all = c.config.batch * c.config.sequence * c.config.vocab;
  const bool found = std::any_of(
      graph.values().begin(), graph.values().end(),
      [&](const ValueInfo& v) { return v.producer != kNoNode && numel(v.type.shape) == all; });
  EXPECT_EQ(found, c.label == "flattened");  // one dimension of both: not told apart there
}

INSTANTIATE_TEST_SUITE_P(Models, EveryModel, ::testing::Range(size_t{0}, cases().size()),
                         [](const auto& info) { return cases()[info.param].label; });

// --- Mistakes ------------------------------------------------------------------------------------

std::string refusal(const LossFunction& loss) {
  ModelConfig c;
  c.hidden = 8;
  c.vocab = 16;
  c.sequence = 4;
  c.batch = 2;
  try {
    next_token_graph(
        trace("mine", c, loss, {.dtype = DType::kF64, .training = false, .optimizer = {}}));
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

void expect_refused(const LossFunction& loss, const std::string& says) {
  const std::string message = refusal(loss);
  EXPECT_NE(message.find(says), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST(NextToken, ModelsWithoutScoresAreRefused) {
  const auto logits = [](const ModelConfig& c, const Tensor& tokens) {
    return Linear("head", c.hidden, c.vocab)(Embedding("embed", c.vocab, c.hidden)(tokens));
  };
  expect_refused([&](const ModelConfig& c, const Tensor& tokens,
                     const Tensor&) { return mean(square(logits(c, tokens))); },
                 "mine: the loss has no cross_entropy(scores, targets)");
  expect_refused([&](const ModelConfig& c, const Tensor& tokens,
                     const Tensor&) { return cross_entropy(logits(c, tokens), tokens); },
                 "no cross_entropy(scores, targets)");
  expect_refused(
      [&](const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
        const Tensor x = logits(c, tokens);
        return cross_entropy(x, targets) + 0.1 * cross_entropy(2.0 * x, targets);
      },
      "models_next_token_test.cc:");
  expect_refused(
      [&](const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
        const Embedding hint("hint", c.vocab, c.vocab);
        return cross_entropy(logits(c, tokens) + hint(targets), targets);
      },
      "mine: the scores depend on the targets");
}

// A second cross-entropy that nothing reads is no obstacle.
TEST(NextToken, WhatIsDeadDoesNotCount) {
  EXPECT_EQ(refusal([](const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
              const Tensor x = Embedding("embed", c.vocab, c.vocab)(tokens);
              cross_entropy(2.0 * x, targets);
              return cross_entropy(x, targets);
            }),
            "accepted");
}

}  // namespace
}  // namespace cleave
