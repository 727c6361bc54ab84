// Updates of the optimizers against plain loops in double, written from their papers.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/ops.h"
#include "tests/kernels_adamw_scalars.h"
#include "tests/kernels_in_two.h"

namespace cleave {
namespace {

// --- Optimizers ----------------------------------------------------------------------------------

double scalar_of(const OpDef& op, HostTensor in, const char* factors, Attrs attrs, size_t output) {
  return testing::run_op(application(op, {std::move(in)}, factors, std::move(attrs)))[output]
      .numbers[0];
}

// Ten steps with weight decay and a clip coefficient, outputs over inputs as in training. The plain
// loop is torch.optim.AdamW's documented algorithm.
TEST(Optimizers, AdamWFollowsThePlainLoop) {
  constexpr double kB1 = 0.9, kB2 = 0.95, kEps = 1e-8, kDecay = 0.1;
  for (const DType dtype : kFloats) {
    const int64_t n = 3 * 37;
    HostTensor p = random_tensor(dtype, {3, 37}, 1), m = tensor(dtype, {3, 37}, Numbers(at(n))),
               v = m;
    Numbers plain = p.numbers, first(at(n)), second(at(n));
    for (int step = 1; step <= 10; ++step) {
      const auto g = random_tensor(dtype, {3, 37}, 10 + static_cast<uint64_t>(step));
      const auto lr = tensor(dtype, {}, {0.01 * step}), clip = tensor(dtype, {}, {1.0 / step});
      const auto out = testing::run_op(
          application(ops::adamw,
                      {p, g, m, v, lr, clip, {{DType::kI32, {}}, {static_cast<double>(step)}}}, "",
                      {{"beta1", kB1}, {"beta2", kB2}, {"eps", kEps}, {"weight_decay", kDecay}}),
          {.in_place = {{0, 0}, {1, 2}, {2, 3}}});
      p = out[0], m = out[1], v = out[2];
      for (size_t i = 0; i < plain.size(); ++i) {
        const double grad = g.numbers[i] * clip.numbers[0];
        plain[i] -= lr.numbers[0] * kDecay * plain[i];
        first[i] = kB1 * first[i] + (1 - kB1) * grad;
        second[i] = kB2 * second[i] + (1 - kB2) * grad * grad;
        const double m_hat = first[i] / (1 - std::pow(kB1, step));
        const double v_hat = second[i] / (1 - std::pow(kB2, step));
        plain[i] -= lr.numbers[0] * m_hat / (std::sqrt(v_hat) + kEps);
      }
      expect_near(p.numbers, plain, tolerance_of(dtype), "parameter");
      expect_near(m.numbers, first, tolerance_of(dtype), "first moment");
      expect_near(v.numbers, second, tolerance_of(dtype), "second moment");
    }
  }
}

TEST(Optimizers, AdamWKeepsItsScalars) {
  expect_exact_scalars([](const Application& a) { return testing::run_op(a); });
}

TEST(Optimizers, SgdFollowsThePlainLoop) {
  for (const DType dtype : kFloats) {
    HostTensor p = random_tensor(dtype, {29}, 1), buffer = tensor(dtype, {29}, Numbers(29));
    Numbers plain = p.numbers, velocity;
    for (int step = 1; step <= 10; ++step) {
      const auto g = random_tensor(dtype, {29}, 10 + static_cast<uint64_t>(step));
      const auto lr = tensor(dtype, {}, {0.1}), clip = tensor(dtype, {}, {0.5});
      const auto out =
          testing::run_op(application(ops::sgd, {p, g, buffer, lr, clip}, "a,a,a,,->a,a",
                                      {{"momentum", 0.9}, {"weight_decay", 0.01}}),
                          {.in_place = {{0, 0}, {1, 2}}});
      p = out[0], buffer = out[1];
      Numbers grad(plain.size());
      for (size_t i = 0; i < plain.size(); ++i) {
        grad[i] = g.numbers[i] * clip.numbers[0] + 0.01 * plain[i];
      }
      if (velocity.empty()) {
        velocity = grad;  // torch: the first step's buffer is the gradient
      } else {
        for (size_t i = 0; i < grad.size(); ++i) velocity[i] = 0.9 * velocity[i] + grad[i];
      }
      for (size_t i = 0; i < plain.size(); ++i) plain[i] -= lr.numbers[0] * velocity[i];
      expect_near(p.numbers, plain, tolerance_of(dtype), "parameter");
    }
  }
}

TEST(Optimizers, ClipCoefficient) {
  const auto clip = [&](std::vector<double> operands, double max_norm) {
    std::vector<HostTensor> in;
    for (double x : operands) in.push_back({{DType::kF64, {}}, {x}});
    const auto out = testing::run_op(application(
        ops::clip_coefficient, in, in.size() == 4 ? ",,,->," : "", {{"max_norm", max_norm}}));
    return std::pair(out[0].numbers[0], out[1].numbers[0]);
  };
  EXPECT_DOUBLE_EQ(clip({16, 1}, 1).first, 4);
  EXPECT_DOUBLE_EQ(clip({16, 1}, 1).second, 1 / (4 + 1e-6));
  EXPECT_EQ(clip({16, 1}, 5).second, 1);
  EXPECT_EQ(clip({16, 1}, 0).second, 1);
  // What is not finite, and what is above its limit, skips the update.
  const double inf = std::numeric_limits<double>::infinity();
  for (const double x : {static_cast<double>(NAN), inf}) {
    EXPECT_EQ(clip({x, 1}, 1).second, -1);
    EXPECT_EQ(clip({16, x}, 1).second, -1);
  }
  EXPECT_EQ(clip({16, 2, 3, 5}, 0).second, 1);
  EXPECT_EQ(clip({16, 2, inf, inf}, 0).second, 1);
  EXPECT_EQ(clip({16, 3.5, 3, 5}, 0).second, -1);
  EXPECT_EQ(clip({16, 2, 3, 3.9}, 0).second, -1);
}

// Whatever the gradient holds, a skipped update changes nothing, in place or not.
TEST(Optimizers, SkippedUpdatesChangeNothing) {
  const HostTensor p = {{DType::kF64, {3}}, {1, -2, 3}}, m = {{DType::kF64, {3}}, {4, 5, 6}},
                   v = {{DType::kF64, {3}}, {7, 8, 9}}, bad = {{DType::kF64, {3}}, {NAN, 1, 2}},
                   lr = {{DType::kF64, {}}, {0.1}}, skip = {{DType::kF64, {}}, {-1}},
                   step = {{DType::kI32, {}}, {3}};
  const auto adam = testing::run_op(
      application(ops::adamw, {p, bad, m, v, lr, skip, step}, "a,a,a,a,,,->a,a,a",
                  {{"beta1", 0.9}, {"beta2", 0.95}, {"eps", 1e-8}, {"weight_decay", 0.1}}));
  EXPECT_EQ(adam[0].numbers, p.numbers);
  EXPECT_EQ(adam[1].numbers, m.numbers);
  EXPECT_EQ(adam[2].numbers, v.numbers);
  const auto sgd = testing::run_op(application(ops::sgd, {p, bad, m, lr, skip}, "a,a,a,,->a,a",
                                               {{"momentum", 0.9}, {"weight_decay", 0.1}}));
  EXPECT_EQ(sgd[0].numbers, p.numbers);
  EXPECT_EQ(sgd[1].numbers, m.numbers);
}

// A parameter in two is updated as it is in one, to the bit.
TEST(Optimizers, ParametersInTwoAreThoseInOne) {
  for (const Shape& shape : {Shape{1}, Shape{300}, Shape{7, 33}, Shape{3, 5, 4}}) {
    for (const bool adam : {true, false}) {
      for (const DType moments : {DType::kF32, DType::kBF16}) {
        for (const double clip : {0.5, -1.0}) {
          const Application whole = random_update(adam, shape, DType::kF32, moments, clip);
          const std::vector<HostTensor> want = testing::run_op(whole);
          const Application two = in_two(whole);
          for (const MemoryLayout layout : {MemoryLayout::kRowMajor, MemoryLayout::kPadded,
                                            MemoryLayout::kSpaced, MemoryLayout::kTransposed}) {
            for (const bool in_place : {true, false}) {
              const auto got = in_one(testing::run_op(
                  two, {.layout = layout,
                        .in_place = in_place ? in_place_of(two) : decltype(in_place_of(two)){}}));
              ASSERT_EQ(got.size(), want.size());
              for (size_t o = 0; o < want.size(); ++o) {
                EXPECT_EQ(got[o].type, want[o].type);
                EXPECT_EQ(got[o].numbers, want[o].numbers) << o << " " << to_string(shape);
              }
            }
          }
        }
      }
    }
  }
}

TEST(Optimizers, ParametersInTwoHaveTheirTypes) {
  const Application good = in_two(random_update(true, {4}, DType::kF32, DType::kF32));
  const auto refused = [&](const std::function<void(Application&)>& change) {
    Application a = good;
    change(a);
    EXPECT_THROW(testing::run_op(a), std::exception);
  };
  testing::run_op(good);
  refused([](Application& a) { a.in[0].type.dtype = DType::kF32; });
  refused([](Application& a) { a.in.back().type.dtype = DType::kI32; });
  refused([](Application& a) { a.in[2].type.dtype = DType::kF64; });
  refused([](Application& a) { a.attrs.set("dtype", std::string("f32")); });
  refused([](Application& a) { a.attrs.set("rest", int64_t{0}); });
}

TEST(Optimizers, LearningRateSchedule) {
  const auto rate = [](int step, const char* kind) {
    return scalar_of(ops::learning_rate, {{DType::kI32, {}}, {static_cast<double>(step)}}, "",
                     {{"base", 1.0},
                      {"min", 0.1},
                      {"warmup", int64_t{10}},
                      {"total", int64_t{110}},
                      {"kind", std::string(kind)},
                      {"dtype", std::string("f64")}},
                     0);
  };
  EXPECT_DOUBLE_EQ(rate(1, "cosine"), 0.1);
  EXPECT_DOUBLE_EQ(rate(10, "cosine"), 1);
  EXPECT_DOUBLE_EQ(rate(60, "cosine"), 0.55);
  EXPECT_DOUBLE_EQ(rate(110, "cosine"), 0.1);
  EXPECT_DOUBLE_EQ(rate(500, "cosine"), 0.1);
  EXPECT_DOUBLE_EQ(rate(5, "constant"), 0.5);
  EXPECT_DOUBLE_EQ(rate(500, "constant"), 1);
}

}  // namespace
}  // namespace cleave
