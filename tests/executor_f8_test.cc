// Products of 8 bits: which are made, that tensors become codes once, and that models train as
// without them, to within what rounding to three bits of mantissa leaves.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "executor/f8_products.h"
#include "executor/measured.h"
#include "kernels/ops.h"
#include "planner/remake.h"
#include "planner/rewrite.h"
#include "tests/training_plans.h"

namespace cleave {
namespace {

using testing::Curve;
using testing::plan_for;
using testing::training_graph;

FuseOptions with_f8(F8Scaling scaling, bool last = false) {
  FuseOptions options(true);
  options.f8.scaling = scaling;
  options.f8.last = last;
  return options;
}

std::vector<const Instr*> of_op(const Program& program, const OpDef& op) {
  std::vector<const Instr*> found;
  for (const Instr& i : program.instrs) {
    if (i.kind == InstrKind::kCompute && i.op == &op) found.push_back(&i);
  }
  return found;
}

struct F8Case {
  const char* model;
  int64_t products;  // of a layer, in the forward
  int64_t sources;   // activations of a layer that become codes
};

class F8 : public ::testing::TestWithParam<F8Case> {
 protected:
  const ModelConfig config = model_named(GetParam().model);
};

// They run at twice the rate of 16 bits, whatever the types of their scales and results.
TEST_P(F8, AreLimitedByTwiceThePeak) {
  Cluster cluster = cluster_of_kind("h100");
  cluster.device.bandwidth = 1e30;  // only products take time
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Graph graph = training_graph(config, dtype);
    const Program program = lower(graph, plan_for(graph, "1", {}), with_f8(F8Scaling::kCurrent));
    for (const Instr* i : of_op(program, ops::scaled_matmul)) {
      const KernelWork work = work_of(program, *i);
      EXPECT_GT(work.flops, 0);
      EXPECT_DOUBLE_EQ(work.least_seconds(cluster),
                       work.flops / (2 * cluster.peak_flops(DType::kBF16)));
    }
  }
}

TEST_P(F8, EveryLinearLayerButTheLast) {
  const auto [name, products, sources] = GetParam();
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Graph graph = training_graph(config, dtype);
    const Plan plan = plan_for(graph, "1", {});
    for (const F8Scaling scaling : {F8Scaling::kCurrent, F8Scaling::kDelayed}) {
      const Program program = lower(graph, plan, with_f8(scaling));
      const auto made = of_op(program, ops::scaled_matmul);
      EXPECT_EQ(std::ssize(made), 3 * products * config.layers) << name_of(dtype);
      // One operand of each product in the backward is a gradient.
      int64_t gradients = 0;
      for (const Instr* i : made) {
        for (size_t o = 0; o < 2; ++o) {
          const DType got = program.tensor(i->in[o]).dtype;
          EXPECT_TRUE(is_f8(got));
          gradients += got == DType::kF8E5M2;
        }
        EXPECT_EQ(i->attrs.integer_or("quick", 0), i->part == Part::kForward ? 1 : 0);
        EXPECT_EQ(program.tensor(i->out[0]).dtype, dtype);
      }
      EXPECT_EQ(gradients, 2 * products * config.layers);
      // The update keeps copies of the other weights.
      const auto parameters =
          std::count_if(program.sources.begin(), program.sources.end(),
                        [](const ProgramSource& s) { return s.kind == SourceKind::kParameter; });
      EXPECT_EQ(std::ssize(program.kept),
                dtype == DType::kF32 ? 0 : parameters - products * config.layers);
      // A weight, an activation and a gradient become codes once each.
      const auto codes = of_op(program, ops::quantize);
      std::set<TensorId> seen;
      for (const Instr* i : codes) EXPECT_TRUE(seen.insert(i->in[0]).second);
      EXPECT_EQ(std::ssize(codes), (2 * products + sources) * config.layers);
      // The head, its two products of the backward, and nothing else, stay.
      EXPECT_EQ(of_op(program, ops::matmul).size() + of_op(program, ops::linear).size(), 3u);
      const auto all = of_op(lower(graph, plan, with_f8(scaling, true)), ops::scaled_matmul);
      EXPECT_EQ(std::ssize(all), 3 * (products * config.layers + 1));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, F8,
                         ::testing::Values(F8Case{"gpt2:tiny", 4, 4}, F8Case{"llama:tiny", 7, 4}),
                         [](const auto& info) {
                           const std::string name = info.param.model;
                           return name.substr(0, name.find(':'));
                         });

TEST(F8Products, WeightsBecomeCodesOnceAStep) {
  const ModelConfig config = model_named("gpt2:tiny");
  TraceOptions options;
  options.dtype = DType::kBF16;
  options.optimizer.micro_batches = 3;
  const Graph graph = trace(config, options);
  const Program program = lower(graph, plan_for(graph, "1", {}), with_f8(F8Scaling::kDelayed));
  std::map<Part, int64_t> codes;
  for (const Instr* i : of_op(program, ops::quantize)) ++codes[i->part];
  EXPECT_EQ(codes[Part::kBegin], 4 * config.layers);
  EXPECT_EQ(codes[Part::kForward], 4 * config.layers);
  EXPECT_EQ(codes[Part::kBackward], 4 * config.layers);
}

// The backward of the last product is left, too, when it has a cast of the weight for itself: that
// is what recomputation makes, where casts are not kept from step to step.
TEST(F8Products, TheLastIsLeftWhenItsWeightIsCastAgain) {
  const ModelConfig config = model_named("gpt2:tiny");
  const Graph traced = training_graph(config, DType::kBF16);
  Rewrite again;  // of all casts in the forward
  for (NodeId n = 0; traced.node(n).phase == Phase::kForward; ++n) {
    const Node& node = traced.node(n);
    if (node.op == &ops::cast && can_be_remade(traced)[static_cast<size_t>(n)]) {
      again.remade.push_back(n);
    }
  }
  ASSERT_FALSE(again.remade.empty());
  const Graph graph = rewritten(traced, again).graph;
  EXPECT_GT(graph.nodes().size(), traced.nodes().size());
  const Plan plan = plan_for(graph, "1", {});
  for (const bool kept : {false, true}) {
    FuseOptions options(true,
                        kept ? std::vector<std::string>{} : std::vector<std::string>{"copies"});
    options.f8.scaling = F8Scaling::kCurrent;
    for (const bool last : {false, true}) {
      options.f8.last = last;
      const Program program = lower(graph, plan, options);
      EXPECT_EQ(program.kept.empty(), !kept);
      EXPECT_EQ(std::ssize(of_op(program, ops::scaled_matmul)),
                3 * (4 * config.layers + (last ? 1 : 0)));
      EXPECT_EQ(of_op(program, ops::matmul).size() + of_op(program, ops::linear).size(),
                last ? 0u : 3u);
    }
  }
}

TEST(F8Products, TrainsLikeF32) {
  for (const char* name : {"gpt2:tiny", "llama:tiny"}) {
    ModelConfig config = model_named(name);
    config.layers = 2;
    config.batch = 4;
    const Graph graph = training_graph(config, DType::kF32);
    const Plan plan = plan_for(graph, "1", {});
    const Curve want = testing::run(lower(graph, plan), config);
    for (const F8Scaling scaling : {F8Scaling::kCurrent, F8Scaling::kDelayed}) {
      const Curve got = testing::run(lower(graph, plan, with_f8(scaling)), config);
      double loss = 0, norm = 0;
      for (size_t s = 0; s < want.loss.size(); ++s) {
        loss = std::max(loss, std::abs(got.loss[s] / want.loss[s] - 1));
        norm = std::max(norm, std::abs(got.grad_norm[s] / want.grad_norm[s] - 1));
      }
      fmt::print("{}, {} scaling: loss within {:.2e}, norm within {:.2e}; {:.4f} -> {:.4f}\n", name,
                 scaling == F8Scaling::kDelayed ? "delayed" : "current", loss, norm,
                 got.loss.front(), got.loss.back());
      EXPECT_GT(loss, 1e-6);  // it is something else
      EXPECT_LT(loss, 2e-2);
      EXPECT_LT(norm, 2e-1);
    }
  }
}

TEST(F8Products, TrainInMicroBatches) {
  ModelConfig config = model_named("gpt2:tiny");
  config.layers = 2;
  config.batch = 4;
  TraceOptions options;
  options.dtype = DType::kF32;
  options.optimizer.lr = 3e-3;
  options.optimizer.warmup = 5;
  options.optimizer.micro_batches = 2;
  const Graph graph = trace(config, options);
  std::map<F8Scaling, std::vector<double>> numbers;
  for (const F8Scaling scaling : {F8Scaling::kNone, F8Scaling::kDelayed}) {
    CpuRuntime runtime(lower(graph, plan_for(graph, "1", {}), with_f8(scaling)), {.seed = 42});
    runtime.initialize();
    for (int step = 0; step < 4; ++step) {
      testing::feed(runtime, config, 2 * step);
      runtime.accumulate();
      testing::feed(runtime, config, 2 * step + 1);
      const StepResult r = runtime.step();
      numbers[scaling].push_back(r.value("loss"));
      numbers[scaling].push_back(r.value("grad_norm"));
    }
  }
  for (size_t i = 0; i < numbers[F8Scaling::kNone].size(); ++i) {
    const double ratio = numbers[F8Scaling::kDelayed][i] / numbers[F8Scaling::kNone][i];
    EXPECT_NEAR(ratio, 1, i % 2 == 0 ? 1e-2 : 1e-1) << i;
  }
}

// The sizes of a step's tensors are in the history after it, newest first; a run that goes on with
// the history takes the same steps.
TEST(F8Products, HistoryIsKept) {
  const ModelConfig config = model_named("gpt2:tiny");
  const Graph graph = training_graph(config, DType::kF32);
  const Plan plan = plan_for(graph, "1", {});
  const FuseOptions options = with_f8(F8Scaling::kDelayed);
  CpuRuntime first(lower(graph, plan, options), {.seed = 42});
  first.initialize();
  std::vector<double> losses;
  for (int step = 0; step < 2; ++step) {
    testing::feed(first, config, step);
    first.step();
  }
  const std::vector<std::byte> bytes = first.read_source("f8.history");
  const auto* const history = reinterpret_cast<const float*>(bytes.data());
  const auto tensors = static_cast<int64_t>(bytes.size()) / 4 / kF8History;
  EXPECT_EQ(tensors, 8 * config.layers);
  for (int64_t t = 0; t < tensors; ++t) {
    for (int64_t h = 0; h < kF8History; ++h) {
      EXPECT_EQ(history[t * kF8History + h] > 0, h < 2) << t << " " << h;
    }
  }
  CpuRuntime second(lower(graph, plan, options), {.seed = 7});
  second.initialize();
  for (const ProgramSource& s : first.program().sources) {
    if (s.kind == SourceKind::kParameter || s.kind == SourceKind::kState) {
      second.write_source(s.name, first.read_source(s.name));
    }
  }
  for (CpuRuntime* runtime : {&first, &second}) {
    testing::feed(*runtime, config, 2);
    losses.push_back(runtime->step().value("loss"));
    testing::feed(*runtime, config, 3);
    losses.push_back(runtime->step().value("loss"));
  }
  EXPECT_EQ(losses[0], losses[2]);
  EXPECT_EQ(losses[1], losses[3]);
}

TEST(F8Products, AForwardAloneScalesByItself) {
  const ModelConfig config = model_named("gpt2:tiny");
  TraceOptions options;
  options.dtype = DType::kF32;
  options.training = false;
  const Graph graph = trace(config, options);
  const Program program = lower(graph, plan_for(graph, "1", {}), with_f8(F8Scaling::kDelayed));
  EXPECT_EQ(std::ssize(of_op(program, ops::scaled_matmul)), 4 * config.layers);
  for (const ProgramSource& s : program.sources) EXPECT_NE(s.kind, SourceKind::kState) << s.name;
}

}  // namespace
}  // namespace cleave
