// The fusion `loss`: a head that is left whole makes the gradient of its scores with the loss, and
// trains to the numbers of the parts; where it cannot, the program stays as it was.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "executor/fuse.h"
#include "kernels/ops.h"
#include "planner/remake.h"
#include "tests/training_plans.h"
#include "tracer/functional.h"
#include "tracer/nn.h"

namespace cleave {
namespace {

using testing::plan_for;

const FuseOptions kParts(true, {"loss"});

int64_t count(const Program& program, const OpDef& op) {
  return std::count_if(program.instrs.begin(), program.instrs.end(),
                       [&](const Instr& i) { return i.op == &op; });
}

testing::Curve train(Program program, const ModelConfig& config) {
  const int64_t micro_batches = program.micro_batches();
  CpuRuntime runtime(std::move(program), {.seed = 42});
  runtime.initialize();
  testing::Curve curve;
  for (int step = 0; step < 5; ++step) {
    for (int64_t m = 0; m < micro_batches; ++m) {
      testing::feed(runtime, config, micro_batches * step + m);
      if (m + 1 < micro_batches) runtime.accumulate();
    }
    const StepResult r = runtime.step();
    curve.loss.push_back(r.value("loss"));
    curve.grad_norm.push_back(r.value("grad_norm"));
  }
  return curve;
}

// What was moved belongs to the forward now.
void expect_parts_in_order(const Program& program) {
  EXPECT_TRUE(std::is_sorted(program.instrs.begin(), program.instrs.end(),
                             [](const Instr& a, const Instr& b) { return a.part < b.part; }));
}

// Every family that has a loss, one or two micro-batches: the same bits, as on the CPU the one
// instruction is the two, in no more memory.
TEST(Loss, OfEveryModelTrainsLikeTheParts) {
  for (const testing::Model& model : testing::models()) {
    SCOPED_TRACE(model.label);
    const ModelConfig config = testing::config_for(model, 1);
    for (const int64_t micro_batches : {1, 2}) {
      TraceOptions options;
      options.dtype = DType::kF64;
      options.training = true;
      options.optimizer.kind = model.optimizer;
      options.optimizer.lr = model.optimizer == OptimizerOptions::Kind::kSgd ? 0.1 : 3e-3;
      options.optimizer.micro_batches = micro_batches;
      const Graph graph = trace(config, options);
      const Plan plan = plan_for(graph, "1", {});
      const Program parts = lower(graph, plan, kParts), whole = lower(graph, plan, true);
      const int64_t losses = count(parts, ops::cross_entropy_backward);
      EXPECT_GT(losses, 0);
      EXPECT_EQ(count(parts, ops::cross_entropy_both), 0);
      EXPECT_EQ(count(whole, ops::cross_entropy_both), losses);
      EXPECT_EQ(count(whole, ops::cross_entropy) + count(whole, ops::cross_entropy_backward), 0);
      EXPECT_LE(whole.arena_bytes, parts.arena_bytes);
      expect_parts_in_order(whole);
      const testing::Curve got = train(whole, config), want = train(parts, config);
      EXPECT_EQ(got.loss, want.loss);
      EXPECT_EQ(got.grad_norm, want.grad_norm);
      EXPECT_NE(got.loss.back(), got.loss.front());
    }
  }
}

// In types of 16 bits, which do not run here, lower() checks the program.
TEST(Loss, IsSoundInEveryType) {
  for (const testing::Model& model : testing::models()) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      const Graph graph =
          testing::training_graph(testing::config_for(model, 1), dtype, model.optimizer);
      EXPECT_GT(count(lower(graph, plan_for(graph, "1", {}), true), ops::cross_entropy_both), 0)
          << model.label << " in " << name_of(dtype);
    }
  }
}

// A loss of the scores of a linear layer of an embedding.
using Tail = Tensor (*)(const Tensor& scores, const Tensor& targets);

Graph graph_with(const ModelConfig& config, Tail tail, int64_t micro_batches) {
  TraceOptions options;
  options.dtype = DType::kF64;
  options.training = true;
  options.optimizer.micro_batches = micro_batches;
  return trace(
      "own", config,
      [tail](const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
        const Embedding embed("embed", c.vocab, c.hidden);
        return tail(Linear("head", c.hidden, c.vocab, true)(embed(tokens)), targets);
      },
      options);
}

