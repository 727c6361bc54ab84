// Stochastic rounding to bf16: up or down to one of the two numbers around, the nearer one the more
// likely, so that the mean over the random bits is the number itself. One function for the
// processor and the GPU.
#pragma once

#include <cstdint>

namespace cleave {

// Of an f32, with 16 random bits (others are left out). The lower half of an f32 says how far it is
// from the bf16 nearer to zero, in 65536ths of a step: as likely as that it goes one step away from
// zero. What is a bf16 stays what it is, and so does the largest one, of which nothing finite goes
// to infinity.
constexpr uint16_t stochastic_bf16(uint32_t x, uint32_t random) {
  constexpr uint32_t kInfinity = 0x7f800000;
  if ((x & 0x7fffffff) > kInfinity) return 0x7fc0;  // NaN
  const uint32_t up = x + (random & 0xffff);
  return static_cast<uint16_t>(((up & kInfinity) == kInfinity ? x : up) >> 16);
}

}  // namespace cleave
