// Every op that has a kernel for the GPU, on every case, against the reference on the CPU in
// double: in f64, f32, bf16 and f16, with operands that lie in any way, and in place.
#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "tests/support/gpu_checks.h"

namespace cleave {
namespace {

#ifdef CLEAVE_CUDA

using testing::OpCase;

class OnGpu : public ::testing::TestWithParam<const OpDef*> {
 protected:
  void SetUp() override {
    if (!testing::has_gpu()) GTEST_SKIP() << "no GPU here";
  }
};

TEST_P(OnGpu, IsWhatTheReferenceIs) {
  const OpDef& op = *GetParam();
  std::vector<OpCase> cases;
  for (const auto& list : {testing::basic_op_cases(), testing::fused_op_cases(),
                           testing::expert_op_cases(), testing::chain_op_cases()}) {
    for (const OpCase& c : list) {
      if (c.op == &op) cases.push_back(c);
    }
  }
  ASSERT_FALSE(cases.empty());
  for (const OpCase& c : cases) {
    if (c.gpu) testing::check_on_gpu(c);
  }
}

std::vector<const OpDef*> ops_of_the_gpu() {
  std::vector<const OpDef*> found;
  for (const OpDef* op : ops::all()) {
    if (op->cuda != nullptr) found.push_back(op);
  }
  return found;
}

INSTANTIATE_TEST_SUITE_P(Kernels, OnGpu, ::testing::ValuesIn(ops_of_the_gpu()),
                         [](const auto& info) { return std::string(info.param->name); });

#else

TEST(OnGpu, NeedsABuildWithCuda) { GTEST_SKIP() << "built without CUDA"; }

#endif

}  // namespace
}  // namespace cleave
