// As training_space_test.cc, with so many plans that any two values of two dimensions meet.
#include <gtest/gtest.h>

#include "tests/training_space_run.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

TEST(WholeSpace, RandomPlansTrainLikeOneDevice) {
  const Coverage coverage = run_space(1000, 600);
  if (number_in("CLEAVE_SPACE_SEED")) return;
  EXPECT_EQ(coverage.never(true), std::vector<std::string>{});
}

}  // namespace
}  // namespace cleave