TEST(Loss, MakesItsGradientOnlyWhereItCan) {
  struct Case {
    const char* what;
    Tail tail;
    int64_t both;  // how many do
  };
  const std::vector<Case> cases = {
      {"what the gradient is multiplied by comes from elsewhere",
       [](const Tensor& s, const Tensor& t) { return 0.5 * cross_entropy(s, t, 3); }, 1},
      {"it depends on the loss",
       [](const Tensor& s, const Tensor& t) { return square(cross_entropy(s, t)); }, 0},
      {"two losses read the scores",
       [](const Tensor& s, const Tensor& t) {
         return cross_entropy(s, t) + 0.5 * cross_entropy(s, t, 3);
       },
       0},
      {"something else reads the scores",
       [](const Tensor& s, const Tensor& t) {
         return cross_entropy(s, t) + 1e-3 * mean(square(s));
       },
       0},
      {"two losses of other scores, each of whose gradients depends on the other loss",
       [](const Tensor& s, const Tensor& t) {
         return cross_entropy(3.0 * s, t) * cross_entropy(2.0 * s, t);
       },
       1},
      {"the scores of one loss depend on the other loss",
       [](const Tensor& s, const Tensor& t) {
         return cross_entropy(cross_entropy(3.0 * s, t) * s, t);
       },
       1},
      {"two losses of other scores",
       [](const Tensor& s, const Tensor& t) {
         return cross_entropy(3.0 * s, t) + cross_entropy(2.0 * s, t);
       },
       2},
      {"what both gradients are multiplied by is the same",
       [](const Tensor& s, const Tensor& t) {
         return 0.25 * (cross_entropy(3.0 * s, t) + cross_entropy(2.0 * s, t));
       },
       2},
      {"and is made before both",
       [](const Tensor& s, const Tensor& t) {
         const Tensor factor = mean(square(s));
         return (cross_entropy(3.0 * s, t) + cross_entropy(2.0 * s, t)) * factor;
       },
       2},
      {"or after both, of something large",
       [](const Tensor& s, const Tensor& t) {
         const Tensor losses = cross_entropy(3.0 * s, t) + cross_entropy(2.0 * s, t);
         return losses * mean(square(s));
       },
       0},
  };
  const ModelConfig config = testing::config_for({"", "gpt2:124m", {}}, 1);
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    for (const int64_t micro_batches : {1, 2}) {
      const Graph graph = graph_with(config, c.tail, micro_batches);
      const Plan plan = plan_for(graph, "1", {});
      const Program parts = lower(graph, plan, kParts), whole = lower(graph, plan, true);
      EXPECT_EQ(count(whole, ops::cross_entropy_both), c.both) << micro_batches;
      expect_parts_in_order(whole);
      const testing::Curve got = train(whole, config), want = train(parts, config);
      EXPECT_LT(testing::distance(got, want), 1e-12);
    }
  }
}

// Scores that the backward computes again are others than those of the forward's loss. With the
// loss computed again, too, it is that one which makes the gradient.
TEST(Loss, ComputedAgain) {
  const ModelConfig config = testing::config_for(testing::models()[0], 1);
  const Graph traced = testing::training_graph(config, DType::kF64);
  const std::vector<bool> can = can_be_remade(traced);
  Rewrite all, scores;
  for (NodeId n = 0; n < static_cast<NodeId>(can.size()); ++n) {
    if (can[static_cast<size_t>(n)]) all.remade.push_back(n);
    if (traced.node(n).op != &ops::cross_entropy) continue;
    scores.remade.push_back(traced.value(traced.node(n).inputs[0]).producer);
  }
  ASSERT_EQ(scores.remade.size(), 1u);
  const testing::Curve want = train(lower(traced, plan_for(traced, "1", {})), config);
  for (const bool everything : {false, true}) {
    const Graph graph = rewritten(traced, everything ? all : scores).graph;
    const Program program = lower(graph, plan_for(graph, "1", {}), true);
    EXPECT_EQ(count(program, ops::cross_entropy_both), everything ? 1 : 0);
    EXPECT_LT(testing::distance(train(program, config), want), 1e-10);
  }
}

// A weight of each token that is computed again, and what that needs, stay in the backward: all of
// it would lie beside the scores. Weights alone may be there.
TEST(Loss, WhatIsLargeDoesNotMove) {
  const ModelConfig config = testing::config_for({"", "gpt2:124m", {}}, 1);
  TraceOptions options;
  options.dtype = DType::kF64;
  options.training = true;
  for (const bool large : {false, true}) {
    const Graph traced = trace(
        "own", config,
        [](const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
          const Tensor x = Embedding("embed", c.vocab, c.hidden)(tokens);
          const Tensor s = Linear("head", c.hidden, c.vocab, true)(x);
          const Tensor factor = mean(square(sigmoid(x)));
          return cross_entropy(s, targets) * factor;
        },
        options);
    Rewrite again;
    const std::vector<bool> can = can_be_remade(traced);
    for (NodeId n = 0; large && n < static_cast<NodeId>(can.size()); ++n) {
      const OpDef* op = traced.node(n).op;
      const bool head = op == &ops::matmul || op == &ops::add || op == &ops::cross_entropy;
      if (can[static_cast<size_t>(n)] && !head) again.remade.push_back(n);
    }
    const Graph graph = rewritten(traced, again).graph;
    const Program program = lower(graph, plan_for(graph, "1", {}), true);
    EXPECT_EQ(count(program, ops::cross_entropy_both), large ? 0 : 1);
  }
}

// There the gradients are known by the part of the step that makes them.
TEST(Loss, NotWithFloatsOf8Bits) {
  const ModelConfig config = testing::config_for(testing::models()[0], 1);
  const Graph graph = testing::training_graph(config, DType::kF32);
  FuseOptions options(true);
  options.f8.scaling = F8Scaling::kCurrent;
  EXPECT_EQ(count(lower(graph, plan_for(graph, "1", {}), options), ops::cross_entropy_both), 0);
}

}  // namespace
}  // namespace cleave
