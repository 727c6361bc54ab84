// A dropout mask but for the step, which only the device knows: see kernels/dropout_mask.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <string_view>

#include "graph/philox.h"

namespace cleave {

struct DropoutRule {
  uint64_t seed = 0, stream = 0;
  uint32_t threshold = 0;
  double scale = 1;  // of what is kept

  DropoutRule() = default;
  DropoutRule(uint64_t seed_of_run, std::string_view name, double rate)
      : seed(seed_of_run),
        stream(stream_of(name)),
        threshold(static_cast<uint32_t>(std::ceil(rate * 0x1p24))),
        scale(1 / (1 - rate)) {}
};

}  // namespace cleave
