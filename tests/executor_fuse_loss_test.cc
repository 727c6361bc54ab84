// The fusion `loss`: a head that is left whole makes the gradient of its scores with the loss, and
// trains to the numbers of the parts; where it cannot, the program stays as it was.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "executor/fuse.h"
#include "kernels/ops.h"
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

Graph graph_with(const ModelConfig& config, Tail tail) {
  TraceOptions options;
  options.dtype = DType::kF64;
  options.training = true;
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
      {"of two losses of other scores one depends on the other",
       [](const Tensor& s, const Tensor& t) {
         return cross_entropy(s, t) * cross_entropy(2.0 * s, t);
       },
       1},
      {"two losses of other scores",
       [](const Tensor& s, const Tensor& t) {
         return cross_entropy(3.0 * s, t) + cross_entropy(2.0 * s, t);
       },
       2},
  };
  const ModelConfig config = testing::config_for({"", "gpt2:124m", {}}, 1);
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    const Graph graph = graph_with(config, c.tail);
    const Plan plan = plan_for(graph, "1", {});
    const Program parts = lower(graph, plan, kParts), whole = lower(graph, plan, true);
    EXPECT_EQ(count(whole, ops::cross_entropy_both), c.both);
    const testing::Curve got = train(whole, config), want = train(parts, config);
    EXPECT_LT(testing::distance(got, want), 1e-12);
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
