// Random plans over the whole joint space train like one device, send what they promised, and take
// the memory that they predicted. Hundreds of them: training_space_slow_test.cc.
#include <gtest/gtest.h>

#include "tests/training_space_run.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

TEST(Space, RandomPlansTrainLikeOneDevice) {
  const Coverage coverage = run_space(1, 50);
  if (number_in("CLEAVE_SPACE_SEED")) return;
  EXPECT_EQ(coverage.never(false), std::vector<std::string>{});
}

}  // namespace
}  // namespace cleave
