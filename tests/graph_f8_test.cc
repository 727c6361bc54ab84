// Floats of 8 bits: every code, every midpoint, the ends, and the scales.
#include "graph/f8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace cleave {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr DType kTypes[] = {DType::kF8E4M3, DType::kF8E5M2};

// By the definition, in double: (1 + m / 2^bits) 2^(e - bias), or m 2^(1 - bias - bits).
double number(int code, DType dtype) {
  const int bits = dtype == DType::kF8E4M3 ? 3 : 2, bias = dtype == DType::kF8E4M3 ? 7 : 15;
  const int e = (code & 127) >> bits, m = code & ((1 << bits) - 1);
  const double size = e == 0 ? m * std::pow(2.0, 1 - bias - bits)
                             : (1 + m / std::pow(2.0, bits)) * std::pow(2.0, e - bias);
  return (code & 128) != 0 ? -size : size;
}

int codes(DType dtype) { return dtype == DType::kF8E4M3 ? 0x7f : 0x7c; }  // finite, of one sign

TEST(F8, EveryCodeIsItsNumber) {
  for (const DType dtype : kTypes) {
    for (int code = 0; code < 256; ++code) {
      const float got = f8_number(static_cast<uint8_t>(code), dtype);
      const int size = code & 127;
      if (size < codes(dtype)) {
        EXPECT_EQ(static_cast<double>(got), number(code, dtype)) << name_of(dtype) << " " << code;
        EXPECT_EQ(f8_code(got, dtype), code) << name_of(dtype);
      } else if (dtype == DType::kF8E5M2 && size == 0x7c) {
        EXPECT_EQ(got, code < 128 ? kInfinity : -kInfinity);
      } else {
        EXPECT_TRUE(std::isnan(got)) << name_of(dtype) << " " << code;
      }
    }
    EXPECT_TRUE(std::isnan(f8_number(0x7f, dtype)));
  }
  EXPECT_EQ(f8_largest(DType::kF8E4M3), 448);
  EXPECT_EQ(f8_largest(DType::kF8E5M2), 57344);
}

// Between two neighbours the middle goes to the even one, and what is beside it to the nearer one.
TEST(F8, RoundsToTheNearest) {
  for (const DType dtype : kTypes) {
    for (int code = 0; code + 1 < codes(dtype); ++code) {
      const auto low = static_cast<float>(number(code, dtype)),
                 high = static_cast<float>(number(code + 1, dtype));
      const float middle = (low + high) / 2;
      const int even = code % 2 == 0 ? code : code + 1;
      for (const int sign : {0, 128}) {
        const float s = sign == 0 ? 1.0f : -1.0f;
        EXPECT_EQ(f8_code(s * middle, dtype), even | sign) << name_of(dtype) << " " << code;
        EXPECT_EQ(f8_code(s * std::nextafter(middle, 0.0f), dtype), code | sign);
        EXPECT_EQ(f8_code(s * std::nextafter(middle, kInfinity), dtype), (code + 1) | sign);
      }
    }
  }
}

TEST(F8, TheEnds) {
  for (const DType dtype : kTypes) {
    const int largest = codes(dtype) - 1;
    for (const float beyond : {f8_largest(dtype) * 1.01f, f8_largest(dtype) * 2, 3e38f}) {
      EXPECT_EQ(f8_code(beyond, dtype), largest);
      EXPECT_EQ(f8_code(-beyond, dtype), largest | 128);
    }
    EXPECT_EQ(f8_code(0.0f, dtype), 0);
    EXPECT_EQ(f8_code(-0.0f, dtype), 128);
    EXPECT_EQ(f8_code(1e-38f, dtype), 0);
    for (const float lost : {kInfinity, -kInfinity, std::nanf("")}) {
      EXPECT_TRUE(std::isnan(f8_number(f8_code(lost, dtype), dtype)));
    }
  }
}

TEST(F8, ScalesArePowersOfTwoThatFillTheRange) {
  for (const DType dtype : kTypes) {
    for (const float largest : {1e-20f, 3e-7f, 0.02f, 1.0f, 7.0f, 448.0f, 449.0f, 1e6f, 3e20f}) {
      const float scale = f8_scale(largest, dtype);
      int exponent = 0;
      EXPECT_EQ(std::frexp(scale, &exponent), 0.5f) << scale;
      EXPECT_LE(largest * scale, f8_largest(dtype));
      EXPECT_GT(2 * largest * scale, f8_largest(dtype));
    }
    for (const float none : {0.0f, kInfinity, std::nanf("")}) EXPECT_EQ(f8_scale(none, dtype), 1);
  }
}

}  // namespace
}  // namespace cleave
