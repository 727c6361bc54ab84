// Fusions: a program that is fused is sound in every type, and trains to the numbers of the one
// that is not.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>

#include "executor/fuse.h"
#include "kernels/ops.h"
#include "tests/training_plans.h"

namespace cleave {
namespace {

using testing::distance;
using testing::plan_for;
using testing::training_graph;

int64_t count(const Program& program, const OpDef& op) {
  return std::count_if(program.instrs.begin(), program.instrs.end(),
                       [&](const Instr& i) { return i.op == &op; });
}

// Of testing::models().
class Fused : public ::testing::TestWithParam<size_t> {
 protected:
  const testing::Model& model() const { return testing::models()[GetParam()]; }
  ModelConfig config() const { return testing::config_for(model(), 1); }
};

// lower() checks what it returns: among others, that everything is made before it is read.
TEST_P(Fused, IsSoundInEveryType) {
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16, DType::kF16}) {
    const Graph graph = training_graph(config(), dtype, model().optimizer);
    const Plan plan = plan_for(graph, "1", {});
    EXPECT_LE(lower(graph, plan, true).instrs.size(), lower(graph, plan).instrs.size())
        << name_of(dtype);
  }
}

TEST_P(Fused, TrainsLikeTheParts) {
  const Graph graph = training_graph(config(), DType::kF64, model().optimizer);
  const Plan plan = plan_for(graph, "1", {});
  const testing::Curve whole = testing::run(lower(graph, plan), config());
  const testing::Curve fused = testing::run(lower(graph, plan, true), config());
  EXPECT_LT(fused.loss.back(), fused.loss.front());
  EXPECT_LT(distance(fused, whole), 1e-10);
}

INSTANTIATE_TEST_SUITE_P(Models, Fused, ::testing::Range(size_t{0}, testing::models().size()),
                         [](const auto& info) {
                           return std::string(testing::models()[info.param].label);
                         });

// Of each layer of GPT, four products add their bias, in halves as well, whose casts of the bias
// stand between.
TEST(Fusion, Linears) {
  const ModelConfig config = testing::config_for(testing::models()[0], 1);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Graph graph = training_graph(config, dtype);
    const Program fused = lower(graph, plan_for(graph, "1", {}), {true, {"gelu"}});
    EXPECT_EQ(count(fused, ops::linear), 4 * config.layers) << name_of(dtype);
  }
}

// Of each layer of GPT, one product makes GELU too, and one its gradient and that of the bias in
// front, in halves as well; what they compute, TrainsLikeTheParts compares. Products of 8 bits have
// neither.
TEST(Fusion, Gelu) {
  const ModelConfig config = testing::config_for(testing::models()[0], 1);
  for (const DType dtype : {DType::kF64, DType::kBF16}) {
    const Graph graph = training_graph(config, dtype);
    const Plan plan = plan_for(graph, "1", {});
    const Program fused = lower(graph, plan, true), off = lower(graph, plan, {true, {"gelu"}});
    int64_t forward = 0, backward = 0, sums = 0;
    for (const Instr& i : fused.instrs) {
      forward += i.op == &ops::linear && i.attrs.has("gelu");
      backward += i.op == &ops::linear && i.attrs.has("gelu_backward");
      sums += i.op == &ops::linear && i.attrs.has("sum");
    }
    EXPECT_EQ(forward, config.layers) << name_of(dtype);
    EXPECT_EQ(backward, config.layers) << name_of(dtype);
    EXPECT_EQ(sums, config.layers) << name_of(dtype);
    EXPECT_EQ(count(fused, ops::gelu) + count(fused, ops::gelu_backward), 0) << name_of(dtype);
    EXPECT_EQ(count(off, ops::gelu_backward), config.layers) << name_of(dtype);
    if (dtype != DType::kBF16) continue;
    const Program eighths = lower(graph, plan, {true, {}, {.scaling = F8Scaling::kCurrent}});
    EXPECT_EQ(count(eighths, ops::gelu_backward), config.layers);
  }
}

// Of each layer of Llama, one product makes SwiGLU too, and one the gradients of both of its
// operands; without `siblings` there is no such product in the forward.
TEST(Fusion, Swiglu) {
  ModelConfig config = model_named("llama:tiny");
  for (const char* s : {"layers=2", "hidden=32", "ffn=64", "sequence=16", "batch=2"}) {
    set_value(config, s);
  }
  for (const DType dtype : {DType::kF64, DType::kBF16}) {
    const Graph graph = training_graph(config, dtype);
    const Plan plan = plan_for(graph, "1", {});
    const auto made = [&](const Program& program) {
      std::array<int64_t, 2> made = {};  // forward, backward
      for (const Instr& i : program.instrs) {
        made[0] += i.op == &ops::linear && i.attrs.has("swiglu");
        made[1] += i.op == &ops::linear && i.attrs.has("swiglu_backward");
      }
      return made;
    };
    const std::array<int64_t, 2> none = {}, both = {config.layers, config.layers},
                                 backward = {0, config.layers};
    const Program fused = lower(graph, plan, true);
    EXPECT_EQ(made(fused), both) << name_of(dtype);
    EXPECT_EQ(count(fused, ops::swiglu) + count(fused, ops::swiglu_backward), 0);
    EXPECT_EQ(made(lower(graph, plan, {true, {"siblings"}})), backward) << name_of(dtype);
    EXPECT_EQ(made(lower(graph, plan, {true, {"swiglu"}})), none) << name_of(dtype);
    EXPECT_EQ(made(lower(graph, plan, {true, {}, {.scaling = F8Scaling::kCurrent}})), none);
    if (dtype != DType::kF64) continue;
    const testing::Curve whole = testing::run(lower(graph, plan), config);
    EXPECT_LT(distance(testing::run(fused, config), whole), 1e-10);
  }
}

