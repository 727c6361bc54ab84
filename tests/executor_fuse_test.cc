// Fusions: a program that is fused is sound in every type, and trains to the numbers of the one
// that is not.
#include <gtest/gtest.h>

#include <algorithm>
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
    const Program fused = lower(graph, plan_for(graph, "1", {}), true);
    EXPECT_EQ(count(fused, ops::linear), 4 * config.layers) << name_of(dtype);
  }
}

}  // namespace
}  // namespace cleave
