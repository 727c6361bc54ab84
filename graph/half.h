// Floats of 16 bits as they lie in memory: bf16 (8 bits of exponent, 7 of mantissa) and f16 (5 and
// 10). To the nearest, ties to even; what is beyond the largest f16 becomes infinite, a NaN stays
// one.
#pragma once

#include <cstdint>

namespace cleave {

uint16_t bf16_bits(double x);
double bf16_number(uint16_t bits);
uint16_t f16_bits(double x);
double f16_number(uint16_t bits);

}  // namespace cleave
