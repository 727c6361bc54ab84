// Chains on the GPU: random programs of pointwise ops and reductions, fused, give the numbers of
// the unfused ones on the CPU in double, and the same bits twice.
#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "tests/chain_programs.h"

#ifdef CLEAVE_CUDA
#include <cuda_runtime_api.h>
#endif

namespace cleave {
namespace {

#ifdef CLEAVE_CUDA

using testing::apart;
using testing::plan_for;
using testing::random_chain_program;
using testing::run_chain;

class ChainsOnGpu : public ::testing::TestWithParam<DType> {};

TEST_P(ChainsOnGpu, LikeTheCpuInDouble) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) GTEST_SKIP() << "no GPU here";
  const DType dtype = GetParam();
  // A few roundings of numbers of the order of 1, between chains; none inside them.
  const double bound = dtype == DType::kF64    ? 1e-12
                       : dtype == DType::kF32  ? 2e-5
                       : dtype == DType::kBF16 ? 6e-2
                                               : 8e-3;
  double worst = 0;
  int64_t chains = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    std::mt19937 random(seed), same(seed);
    const Graph reference = random_chain_program(random, DType::kF64);
    const Graph graph = random_chain_program(same, dtype);
    const Program whole = lower(reference, plan_for(reference, "1", {}));
    const Program fused = lower(graph, plan_for(graph, "1", {}), true);
    for (const Instr& i : fused.instrs) chains += i.op == &ops::chain;
    const auto want = run_chain(whole, Processor::kCpu, seed);
    const auto got = run_chain(fused, Processor::kGpu, seed);
    const double d = apart(got, want);
    worst = std::max(worst, d);
    EXPECT_LT(d, bound) << "seed " << seed << "\n" << to_text(fused);
    EXPECT_EQ(apart(run_chain(fused, Processor::kGpu, seed), got), 0) << "seed " << seed;
  }
  fmt::print("{}: {} chains, {:.1e} apart at most\n", name_of(dtype), chains, worst);
}

INSTANTIATE_TEST_SUITE_P(Types, ChainsOnGpu,
                         ::testing::Values(DType::kF64, DType::kF32, DType::kBF16, DType::kF16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

#else

TEST(ChainsOnGpu, NeedABuildWithCuda) { GTEST_SKIP() << "built without CUDA"; }

#endif

}  // namespace
}  // namespace cleave
