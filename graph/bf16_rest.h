// An f32 as two numbers of 16 bits, from which all of its bits come back: the bf16 nearest to it,
// and the rest. One function for the processor and the GPU.
#pragma once

#include <cstdint>

namespace cleave {

struct Bf16AndRest {
  uint16_t bf16 = 0;  // to the nearest; of two that are as near, the one farther from zero
  int16_t rest = 0;   // what to add to the f32's bits when the bf16 is its upper half
};

// Ties do not go to even, as elsewhere: an even bf16 would then stand for one f32 more than there
// are rests. A NaN becomes one that the bf16 is too, and loses its other bits.
constexpr Bf16AndRest bf16_and_rest(uint32_t x) {
  if ((x & 0x7fffffff) > 0x7f800000) return {static_cast<uint16_t>(x >> 16 | 0x7fc0), 0};
  return {static_cast<uint16_t>((x + 0x8000) >> 16), static_cast<int16_t>(x & 0xffff)};
}

constexpr uint32_t f32_bits(Bf16AndRest x) {
  return (static_cast<uint32_t>(x.bf16) << 16) + static_cast<uint32_t>(int32_t{x.rest});
}

}  // namespace cleave
