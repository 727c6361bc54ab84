// Reductions over a row that the compiler turns into vector code: in a fixed number of lanes, so
// that the order of the additions is always the same.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/vector_math.h"

namespace cleave {

inline constexpr int64_t kLanes = 16;

// The sum over i < n of term(i), in kLanes interleaved partial sums.
template <class T, class Term>
inline T lane_sum(int64_t n, Term term) {
  T lanes[kLanes] = {};
  const int64_t body = n - n % kLanes;
  for (int64_t i = 0; i < body; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += term(i + l);
  }
  for (int64_t i = body; i < n; ++i) lanes[i - body] += term(i);
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

// The largest of x[0..n); minus infinity when n is 0.
template <class T>
inline T lane_max(const T* x, int64_t n) {
  T lanes[kLanes];
  std::fill(lanes, lanes + kLanes, -std::numeric_limits<T>::infinity());
  const int64_t body = n - n % kLanes;
  for (int64_t i = 0; i < body; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
  }
  for (int64_t i = body; i < n; ++i) lanes[i - body] = std::max(lanes[i - body], x[i]);
  return *std::max_element(lanes, lanes + kLanes);
}

// y[i] = e^(x[i] - shift) for i < n; returns their sum. y may be x.
template <class T>
inline T exp_and_sum(const T* x, T shift, T* y, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) y[i] = exp_of(x[i] - shift);
  return lane_sum<T>(n, [=](int64_t i) { return y[i]; });
}

}  // namespace cleave
