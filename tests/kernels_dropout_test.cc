// Dropout, and the generator that it draws from against its published numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "graph/error.h"
#include "graph/graph.h"
#include "graph/philox.h"
#include "kernels/dropout_mask.h"
#include "kernels/ops.h"
#include "tests/kernels_plain.h"

namespace cleave {
namespace {

// --- Philox --------------------------------------------------------------------------------------

// The vectors for philox4x32-10 in Random123's kat_vectors.
TEST(Philox, PublishedVectors) {
  EXPECT_EQ(philox({0, 0, 0, 0}, 0), (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(philox({kOnes, kOnes, kOnes, kOnes}, ~uint64_t{0}),
            (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822ULL),
            (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, NormalsHaveTheirMoments) {
  double sum = 0, squares = 0, fourth = 0;
  constexpr int kCount = 100000;
  for (uint64_t i = 0; i < kCount; ++i) {
    const double x = normal_at(3, stream_of("w"), i);
    sum += x, squares += x * x, fourth += x * x * x * x;
  }
  EXPECT_NEAR(sum / kCount, 0, 0.015);
  EXPECT_NEAR(squares / kCount, 1, 0.02);
  EXPECT_NEAR(fourth / kCount, 3, 0.15);
}

// --- Dropout -------------------------------------------------------------------------------------

constexpr const char* kDropout = "bsd,->bsd|b:indexed,s:indexed,d:indexed";

Numbers dropped(const HostTensor& x, double p, const std::string& name, int32_t step) {
  const HostTensor when = {{DType::kI32, {}}, {static_cast<double>(step)}};
  return testing::run_op(
             application(ops::dropout, {x, when}, kDropout, {{"p", p}, {"name", name}}))[0]
      .numbers;
}

TEST(Dropout, KeepsTheRightShareAndScalesIt) {
  const int64_t n = 50 * 41 * 37;
  const HostTensor ones = {{DType::kF32, {50, 41, 37}}, Numbers(at(n), 1.0)};
  for (const double p : {0.0, 0.1, 0.5, 0.9}) {
    const Numbers y = dropped(ones, p, "a", 1);
    const auto zeros = std::count(y.begin(), y.end(), 0.0);
    const double deviation = std::sqrt(p * (1 - p) * static_cast<double>(n));
    EXPECT_NEAR(static_cast<double>(zeros), p * static_cast<double>(n), 4 * deviation);
    for (const double v : y) {
      ASSERT_TRUE(v == 0 || v == static_cast<double>(static_cast<float>(1 / (1 - p))));
    }
  }
}

// Masks of other names and steps agree with this one as often as independent ones would.
TEST(Dropout, NamesAndStepsAreIndependent) {
  const int64_t n = 60 * 30 * 20;
  const HostTensor ones = {{DType::kF32, {60, 30, 20}}, Numbers(at(n), 1.0)};
  const Numbers base = dropped(ones, 0.5, "a", 1);
  EXPECT_EQ(base, dropped(ones, 0.5, "a", 1));
  for (const auto& [name, step] : {std::pair{"a", 2}, {"a", 1000}, {"b", 1}}) {
    const Numbers other = dropped(ones, 0.5, name, step);
    int64_t same = 0;
    for (size_t i = 0; i < base.size(); ++i) same += base[i] == other[i];
    EXPECT_NEAR(static_cast<double>(same) / static_cast<double>(n), 0.5, 0.012) << name << step;
  }
}

TEST(Dropout, AShardDrawsItsPartOfTheWholeMask) {
  const int64_t b = 8, s = 6, d = 24;
  const auto x = random_tensor(DType::kF64, {b, s, d}, 1);
  const Numbers whole = dropped(x, 0.4, "a", 3);
  for (const Extent& eb : {Extent{8, 8, {}}, Extent{4, 8, {{1, 2, 1}}}}) {
    for (const Extent& es : {Extent{6, 6, {}}, Extent{3, 6, {{3, 2, 1}}}}) {
      for (const Extent& ed : cut_extents(d)) {
        Numbers part, want;
        for (int64_t i = 0; i < eb.local * es.local * ed.local; ++i) {
          const int64_t from =
              (eb.position(i / ed.local / es.local) * s + es.position(i / ed.local % es.local)) *
                  d +
              ed.position(i % ed.local);
          part.push_back(x.numbers[at(from)]);
          want.push_back(whole[at(from)]);
        }
        Application a = application(
            ops::dropout,
            {{{DType::kF64, {eb.local, es.local, ed.local}}, part}, {{DType::kI32, {}}, {3}}},
            kDropout, {{"p", 0.4}, {"name", std::string("a")}});
        a.extents = {eb, es, ed};
        EXPECT_EQ(testing::run_op(a)[0].numbers, want);
      }
    }
  }
}

// The mask drawn many blocks at a time is the one that Philox defines, from any first element.
TEST(Dropout, RunsAgreeWithSingleElements) {
  const DropoutMask mask(9, "a", 4, 0.5);
  for (const uint64_t first : {uint64_t{0}, uint64_t{3}, uint64_t{63}, uint64_t{0x3FFFFFFF5}}) {
    for (const int64_t n : {1, 2, 64, 65, 131}) {
      Numbers keep(at(n));
      mask.fill(first, n, keep.data());
      for (int64_t i = 0; i < n; ++i) {
        ASSERT_EQ(keep[at(i)], mask.at(first + static_cast<uint64_t>(i)));
      }
    }
  }
}

TEST(Dropout, ARateOfOneIsTheUsersMistake) {
  Graph g;
  const Value x = add_data(g, "x", DType::kF32, {2, 3, 4});
  const Value step = add_data(g, "step", DType::kI32, {});
  EXPECT_THROW(g.add(ops::dropout, {x, step}, kDropout, {{"p", 1.0}, {"name", std::string("a")}}),
               Error);
}

}  // namespace
}  // namespace cleave
