// First-stage totals of the 2022 paper's smaller configurations; planner_first_stage_slow_test.cc
// has the larger ones.
#include "tests/paper_first_stage.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

TEST(FirstStage, Gpt22b) {
  expect_first_stage({"22B", {.h = 6144, .a = 64, .s = 2048, .b = 4}, 48, 1, 1, 1});
}

TEST(FirstStage, Gpt175b) {
  expect_first_stage({"175B", {.h = 12288, .a = 96, .s = 2048, .b = 1}, 96, 8, 3, 64});
}

}  // namespace
}  // namespace cleave
