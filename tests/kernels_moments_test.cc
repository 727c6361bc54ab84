// Moments of 16 bits: rounding that is right on average, by random numbers that go by the element's
// place in the whole tensor alone; and what rounding to the nearest loses.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <set>

#include <fmt/format.h>

#include "graph/half.h"
#include "kernels/stochastic.h"
#include "kernels/whole_index.h"
#include "tests/kernels_plain.h"

namespace cleave {
namespace {

// --- One number ----------------------------------------------------------------------------------

double rounded(float x, uint32_t random) {
  return bf16_number(stochastic_bf16(std::bit_cast<uint32_t>(x), random));
}

// Over all random numbers that there are, the mean is the number itself: exactly, as double holds
// these sums.
TEST(StochasticRounding, TheMeanIsTheNumber) {
  for (const float x : {0.0F, 1.0F, 1.001F, -1.001F, 0.99999994F, 3.14159F, -2.5e-7F, 1e-38F,
                        -1e-39F, 1.4e-45F, 1.7e38F, 123456.78F}) {
    double sum = 0;
    std::set<double> results;
    for (uint32_t r = 0; r < 65536; ++r) {
      const double y = rounded(x, r);
      sum += y;
      results.insert(y);
    }
    EXPECT_EQ(sum, 65536.0 * static_cast<double>(x)) << x;
    const bool exact = bf16_number(bf16_bits(static_cast<double>(x))) == static_cast<double>(x);
    EXPECT_EQ(results.size(), exact ? 1u : 2u) << x;
    EXPECT_EQ(rounded(x, 0xabcd0000), rounded(x, 0)) << "only 16 bits count";
  }
}

TEST(StochasticRounding, WhatIsFiniteStaysSo) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const double largest = bf16_number(0x7f7f);
  for (const uint32_t r : {0u, 1u, 0x8000u, 0xffffu}) {
    EXPECT_EQ(rounded(kLargest, r), largest);
    EXPECT_EQ(rounded(-kLargest, r), -largest);
    EXPECT_EQ(rounded(kInfinity, r), static_cast<double>(kInfinity));
    EXPECT_EQ(rounded(-kInfinity, r), -static_cast<double>(kInfinity));
    for (const uint32_t nan : {0x7fc00000u, 0x7f800001u, 0x7fffffffu, 0xffffffffu}) {
      EXPECT_TRUE(std::isnan(rounded(std::bit_cast<float>(nan), r))) << nan;
    }
  }
}

// --- Places --------------------------------------------------------------------------------------

// Against positions counted out one by one.
TEST(WholeIndex, SaysWhereEachElementLies) {
  const Signature& s = Signature::get("a(bc)->a(bc)|a:indexed,b:indexed,c:indexed");
  const Attrs attrs;
  int spaced = 0, others = 0;
  for (const Extent& a : cut_extents(12)) {
    for (const Extent& b :
         {Extent{3, 3, {}}, Extent{2, 4, {{1, 2, 1}}}, Extent{1, 2, {{1, 2, 1}}}}) {
      for (const Extent& c : cut_extents(8)) {
        const std::vector<Extent> extents = {a, b, c};
        const KernelArgs args{
            .signature = s, .attrs = attrs, .in = {}, .out = {}, .extents = extents};
        const WholeIndex where(args, s.inputs()[0]);
        const auto regular = where.spaced();
        (regular ? spaced : others) += 1;
        int64_t before = -1;
        for (int64_t i = 0; i < a.local * b.local * c.local; ++i) {
          const int64_t want =
              (a.position(i / c.local / b.local) * b.global + b.position(i / c.local % b.local)) *
                  c.global +
              c.position(i % c.local);
          ASSERT_EQ(where.at(i), want);
          ASSERT_TRUE(i % where.run() == 0 || want == before + 1) << i;
          if (regular) {
            ASSERT_EQ(regular->first + i / regular->run * regular->stride + i % regular->run, want);
          }
          before = want;
        }
      }
    }
  }
  EXPECT_GT(spaced, 100);
  EXPECT_GT(others, 100);
}

// --- Updates -------------------------------------------------------------------------------------

constexpr const char* kAdam = "ab,ab,ab,ab,,,->ab,ab,ab|a:indexed,b:indexed";
constexpr const char* kSgd = "ab,ab,ab,,,->ab,ab|a:indexed,b:indexed";

HostTensor filled(DType dtype, const Shape& shape, double x) {
  return {{dtype, shape}, Numbers(at(numel(shape)), testing::rounded(x, dtype))};
}

struct Adam {
  HostTensor p, g, m, v;
  double lr = 0.01, clip = 1, beta1 = 0.9, beta2 = 0.999;
  std::string name = "adam.w";  // empty: to the nearest

