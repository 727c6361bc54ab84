// On the GPU: steps that are started before the last one is finished, and recorded ones.
#include "tests/recorded.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

class RecordOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    try {
      runtime_of(training_graph(model_named("gpt2:tiny"), DType::kF32), "1", Processor::kGpu);
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
  }
};

TEST_F(RecordOnGpu, LateAndRecordedStepsAreTheSame) {
  expect_late_and_recorded("1", Processor::kGpu);
}

}  // namespace
}  // namespace cleave
