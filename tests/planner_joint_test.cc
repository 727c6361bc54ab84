#include "tests/planner_joint_check.h"

namespace cleave {
namespace {

// planner_joint_slow_test.cc has 500.
TEST(Joint, BruteForce) { testing::compare_with_brute_force(3, 1, 60); }

}  // namespace
}  // namespace cleave
