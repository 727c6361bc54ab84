#include "graph/f8.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "graph/error.h"

namespace cleave {
namespace {

struct Format {
  int mantissa = 0, bias = 0;  // bits; of the exponent
  uint8_t largest = 0;         // its code
};

constexpr uint8_t kNan = 0x7f, kSign = 0x80;

Format format_of(DType dtype) {
  CLEAVE_ASSERT(is_f8(dtype), "{} is no float of 8 bits", name_of(dtype));
  return dtype == DType::kF8E4M3 ? Format{3, 7, 0x7e} : Format{2, 15, 0x7b};
}

}  // namespace

float f8_largest(DType dtype) { return f8_number(format_of(dtype).largest, dtype); }

float f8_number(uint8_t code, DType dtype) {
  const Format f = format_of(dtype);
  const int size = code & 0x7f, exponent = size >> f.mantissa;
  const int mantissa = size & ((1 << f.mantissa) - 1);
  const float sign = (code & kSign) != 0 ? -1.0f : 1.0f;
  if (size > f.largest) {
    const bool infinite = dtype == DType::kF8E5M2 && mantissa == 0;
    return infinite ? sign * std::numeric_limits<float>::infinity()
                    : std::numeric_limits<float>::quiet_NaN();
  }
  if (exponent == 0) {
    return sign * std::ldexp(static_cast<float>(mantissa), 1 - f.bias - f.mantissa);
  }
  return sign * std::ldexp(static_cast<float>((1 << f.mantissa) + mantissa),
                           exponent - f.bias - f.mantissa);
}

uint8_t f8_code(float x, DType dtype) {
  const Format f = format_of(dtype);
  if (!std::isfinite(x)) return kNan;
  const uint8_t sign = std::signbit(x) ? kSign : 0;
  const float size = std::abs(x);
  const int least = 1 - f.bias;  // the exponent of the smallest normal numbers, and of those below
  const int exponent = size == 0 ? least : std::max(std::ilogb(size), least);
  if (exponent > 15) return sign | f.largest;
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(size, f.mantissa - exponent)));
  // The leading bit of normal numbers is in `steps`; rounding up carries into the exponent.
  const int code = ((exponent - least) << f.mantissa) + steps;
  return static_cast<uint8_t>(sign | std::min<int>(code, f.largest));
}

float f8_scale(float largest, DType dtype) {
  if (!(largest > 0) || std::isinf(largest)) return 1;
  const float ratio = f8_largest(dtype) / largest;
  const int exponent = static_cast<int>(std::bit_cast<uint32_t>(ratio) >> 23) - 127;
  return std::ldexp(1.0f, std::clamp(exponent, -100, 100));
}

}  // namespace cleave
