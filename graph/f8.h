// Floats of 8 bits as hardware has them: e4m3 (4 bits of exponent, 3 of mantissa; up to 448, no
// infinity) and e5m2 (up to 57344). Numbers are brought into their range by a scale first.
#pragma once

#include <cstdint>

#include "graph/types.h"

namespace cleave {

// The largest number of this type.
float f8_largest(DType dtype);

// The number of a code, exactly.
float f8_number(uint8_t code, DType dtype);

// The code of the nearest number, ties to the even mantissa. What is beyond the largest number
// becomes it; NaN and the infinities become NaN, so that an overflow before is not lost.
uint8_t f8_code(float x, DType dtype);

// The power of two by which numbers of at most this size are multiplied: the largest that keeps
// them in range. A power of two is exact, in both directions. 1 when the size is 0 or not finite.
float f8_scale(float largest, DType dtype);

}  // namespace cleave