  Application application(int step) const {
    const DType dtype = p.type.dtype;
    Attrs attrs = {{"beta1", beta1}, {"beta2", beta2}, {"eps", 1e-8}, {"weight_decay", 0.1}};
    if (!name.empty()) attrs.set("name", name);
    return cleave::application(ops::adamw,
                               {p,
                                g,
                                m,
                                v,
                                tensor(dtype, {}, {lr}),
                                tensor(dtype, {}, {clip}),
                                {{DType::kI32, {}}, {static_cast<double>(step)}}},
                               kAdam, attrs);
  }
  void step(int number) {
    const auto out = testing::run_op(application(number), {.in_place = {{0, 0}, {1, 2}, {2, 3}}});
    p = out[0], m = out[1], v = out[2];
  }
};

Adam random_adam(const Shape& shape, DType dtype = DType::kF32) {
  Adam a{random_tensor(dtype, shape, 1), random_tensor(dtype, shape, 2), {}, {}};
  a.m = random_tensor(DType::kBF16, shape, 3), a.v = random_tensor(DType::kBF16, shape, 4, 0, 1);
  return a;
}

Application random_sgd(const Shape& shape, int step, DType dtype = DType::kF32) {
  return application(ops::sgd,
                     {random_tensor(dtype, shape, 1),
                      random_tensor(dtype, shape, 2),
                      random_tensor(DType::kBF16, shape, 3),
                      tensor(dtype, {}, {0.1}),
                      tensor(dtype, {}, {0.5}),
                      {{DType::kI32, {}}, {static_cast<double>(step)}}},
                     kSgd,
                     {{"momentum", 0.9}, {"weight_decay", 0.1}, {"name", std::string("sgd.w")}});
}

double mean(const Numbers& x) {
  double sum = 0;
  for (const double v : x) sum += v;
  return sum / static_cast<double>(x.size());
}

// The share of the way from the bf16 below to the one above at which x lies, and the way.
struct Between {
  double share, step;
};
Between between(double x) {
  const double down = rounded(static_cast<float>(x), 0), up = rounded(static_cast<float>(x), 65535);
  return {up == down ? 0 : (x - down) / (up - down), up - down};
}

// Many equal elements: their stored moments have the mean of what was computed, and the two moments
// of an element are rounded independently. Bounds are five deviations.
TEST(MomentsIn16Bits, AreRightOnAverage) {
  const Shape shape = {300, 401};
  const auto n = static_cast<double>(numel(shape));
  Adam a{filled(DType::kF32, shape, 1), filled(DType::kF32, shape, 0.7),
         filled(DType::kBF16, shape, 0.3), filled(DType::kBF16, shape, 0.011)};
  const double m0 = a.m.numbers[0], v0 = a.v.numbers[0], g = a.g.numbers[0];
  a.step(3);
  const double m = m0 + (g - m0) * 0.1, v = v0 * 0.999 + g * g * 0.001;
  const Between in_m = between(m), in_v = between(v);
  const auto deviation = [&](double share) { return std::sqrt(share * (1 - share) / n); };
  ASSERT_GT(in_m.share * (1 - in_m.share), 0.01);
  ASSERT_GT(in_v.share * (1 - in_v.share), 0.01);
  EXPECT_NEAR(mean(a.m.numbers), m, 5 * in_m.step * deviation(in_m.share) + 1e-7);
  EXPECT_NEAR(mean(a.v.numbers), v, 5 * in_v.step * deviation(in_v.share) + 1e-9);
  double both = 0;
  for (size_t i = 0; i < a.m.numbers.size(); ++i) {
    both += a.m.numbers[i] > m && a.v.numbers[i] > v ? 1 : 0;
  }
  const double expected = in_m.share * in_v.share;
  EXPECT_NEAR(both / n, expected, 5 * deviation(expected));
  // The parameter is computed from the moments as they were before rounding: all are equal.
  EXPECT_EQ(std::set<double>(a.p.numbers.begin(), a.p.numbers.end()).size(), 1u);
}

// Every stored moment is one of the two numbers around what f32 moments would be.
TEST(MomentsIn16Bits, AreNeighboursOfWideOnes) {
  for (const DType dtype : kFloats) {
    const Adam a = random_adam({37, 53}, dtype);
    Adam wide = a;
    wide.name.clear();
    wide.m.type.dtype = wide.v.type.dtype = dtype;
    const auto got = testing::run_op(a.application(4)), want = testing::run_op(wide.application(4));
    expect_near(got[0].numbers, want[0].numbers, dtype == DType::kF64 ? 1e-14 : 1e-6, "parameter");
    for (const size_t o : {1, 2}) {
      double away = 0, expected = 0, variance = 0;
      for (size_t i = 0; i < got[o].numbers.size(); ++i) {
        const double x = want[o].numbers[i];
        const auto [share, step] = between(x);
        EXPECT_LT(std::abs(got[o].numbers[i] - x), std::abs(step) + 1e-6 * std::abs(x)) << x;
        // As often as its share says it goes to the number that is not the nearer one.
        const double less = std::min(share, 1 - share);
        away += got[o].numbers[i] != testing::rounded(x, DType::kBF16);
        expected += less, variance += less * (1 - less);
      }
      EXPECT_NEAR(away, expected, 5 * std::sqrt(variance));
    }
  }
}

// With beta2 = 0.999 a step moves v by about a thousandth while squares of gradients are near it,
// and half a step of bf16 is up to four: to the nearest, v stays where it is. Stochastically it
// follows; the bound is five deviations, of at most step^2 / 4 an update.
TEST(MomentsIn16Bits, SmallStepsOfTheSecondMomentAreNotLost) {
  const Shape shape = {64, 64};
  constexpr int kSteps = 300;
  for (const double square : {2.0, 0.0}) {  // grows, falls
    const auto made = [&](const std::string& name) {
      Adam a{filled(DType::kF32, shape, 1), filled(DType::kF32, shape, std::sqrt(square)),
             filled(DType::kBF16, shape, 0), filled(DType::kBF16, shape, 1)};
      a.lr = 0;
      a.name = name;
      for (int step = 1; step <= kSteps; ++step) a.step(step);
      return a.v.numbers;
    };
    const double want = square + (1 - square) * std::pow(0.999, kSteps);
    const double step = square > 1 ? 0x1p-7 : 0x1p-8;
    const double deviation =
        std::sqrt(kSteps * step * step / 4 / static_cast<double>(numel(shape)));
    ASSERT_LT(5 * deviation, 0.05 * std::abs(want - 1));
    EXPECT_NEAR(mean(made("adam.w")), want, 5 * deviation);
    EXPECT_EQ(mean(made("")), 1) << "to the nearest";
  }
}

TEST(MomentsIn16Bits, NamesAndStepsHaveTheirOwnNumbers) {
  const Adam a = random_adam({40, 50});
  const auto base = testing::run_op(a.application(7));
  EXPECT_EQ(testing::run_op(a.application(7))[1].numbers, base[1].numbers);
  Adam other = a;
  other.name = "adam.u";
  const auto same = [&](const Numbers& x, const Numbers& y) {
    size_t equal = 0;
    for (size_t i = 0; i < x.size(); ++i) equal += x[i] == y[i];
    return static_cast<double>(equal) / static_cast<double>(x.size());
  };
  // Two independent roundings agree with p^2 + (1 - p)^2, which is 2/3 on average.
  for (const Numbers& x : {testing::run_op(a.application(8))[1].numbers,
                           testing::run_op(other.application(7))[1].numbers}) {
    EXPECT_NEAR(same(x, base[1].numbers), 2.0 / 3, 0.06);
  }
}

// Any layout in memory, in place or not.
TEST(MomentsIn16Bits, LieInAnyWay) {
  for (const Application& a : {random_adam({13, 22}).application(2), random_sgd({13, 22}, 2)}) {
    const auto want = testing::run_op(a);
    const std::vector<std::pair<size_t, size_t>> in_place =
        a.op == &ops::adamw ? std::vector<std::pair<size_t, size_t>>{{0, 0}, {1, 2}, {2, 3}}
                            : std::vector<std::pair<size_t, size_t>>{{0, 0}, {1, 2}};
    for (const MemoryLayout layout : {MemoryLayout::kRowMajor, MemoryLayout::kPadded,
                                      MemoryLayout::kSpaced, MemoryLayout::kTransposed}) {
      for (const auto& places : {decltype(in_place){}, in_place}) {
        const auto got = testing::run_op(a, {.layout = layout, .in_place = places});
        for (size_t o = 0; o < want.size(); ++o) {
          EXPECT_EQ(got[o].numbers, want[o].numbers) << a.op->name << o;
        }
      }
    }
  }
}

// A shard of any kind rounds its elements as they are rounded in the whole.
TEST(MomentsIn16Bits, AShardRoundsItsPartOfTheWhole) {
  const int64_t rows = 12, columns = 24;
  for (const Application& whole : {random_adam({rows, columns}, DType::kF64).application(5),
                                   random_sgd({rows, columns}, 5, DType::kF64)}) {
    const auto want = testing::run_op(whole);
    for (const Extent& er : cut_extents(rows)) {
      for (const Extent& ec : cut_extents(columns)) {
        const auto part_of = [&](const Numbers& x) {
          Numbers part;
          for (int64_t r = 0; r < er.local; ++r) {
            for (int64_t c = 0; c < ec.local; ++c) {
              part.push_back(x[at(er.position(r) * columns + ec.position(c))]);
            }
          }
          return part;
        };
        Application shard = whole;
        shard.extents = {er, ec};
        for (HostTensor& t : shard.in) {
          if (t.type.shape.empty()) continue;
          t = {{t.type.dtype, {er.local, ec.local}}, part_of(t.numbers)};
        }
        const auto got = testing::run_op(shard);
        for (size_t o = 0; o < got.size(); ++o) {
          ASSERT_EQ(got[o].numbers, part_of(want[o].numbers)) << whole.op->name << o;
        }
      }
    }
  }
}

// An update that is left out changes no bit, and the step's number, which stays, has its random
// numbers for the next one.
TEST(MomentsIn16Bits, SkippedUpdatesChangeNothing) {
  Adam a = random_adam({7, 9});
  a.g.numbers[5] = NAN;
  a.clip = -1;
  for (const bool in_place : {false, true}) {
    const auto out = testing::run_op(
        a.application(3),
        {.in_place = in_place ? std::vector<std::pair<size_t, size_t>>{{0, 0}, {1, 2}, {2, 3}}
                              : std::vector<std::pair<size_t, size_t>>{}});
    EXPECT_EQ(out[0].numbers, a.p.numbers);
    EXPECT_EQ(out[1].numbers, a.m.numbers);
    EXPECT_EQ(out[2].numbers, a.v.numbers);
  }
}

// With a copy of the parameter behind the results.
TEST(MomentsIn16Bits, CopiesAreOfTheNewParameter) {
  Application a = random_adam({6, 10}).application(3);
  const auto want = testing::run_op(a);
  a.attrs.set("dtype", std::string("f64"));
  a.signature = &Signature::get("ab,ab,ab,ab,,,->ab,ab,ab,ab|a:indexed,b:indexed");
  const auto got = testing::run_op(a);
  for (size_t o = 0; o < 3; ++o) EXPECT_EQ(got[o].numbers, want[o].numbers);
  EXPECT_EQ(got[3].numbers, want[0].numbers);
}

TEST(MomentsIn16Bits, AnotherSeedRoundsInAnotherWay) {
  const Application adam = random_adam({16, 16}).application(1);
  const auto with_seed = [&](uint64_t seed) {
    return testing::run_op(
        adam, {.kernel = [seed](const OpDef& op, const OpCall&, const KernelArgs& args, auto) {
          op.cpu(
              {args.signature, args.attrs, args.in, args.out, args.extents, args.workspace, seed});
        }});
  };
  const auto one = with_seed(1), same = with_seed(1), other = with_seed(2);
  for (size_t o = 0; o < one.size(); ++o) EXPECT_EQ(one[o].numbers, same[o].numbers);
  EXPECT_EQ(one[0].numbers, other[0].numbers) << "the parameter comes from what is not rounded";
  EXPECT_NE(one[1].numbers, other[1].numbers);
  EXPECT_NE(one[2].numbers, other[2].numbers);
}

TEST(MomentsIn16Bits, OtherTypesAreRefused) {
  const auto refused = [](DType p, DType m, DType v, bool named) {
    Graph g;
    std::vector<Value> in;
    const auto add = [&](DType t, Shape shape) {
      in.push_back(add_data(g, fmt::format("x{}", in.size()), t, std::move(shape)));
    };
    for (const DType t : {p, p, m, v}) add(t, {2, 3});
    for (const DType t : {p, p, DType::kI32}) add(t, {});
    Attrs attrs = {{"beta1", 0.9}, {"beta2", 0.9}, {"eps", 0.1}, {"weight_decay", 0.1}};
    if (named) attrs.set("name", std::string("adam.w"));
    try {
      g.add(ops::adamw, in, kAdam, attrs);
    } catch (const Error&) {
      return true;
    }
    return false;
  };
  constexpr DType kWide = DType::kF32, kHalf = DType::kBF16;
  EXPECT_FALSE(refused(kWide, kHalf, kHalf, true));
  EXPECT_FALSE(refused(DType::kF64, kHalf, kHalf, true));
  EXPECT_FALSE(refused(kWide, kWide, kWide, false));
  EXPECT_TRUE(refused(kWide, kWide, kWide, true));
  EXPECT_TRUE(refused(kWide, kHalf, kWide, true));
  EXPECT_TRUE(refused(kHalf, kHalf, kWide, true));
  EXPECT_TRUE(refused(kHalf, kWide, kHalf, true));
  EXPECT_TRUE(refused(kWide, kWide, kHalf, false));
  EXPECT_TRUE(refused(kWide, DType::kF16, DType::kF16, false));
  EXPECT_TRUE(refused(DType::kF64, kWide, kWide, false));
}

}  // namespace
}  // namespace cleave
