// AdamW in f32: how exactly it keeps the scalars of a step.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/ops.h"
#include "tests/kernels_plain.h"

namespace cleave {

// A first update of parameters between 1 and 2.
inline Application first_update(const HostTensor& gradient, double beta2, double v, double eps) {
  const int64_t n = gradient.type.shape[0];
  return application(
      ops::adamw,
      {random_tensor(DType::kF32, {n}, 1, 1, 2), gradient, tensor(DType::kF32, {n}, Numbers(at(n))),
       tensor(DType::kF32, {n}, Numbers(at(n), v)), tensor(DType::kF32, {}, {1e-5}),
       tensor(DType::kF32, {}, {1}), HostTensor{{DType::kI32, {}}, {1}}},
      "a,a,a,a,,,->a,a,a", {{"beta1", 0.9}, {"beta2", beta2}, {"eps", eps}, {"weight_decay", 0.1}});
}

// What the update leaves of moments and parameters, where betas and decays are at an end of what
// they may be. run(application): its results.
template <class Run>
void expect_exact_scalars(const Run& run) {
  constexpr int64_t n = 20000;
  const auto all = [](double x) { return tensor(DType::kF32, {n}, Numbers(at(n), x)); };
  // 1 - 1e-6 rounded to f32 would make the decay 1 % more. What the roundings of the parameters
  // themselves add up to is below a thousandth.
  const Application still = first_update(all(0), 0.999, 0, 1e-8);
  const std::vector<HostTensor> decayed = run(still);
  double was = 0, lost = 0;
  for (size_t i = 0; i < at(n); ++i) {
    was += still.in[0].numbers[i];
    lost += still.in[0].numbers[i] - decayed[0].numbers[i];
  }
  EXPECT_NEAR(lost / was / 1e-6, 1, 3e-3);
  // 0.999 rounded to f32 would leave 1.3e-5 too little of a gradient, 0.9 2.4e-7 too much.
  const std::vector<HostTensor> moved = run(first_update(all(1), 0.999, 0, 1e-8));
  // Without a memory: nothing of an old moment is left, however large it was.
  const std::vector<HostTensor> forgot = run(first_update(all(1e-5), 0, 1, 1e-8));
  // Gradients whose squares are below the smallest normal number.
  const Application tiny = first_update(all(1e-20), 0.95, 0, 1e-25);
  const std::vector<HostTensor> stepped = run(tiny);
  for (size_t i = 0; i < at(n); ++i) {
    ASSERT_NEAR(moved[1].numbers[i] / 0.1, 1, 1.2e-7);
    ASSERT_NEAR(moved[2].numbers[i] / 0.001, 1, 1.2e-7);
    ASSERT_NEAR(forgot[2].numbers[i] / 1e-10, 1, 3e-7);
    // A step of 1e-5, of which the f32 around 1 to 2 leave a hundredth.
    const double p = tiny.in[0].numbers[i];
    ASSERT_NEAR((p * (1 - 1e-6) - stepped[0].numbers[i]) / 1e-5, 1, 0.03);
  }
}

}  // namespace cleave
