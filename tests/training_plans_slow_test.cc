// As training_plans_test.cc, with more plans, and with 6 devices.
#include "tests/training_plans.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

class ManyPlans : public ::testing::TestWithParam<std::tuple<size_t, int>> {};

TEST_P(ManyPlans, TrainLikeOneDevice) {
  const auto [model, devices] = GetParam();
  train_by_plans(model, devices, DType::kF64, 100, kF64, 100000);
}

TEST_P(ManyPlans, TrainLikeOneDeviceInSinglePrecision) {
  const auto [model, devices] = GetParam();
  train_by_plans(model, devices, DType::kF32, 40, kF32, 200000);
}

INSTANTIATE_TEST_SUITE_P(Models, ManyPlans,
                         ::testing::Combine(::testing::Range(size_t{0}, models().size()),
                                            ::testing::Values(2, 3, 4, 6, 8)),
                         [](const auto& info) {
                           return fmt::format("{}_{}", models()[std::get<0>(info.param)].label,
                                              std::get<1>(info.param));
                         });

}  // namespace
}  // namespace cleave
