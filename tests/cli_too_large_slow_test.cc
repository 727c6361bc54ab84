// Meshes that cannot be solved, their tables being too large, among others that can.
#include "tests/cli_answers.h"

namespace cleave {
namespace {

TEST(TooLarge, OneNumberOfMicroBatchesOfSeveral) {
  const testing::Outcome o =
      testing::capture({"plan", "gpt2:tiny", "--set", "layers=2", "--cluster", "cpu:8", "--mesh",
                        "2x2x2", "--batch", "4"});
  EXPECT_EQ(o.status, 0) << o.err;
  EXPECT_NE(o.out.find("bound     no lower bound is known"), std::string::npos) << o.out;
}

}  // namespace
}  // namespace cleave
