#include "graph/philox.h"

#include <cmath>
#include <numbers>

namespace cleave {

double normal_at(uint64_t seed, uint64_t stream, uint64_t index) {
  const PhiloxBlock block = philox_block(seed, stream, index / 2);
  const size_t pair = (index % 2) * 2;
  const double radius = std::sqrt(-2 * std::log(1 - unit_interval(block[pair])));
  return radius * std::cos(2 * std::numbers::pi * unit_interval(block[pair + 1]));
}

}  // namespace cleave
