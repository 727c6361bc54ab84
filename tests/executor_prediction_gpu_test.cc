// What a plan says that a run will take, against the run on the GPU: its memory to the byte.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "executor/lower.h"
#include "executor/prediction.h"
#include "executor/runtime.h"
#include "executor/step_bench.h"
#include "executor/typing.h"
#include "tests/training_plans.h"

#ifdef CLEAVE_CUDA
#include <cuda_runtime_api.h>
#endif

namespace cleave {
namespace {

#ifdef CLEAVE_CUDA

class OnGpu : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) GTEST_SKIP() << "no GPU here";
  }
};

Plan plan_on_gpu(const Graph& graph) {
  PlannerOptions options;
  ask_program(options);
  const PlanResult found = find_plan(graph, parse_cluster("h100"), options);
  EXPECT_TRUE(found.plan.has_value());
  return *found.plan;
}

TEST_P(OnGpu, AllocatesWhatThePlanSays) {
  const ModelConfig config = model_named(GetParam());
  for (const auto& [dtype, moments] : {std::pair(DType::kF32, std::optional<DType>()),
                                       {DType::kBF16, std::nullopt},
                                       {DType::kBF16, DType::kBF16}}) {
    TraceOptions traced;
    traced.dtype = dtype;
    traced.optimizer.moments = moments;
    const Graph graph = trace(config, traced);
    const Plan plan = plan_on_gpu(graph);
    size_t before = 0, after = 0, total = 0;
    ASSERT_EQ(cudaMemGetInfo(&before, &total), cudaSuccess);
    const auto runtime = make_runtime(lower(graph, plan, true), Processor::kGpu, {.seed = 42});
    runtime->initialize();
    testing::feed(*runtime, config, 0);
    runtime->step();
    ASSERT_EQ(cudaMemGetInfo(&after, &total), cudaSuccess);
    EXPECT_EQ(runtime->allocated_bytes(), plan.predicted.peak_bytes) << name_of(dtype);
    EXPECT_EQ(runtime->program().arena_bytes, plan.predicted.peak_bytes) << name_of(dtype);
    // The driver gives whole pages, and keeps graphs and kernels of its own beside it.
    EXPECT_GE(before - after + (2 << 20), static_cast<size_t>(plan.predicted.peak_bytes));
    fmt::print("{} in {}: {} bytes planned and allocated, {} fewer free\n", GetParam(),
               name_of(dtype), plan.predicted.peak_bytes, before - after);
  }
}

// What `cleave calibrate` measures: every instruction that a step runs is timed in it, once, and
// those of one launch share it.
TEST_P(OnGpu, TimesInstructionsInSteps) {
  const ModelConfig config = model_named(GetParam());
  const Graph graph = testing::training_graph(config, DType::kBF16);
  StepBench bench(graph, lower(graph, plan_on_gpu(graph), true), config.vocab, Processor::kGpu);
  bench.steps(3);
  const StepResult step = bench.recorded();
  const Program& program = bench.runtime().program();
  std::vector<bool> kept(program.tensors.size(), false);  // there from the step before
  for (const KeptTensor& k : program.kept) kept[static_cast<size_t>(k.tensor)] = true;
  std::vector<int> expected, found(program.instrs.size(), 0);
  for (const Instr& instr : program.instrs) {
    const bool there = !instr.out.empty() && kept[static_cast<size_t>(instr.out[0])];
    expected.push_back(is_view(program, instr) || there ? 0 : 1);
  }
  ASSERT_EQ(step.runs.size(), 1u);
  double sum = 0, launches = 0;
  for (const InstrRun& run : step.runs[0]) {
    ++found[static_cast<size_t>(run.instr)];
    EXPECT_GE(run.seconds, 0);
    EXPECT_LT(run.seconds, 0.1);
    EXPECT_GT(run.share, 0);
    sum += run.seconds, launches += run.share;
  }
  EXPECT_EQ(found, expected);
  EXPECT_GT(sum, 1e-5);
  EXPECT_LE(sum, step.seconds * 1.01 + 1e-4);
  EXPECT_NEAR(launches, std::round(launches), 1e-6);
  EXPECT_LE(std::round(launches), std::ssize(step.runs[0]));
}

INSTANTIATE_TEST_SUITE_P(
    Models, OnGpu, ::testing::Values("gpt2:tiny", "llama:tiny", "qwen2.5:tiny", "mixtral:tiny"),
    [](const auto& info) { return info.param.substr(0, info.param.find_first_of(":.")); });

#else

TEST(OnGpu, NeedsABuildWithCuda) { GTEST_SKIP() << "built without CUDA"; }

#endif

}  // namespace
}  // namespace cleave
