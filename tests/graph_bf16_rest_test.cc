// An f32 as its bf16 and the rest of its bits.
#include "graph/bf16_rest.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "graph/half.h"

namespace cleave {
namespace {

// Some of every exponent and both signs, and those around ties.
template <class Fn>
void for_many(const Fn& fn) {
  for (uint64_t x = 0; x < uint64_t{1} << 32; x += 8191) fn(static_cast<uint32_t>(x));
  for (uint64_t upper = 0; upper < 65536; ++upper) {
    for (const uint32_t lower : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
      fn(static_cast<uint32_t>(upper << 16 | lower));
  }
}

bool is_nan(uint32_t bits) { return std::isnan(std::bit_cast<float>(bits)); }

TEST(Bf16AndRest, GiveAllBitsBack) {
  int64_t wrong = 0, nan = 0;
  for_many([&](uint32_t x) {
    const uint32_t back = f32_bits(bf16_and_rest(x));
    if (is_nan(x)) {
      ++nan;
      wrong += !is_nan(back);
    } else {
      wrong += back != x;
    }
  });
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(nan, 1000);
}

TEST(Bf16AndRest, AreTheNearest) {
  int64_t wrong = 0, ties = 0;
  for_many([&](uint32_t x) {
    const uint16_t got = bf16_and_rest(x).bf16;
    const double number = static_cast<double>(std::bit_cast<float>(x));
    const uint16_t nearest = bf16_bits(number);
    if (is_nan(x)) {
      wrong += !std::isnan(bf16_number(got));
    } else if ((x & 0xffff) != 0x8000) {
      wrong += got != nearest;
    } else {  // away from zero, where the other goes to the even one
      ++ties;
      wrong += got != static_cast<uint16_t>((x >> 16) + 1);
      wrong += got != nearest && got != static_cast<uint16_t>(nearest + 1);
    }
  });
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(ties, 60000);
}

// What an update without a new value stores is what it read.
TEST(Bf16AndRest, OfWhatTheyGiveBackAreTheSame) {
  int64_t wrong = 0;
  for_many([&](uint32_t x) {
    const Bf16AndRest both = bf16_and_rest(x), again = bf16_and_rest(f32_bits(both));
    wrong += again.bf16 != both.bf16 || again.rest != both.rest;
  });
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace cleave