// Queries, keys and values by three products of one input, each of which adds its bias.
TEST(Fusion, BiasesOfGroupedQueries) {
  ModelConfig config = model_named("qwen2.5:tiny");
  for (const char* s : {"layers=2", "hidden=32", "ffn=64", "sequence=16", "batch=2"}) {
    set_value(config, s);
  }
  for (const DType dtype : {DType::kF64, DType::kBF16}) {
    const Graph graph = training_graph(config, dtype);
    const Plan plan = plan_for(graph, "1", {});
    const Program fused = lower(graph, plan, true);
    int64_t biases = 0;
    for (const Instr& i : fused.instrs) biases += i.op == &ops::linear && i.attrs.has("bias");
    EXPECT_EQ(biases, 3 * config.layers) << name_of(dtype);
    if (dtype != DType::kF64) continue;
    const testing::Curve whole = testing::run(lower(graph, plan), config);
    EXPECT_LT(distance(testing::run(fused, config), whole), 1e-10);
  }
}

// The gradient around each norm but the last is added by the norm's backward, which also sums what
// it makes, for the bias of the product in front: of attention's, and of the layer before. Those of
// GELU and attention do the same. Chains would take what is left of both.
TEST(Fusion, Norms) {
  const ModelConfig config = testing::config_for(testing::models()[0], 1);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Graph graph = training_graph(config, dtype);
    const Plan plan = plan_for(graph, "1", {});
    const Program fused = lower(graph, plan, {true, {"chain", "gelu"}}),
                  off =
                      lower(graph, plan, {true, {"chain", "gelu", "norm_residual", "column_sum"}});
    const int64_t adds = count(off, ops::add_n) - count(fused, ops::add_n);
    EXPECT_EQ(adds, 2 * config.layers) << name_of(dtype);
    EXPECT_EQ(count(off, ops::sum) - count(fused, ops::sum), 4 * config.layers) << name_of(dtype);
    for (const Instr& i : fused.instrs) {
      EXPECT_TRUE(i.op != &ops::attention_backward || i.out.size() == 4);
    }
    EXPECT_EQ(count(off, ops::cast), count(fused, ops::cast));
  }
}

// Of several micro-batches, the products that make the gradients of weights add to what there is,
// in place.
TEST(Fusion, Accumulates) {
  const ModelConfig config = testing::config_for(testing::models()[0], 1);
  for (const DType dtype : {DType::kF64, DType::kBF16}) {
    TraceOptions options;
    options.dtype = dtype;
    options.optimizer.micro_batches = 2;
    const Graph graph = trace(config, options);
    const Plan plan = plan_for(graph, "1", {});
    const Program fused = lower(graph, plan, {true}),
                  off = lower(graph, plan, {true, {"residual"}});
    int64_t in_place = 0;
    for (const Instr& i : fused.instrs) {
      if (i.op != &ops::linear || !i.attrs.has("residual")) continue;
      in_place += fused.tensor(i.in.back()).buffer == fused.tensor(i.out[0]).buffer ? 1 : 0;
    }
    EXPECT_EQ(in_place, 4 * config.layers + 1) << name_of(dtype);  // and the head's
    EXPECT_LT(count(fused, ops::add), count(off, ops::add)) << name_of(dtype);
    if (dtype != DType::kF64) continue;
    const auto losses = [&](Program program) {
      CpuRuntime runtime(std::move(program), {.seed = 42});
      runtime.initialize();
      std::vector<double> loss;
      for (int step = 0; step < 4; ++step) {
        for (int m = 0; m < 2; ++m) {
          testing::feed(runtime, config, 2 * step + m);
          if (m == 0) runtime.accumulate();
        }
        loss.push_back(runtime.step().value("grad_norm"));
      }
      return loss;
    };
    const std::vector<double> want = losses(lower(graph, plan)), got = losses(fused);
    for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-10 * want[i]);
  }
}

int64_t count_joins(const Program& program) {
  return std::count_if(program.instrs.begin(), program.instrs.end(),
                       [&](const Instr& i) { return i.attrs.integer_or("joins", 0) != 0; });
}

// The gradients of queries, keys and values are written where the product behind them reads them.
TEST(Fusion, Parts) {
  const ModelConfig config = testing::config_for(testing::models()[0], 1);
  const Graph graph = training_graph(config, DType::kF32);
  const Plan plan = plan_for(graph, "1", {});
  const Program fused = lower(graph, plan, {true}), off = lower(graph, plan, {true, {"parts"}});
  EXPECT_EQ(count_joins(fused), config.layers);
  EXPECT_EQ(count_joins(off), 0);
  for (const Instr& i : fused.instrs) {
    if (i.attrs.integer_or("joins", 0) == 0) continue;
    for (const TensorId t : i.in) {
      EXPECT_EQ(fused.tensor(t).buffer, fused.tensor(i.out[0]).buffer) << fused.tensor(t).name;
    }
  }
}

}  // namespace
}  // namespace cleave
