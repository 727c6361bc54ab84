// What a plan says that a run will take, against the run on the GPU: its memory to the byte.
#include <gtest/gtest.h>

#include <string>

#include "executor/lower.h"
#include "executor/prediction.h"
#include "executor/runtime.h"
#include "tests/training_plans.h"

#ifdef CLEAVE_CUDA
#include <cuda_runtime_api.h>

#include "executor/cuda/cuda_runtime.h"
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

// Every instruction is timed, and what two of them that are the same take is the same.
TEST_P(OnGpu, TimesInstructionsInGraphs) {
  const ModelConfig config = model_named(GetParam());
  const Graph graph = testing::training_graph(config, DType::kBF16);
  CudaRuntime runtime(lower(graph, plan_on_gpu(graph), true));
  runtime.initialize();
  const std::vector<double> seconds = runtime.seconds_in_graphs(1e-3);
  ASSERT_EQ(seconds.size(), runtime.program().instrs.size());
  double sum = 0;
  for (const double s : seconds) {
    EXPECT_GE(s, 0);
    EXPECT_LT(s, 0.1);
    sum += s;
  }
  EXPECT_GT(sum, 1e-5);
}

INSTANTIATE_TEST_SUITE_P(
    Models, OnGpu, ::testing::Values("gpt2:tiny", "llama:tiny", "qwen2.5:tiny", "mixtral:tiny"),
    [](const auto& info) { return info.param.substr(0, info.param.find_first_of(":.")); });

#else

TEST(OnGpu, NeedsABuildWithCuda) { GTEST_SKIP() << "built without CUDA"; }

#endif

}  // namespace
}  // namespace cleave
