// Steps that are started before the last one is finished, and the times of their instructions.
#include "tests/recorded.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

TEST(Record, OneRankOfTheCpu) { expect_late_and_recorded("1", Processor::kCpu); }
TEST(Record, FourRanksOfTheCpu) { expect_late_and_recorded("dp=2,tp=2", Processor::kCpu); }

TEST(Record, FinishNeedsAStart) {
  const auto runtime = runtime_of(training_graph(model_named("gpt2:tiny"), DType::kF32), "1");
  EXPECT_THROW(runtime->finish(), InternalError);
}

}  // namespace
}  // namespace cleave
