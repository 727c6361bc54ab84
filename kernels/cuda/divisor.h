// Division by numbers that stay the same while a kernel runs: the host works out a multiplier, so
// that the device multiplies and shifts where a division takes some 20 instructions.
#pragma once

#include <bit>
#include <cstdint>

#include "graph/error.h"

namespace cleave {

// Exact for all n < 2^31: with l the least exponent of which 2^l >= d, n / d is n m / 2^(31 + l),
// rounded down, where m is 2^(31 + l) / d, rounded up. That adds less than 2^l to m d, hence less
// than 1 / d to the quotient; and m < 2^32, since d > 2^(l - 1).
class Divisor {
 public:
  constexpr Divisor() = default;  // by 1
  // REQUIRES: d > 0.
  explicit Divisor(uint32_t d) {
    CLEAVE_ASSERT(d > 0, "a division by 0");
    shift_ = 31 + static_cast<uint32_t>(std::bit_width(d - 1));
    multiplier_ = static_cast<uint32_t>(((uint64_t{1} << shift_) - 1) / d + 1);
  }

  // n / d. REQUIRES: n < 2^31.
  constexpr uint32_t quotient(uint32_t n) const {
    return static_cast<uint32_t>((uint64_t{n} * multiplier_) >> shift_);
  }

 private:
  uint32_t multiplier_ = uint32_t{1} << 31, shift_ = 31;
};

}  // namespace cleave
