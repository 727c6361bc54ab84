// First-stage totals of the 2022 paper's larger configurations.
#include "tests/paper_first_stage.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

TEST(FirstStage, Gpt530b) {
  expect_first_stage({"530B", {.h = 20480, .a = 128, .s = 2048, .b = 1}, 105, 35, 3, 280});
}

TEST(FirstStage, Gpt1t) {
  expect_first_stage({"1T", {.h = 25600, .a = 160, .s = 2048, .b = 1}, 128, 64, 1, 512});
}

}  // namespace
}  // namespace cleave
