// exp, tanh and sigmoid written without branches or calls in float, so that the compiler vectorizes
// loops over them. In double they are the library's: that is the reference.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace cleave {

inline double exp_of(double x) { return std::exp(x); }

// e^x within one unit in the last place; subnormal results, infinities and NaN as they should be.
// exp(x) = 2^n * exp(r) with |r| <= ln(2)/2.
inline float exp_of(float x) {
  // Beyond these the result is 0 and infinity. The order of the operands keeps NaN.
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two parts
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // The low bits of `shifted` are n. 2^n may be out of range where the result is not: two factors.
  const int32_t e = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRound);
  const int32_t half = e >> 1;
  return p * std::bit_cast<float>((half + 127) << 23) *
         std::bit_cast<float>((e - half + 127) << 23);
}

inline double tanh_of(double x) { return std::tanh(x); }

// Within 2 units in the last place.
inline float tanh_of(float x) {
  const float a = std::fabs(x), e = exp_of(-2.0f * a);
  const float big = (1.0f - e) / (1.0f + e);
  const float z = x * x;
  float p = -5.70498872745e-3f;  // x + x^3 * p(x^2) below 0.625, where `big` would cancel
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float small = p * z * x + x;
  return a < 0.625f ? small : std::copysign(big, x);
}

template <class T>
inline T sigmoid_of(T x) {
  return T{1} / (T{1} + exp_of(-x));
}

}  // namespace cleave
