// On the GPU: an evaluation in the memory of the training that it looks at, which it leaves as it
// was.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "executor/evaluator.h"
#include "tests/recorded.h"

#ifdef CLEAVE_CUDA
#include <cuda_runtime_api.h>
#endif

namespace cleave {
namespace {

#ifdef CLEAVE_CUDA

using namespace testing;  // NOLINT

size_t free_bytes() {
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  return free;
}

struct Evaluated {
  const char* model;
  DType dtype;
  const char* weight;
};

class EvaluatorOnGpu : public ::testing::TestWithParam<Evaluated> {};

TEST_P(EvaluatorOnGpu, WorksInTheTrainersMemory) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) GTEST_SKIP() << "no GPU here";
  const auto [model, dtype, weight] = GetParam();
  ModelConfig config = model_named(model);
  for (const char* number : {"vocab=50304", "hidden=256"}) set_value(config, number);
  const Graph graph = training_graph(config, dtype);
  const Graph loss_alone = trace(config, {dtype, false, {}});
  const auto trained = runtime_of(graph, "1", Processor::kGpu);
  const size_t before = free_bytes();
  FuseOptions fusing(true);
  fusing.trained = &trained->program();
  const Program program = lower(loss_alone, plan_for(loss_alone, "1", {}), fusing);
  const auto shared = make_runtime(program, Processor::kGpu, {.seed = 42, .beside = trained.get()});
  const size_t taken = before - free_bytes();
  EXPECT_TRUE(shared->shares(weight));
  EXPECT_LT(taken, static_cast<size_t>(program.arena_bytes)) << "no arena of its own";
  const auto alone = make_runtime(program, Processor::kGpu, {.seed = 42});
  EXPECT_FALSE(alone->shares(weight));
  for (int step = 0; step < 3; ++step) {
    feed(*trained, config, step);
    trained->step();
    const std::vector<std::byte> weights = trained->read_source(weight);
    for (const ProgramSource& s : alone->program().sources) {
      if (s.kind == SourceKind::kData) continue;
      alone->write_source(s.name, trained->read_source(s.name));
    }
    double found[2] = {};
    for (const auto& [runtime, loss] :
         {std::pair(shared.get(), &found[0]), {alone.get(), &found[1]}}) {
      feed(*runtime, config, 100 + step);
      *loss = runtime->step().value("loss");
    }
    EXPECT_EQ(found[0], found[1]) << step;
    EXPECT_EQ(trained->read_source(weight), weights) << "an evaluation changes nothing";
  }
}

// The evaluator asks for a program that can.
TEST_P(EvaluatorOnGpu, LowersWhatSharesTheWeights) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) GTEST_SKIP() << "no GPU here";
  const auto [model, dtype, weight] = GetParam();
  ModelConfig config = model_named(model);
  set_value(config, "hidden=256");
  const Graph loss_alone = trace(config, {dtype, false, {}});
  const Plan plan = plan_for(loss_alone, "1", {});
  const auto trained = runtime_of(training_graph(config, dtype), "1", Processor::kGpu);
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("cleave_evaluated_" + std::to_string(::getpid()));
  std::ofstream(path) << std::string(20000, 'a');
  const TokenData data({path.string()}, config.sequence);
  std::filesystem::remove(path);
  const auto evaluator = [&](const Runtime* beside) {
    return std::make_unique<Evaluator>(loss_alone, plan, data, BatchOptions{.vocab = config.vocab},
                                       2, Processor::kGpu, FuseOptions(true),
                                       RunOptions{.seed = 42, .beside = beside});
  };
  const auto shared = evaluator(trained.get()), alone = evaluator(nullptr);
  EXPECT_GT(alone->allocated_bytes() - shared->allocated_bytes(),
            lower(loss_alone, plan, true).arena_bytes / 2);
  EXPECT_NEAR(shared->loss(*trained), alone->loss(*trained), 1e-2);
}

// Weights of queries, keys and values lie side by side in training, and not in an evaluation.
INSTANTIATE_TEST_SUITE_P(
    Models, EvaluatorOnGpu,
    ::testing::Values(Evaluated{"gpt2:tiny", DType::kBF16, "wte.weight"},
                      Evaluated{"llama:tiny", DType::kBF16, "layers.0.attn.k.weight"},
                      Evaluated{"llama:tiny", DType::kF32, "layers.0.attn.k.weight"}),
    [](const auto& info) {
      return std::string(info.param.model).substr(0, 5) == "gpt2:"
                 ? std::string("gpt2")
                 : "llama_" + std::string(name_of(info.param.dtype));
    });

#else

TEST(EvaluatorOnGpu, NeedsABuildWithCuda) { GTEST_SKIP() << "built without CUDA"; }

#endif

}  // namespace
}  // namespace cleave
