// AdamW in f32: how exactly it keeps the scalars of a step.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "kernels/ops.h"
#include "tests/kernels_plain.h"

namespace cleave {

// A beta2 of 0.999 and a decay of 1e-6 a step, whose complements, 1 - beta2 and 1 - 1e-6, are not
// rounded to f32 before they are used: that would make of them 1.3e-5 and 1 % more or less.
// run(application): its results.
template <class Run>
void expect_exact_scalars(const Run& run) {
  constexpr int64_t n = 20000;
  const HostTensor p = random_tensor(DType::kF32, {n}, 1, 1, 2);
  const HostTensor zero = tensor(DType::kF32, {n}, Numbers(n)),
                   one = tensor(DType::kF32, {n}, Numbers(n, 1.0));
  const auto update = [&](const HostTensor& g) {
    return run(
        application(ops::adamw,
                    {p,
                     g,
                     zero,
                     zero,
                     tensor(DType::kF32, {}, {1e-5}),
                     tensor(DType::kF32, {}, {1}),
                     {{DType::kI32, {}}, {1}}},
                    "a,a,a,a,,,->a,a,a",
                    {{"beta1", 0.9}, {"beta2", 0.999}, {"eps", 1e-8}, {"weight_decay", 0.1}}));
  };
  const std::vector<HostTensor> still = update(zero);
  double was = 0, lost = 0;  // what a rounding of each parameter adds to this is below a thousandth
  for (size_t i = 0; i < p.numbers.size(); ++i) {
    was += p.numbers[i];
    lost += p.numbers[i] - still[0].numbers[i];
  }
  EXPECT_NEAR(lost / was / 1e-6, 1, 3e-3);
  EXPECT_NEAR(update(one)[1].numbers[0] / 0.1, 1, 2e-7);
  EXPECT_NEAR(update(one)[2].numbers[0] / 0.001, 1, 2e-7);
}

}  // namespace cleave
