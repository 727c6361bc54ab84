// What the device does to find elements, done on the host: divisions by multiplication, and where
// an element of loops lies.
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/cuda/divisor.h"
#ifdef CLEAVE_CUDA
#include "kernels/cuda/loops.h"
#endif

namespace cleave {
namespace {

constexpr uint32_t kLargest = INT32_MAX;

std::vector<uint32_t> divisors(std::mt19937& random) {
  std::vector<uint32_t> all;
  for (uint32_t d = 1; d <= 300; ++d) all.push_back(d);
  for (int power = 3; power < 31; ++power) {
    for (const uint32_t by : {-1, 0, 1}) all.push_back((uint32_t{1} << power) + by);
  }
  for (const uint32_t d : {kLargest - 1, kLargest, kLargest + 1, UINT32_MAX}) all.push_back(d);
  for (int i = 0; i < 2000; ++i) all.push_back(1 + (random() % kLargest >> random() % 31));
  return all;
}

TEST(Divisor, IsExactBelow2To31) {
  std::mt19937 random(1);
  for (const uint32_t d : divisors(random)) {
    const Divisor by(d);
    const auto check = [&](uint64_t n) {
      if (n > kLargest) return;
      const auto small = static_cast<uint32_t>(n);
      ASSERT_EQ(by.quotient(small), small / d) << small << " / " << d;
      ASSERT_EQ(small - by.quotient(small) * d, small % d) << small << " % " << d;
    };
    const auto check_near = [&](uint64_t n) {
      for (const uint64_t more : {-1, 0, 1}) check(n + more);
    };
    for (const uint64_t n : {uint64_t{0}, uint64_t{d}, uint64_t{kLargest}}) check_near(n);
    check_near(uint64_t{kLargest / d} * d);  // the last multiple
    for (int i = 0; i < 200; ++i) {
      check_near(uint64_t{random() % (kLargest / d + 1)} * d);
      check(random() % (uint64_t{kLargest} + 1));
      check(random() >> random() % 32);
    }
  }
}

TEST(Divisor, DividesByOneUnlessToldOtherwise) {
  for (const uint32_t n : {0u, 1u, 1234567u, kLargest}) EXPECT_EQ(Divisor().quotient(n), n);
}

TEST(Divisor, IsExactForAllSmallNumbers) {
  for (uint32_t d = 1; d < 1100; ++d) {
    const Divisor by(d);
    for (uint32_t n = 0; n < 3300; ++n) ASSERT_EQ(by.quotient(n), n / d) << n << " / " << d;
  }
}

#ifdef CLEAVE_CUDA

Loops<2> loops_over(const std::vector<int64_t>& sizes, std::mt19937& random) {
  Loops<2> loops;
  for (const int64_t size : sizes) {
    loops.add(size);
    for (int64_t& step : loops.step[loops.dims - 1]) {
      step = (static_cast<int64_t>(random()) << 8) - (int64_t{1} << 39);
    }
  }
  return loops;
}

// Walks the loops as nested ones, without a division.
template <class Fn>
void for_each_place(const Loops<2>& loops, const Fn& fn) {
  std::vector<int64_t> index(static_cast<size_t>(loops.dims), 0);
  for (int64_t i = 0; i < loops.count; ++i) {
    int64_t at[2] = {};
    for (int d = 0; d < loops.dims; ++d) {
      for (int o = 0; o < 2; ++o) at[o] += index[static_cast<size_t>(d)] * loops.step[d][o];
    }
    fn(i, at);
    for (int d = loops.dims - 1; d >= 0; --d) {
      int64_t& n = index[static_cast<size_t>(d)];
      if (++n < loops.size[d]) break;
      n = 0;
    }
  }
}

void expect_places(const Loops<2>& loops) {
  for_each_place(loops, [&](int64_t i, const int64_t(&at)[2]) {
    int64_t found[2];
    loops.offsets(i, found);
    ASSERT_EQ(found[0], at[0]) << i;
    ASSERT_EQ(found[1], at[1]) << i;
  });
}

const std::vector<int64_t> kShapes[] = {{},           {1},          {7},
                                        {3, 5},       {4, 1, 9},    {1, 6, 1},
                                        {2, 3, 4, 5}, {129, 65, 3}, {2, 1, 3, 2, 2, 1, 5, 2}};

TEST(Loops, OffsetsAreThoseOfNestedLoops) {
  std::mt19937 random(2);
  for (const std::vector<int64_t>& sizes : kShapes) expect_places(loops_over(sizes, random));
}

// The same loops, as if they had too many elements for 31 bits.
TEST(Loops, OffsetsOf64BitsAreThoseOfNestedLoops) {
  std::mt19937 random(3);
  for (const std::vector<int64_t>& sizes : kShapes) {
    Loops<2> loops = loops_over(sizes, random);
    EXPECT_TRUE(loops.small);
    loops.small = false;
    expect_places(loops);
  }
}

TEST(Loops, MoreElementsThan31BitsCount) {
  Loops<2> loops;
  const int64_t sizes[] = {3, int64_t{5} << 32, 7};
  for (const int64_t size : sizes) {
    loops.add(size);
    for (int64_t& step : loops.step[loops.dims - 1]) step = 1 + 10 * loops.dims;
  }
  EXPECT_FALSE(loops.small);
  std::mt19937_64 random(4);
  for (int n = 0; n < 1000; ++n) {
    const auto i = static_cast<int64_t>(random() % static_cast<uint64_t>(loops.count));
    int64_t at[2];
    loops.offsets(i, at);
    const int64_t row = i / sizes[2],
                  place = i % sizes[2] * 31 + row % sizes[1] * 21 + row / sizes[1] * 11;
    ASSERT_EQ(at[0], place);
    ASSERT_EQ(at[1], place);
  }
}

TEST(Loops, TheInnermostLoopCanBeResized) {
  std::mt19937 random(5);
  Loops<2> loops = loops_over({3, 4, 24}, random);
  loops.resize_inner(3);
  EXPECT_EQ(loops.count, 36);
  expect_places(loops);
  loops.resize_inner(int64_t{1} << 40);
  EXPECT_FALSE(loops.small);
  loops.resize_inner(0);
  EXPECT_EQ(loops.count, 0);
}

TEST(Loops, DividedGivesTheRestAndTheIndex) {
  std::mt19937 random(6);
  Loops<2> loops = loops_over({11, 13}, random);
  for (const bool small : {true, false}) {
    loops.small = small;
    for (int64_t i = 0; i < loops.count; ++i) {
      int64_t index;
      ASSERT_EQ(loops.divided(i, 1, index), i / 13);
      ASSERT_EQ(index, i % 13);
    }
  }
}

#endif

}  // namespace
}  // namespace cleave
