#include "tests/planner_joint_check.h"

namespace cleave {
namespace {

// A hundred problems each.
class Joint : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Part, Joint, ::testing::Range(0, 5));

TEST_P(Joint, BruteForce) { testing::compare_with_brute_force(GetParam(), 5, 100); }

}  // namespace
}  // namespace cleave
