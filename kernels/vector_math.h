// exp, tanh and sigmoid written without branches or calls in float, so that the compiler vectorizes
// loops over them. In double they are the library's: that is the reference.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace cleave {

inline double exp_of(double x) { return std::exp(x); }

// Within 2 units in the last place. exp(x) = 2^n * exp(r) with |r| <= ln(2)/2; results that would
// be denormal are 0.
inline float exp_of(float x) {
  constexpr float kLowest = -87.33654f, kHighest = 88.37626f;
  float v = x < kLowest ? kLowest : x;
  v = v > kHighest ? kHighest : v;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const float shifted = v * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (v - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two parts
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // The low bits of `shifted` are n; move them into the exponent.
  const uint32_t power = (std::bit_cast<uint32_t>(shifted) + 127u) << 23;
  float y = p * std::bit_cast<float>(power);
  y = x < kLowest ? 0.0f : y;
  y = x > kHighest ? std::numeric_limits<float>::infinity() : y;
  return x != x ? x : y;
}

inline double tanh_of(double x) { return std::tanh(x); }

inline float tanh_of(float x) {
  const float a = std::fabs(x);
  const float big = 1.0f - 2.0f / (exp_of(2.0f * (a > 10.0f ? 10.0f : a)) + 1.0f);
  const float z = x * x;
  float p = -5.70498872745e-3f;  // x + x^3 * p(x^2) below 0.625, where `big` would cancel
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float small = p * z * x + x;
  const float y = a < 0.625f ? small : std::copysign(big, x);
  return x != x ? x : y;
}

template <class T>
inline T sigmoid_of(T x) {
  return T{1} / (T{1} + exp_of(-x));
}

}  // namespace cleave
