// Which elements dropout keeps: by the numbers of the stream named by the op and the step
// (kernels/random_stream.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <string_view>

#include "kernels/random_stream.h"

namespace cleave {

class DropoutMask {
 public:
  DropoutMask(uint64_t seed, std::string_view name, int32_t step, double rate)
      : stream_(seed, name, step),
        threshold_(static_cast<uint32_t>(std::ceil(rate * 0x1p24))),
        scale_(1 / (1 - rate)) {}

  // 1 / (1 - rate) when the element is kept, else 0.
  double at(uint64_t index) const { return factor(stream_.at(index)); }

  // factors[i] = at(first + i) for i < n.
  template <class T>
  void fill(uint64_t first, int64_t n, T* factors) const {
    stream_.each(first, n,
                 [&](int64_t i, uint32_t bits) { factors[i] = static_cast<T>(factor(bits)); });
  }

 private:
  double factor(uint32_t bits) const { return (bits >> 8) >= threshold_ ? scale_ : 0; }

  RandomStream stream_;
  uint32_t threshold_;
  double scale_;
};

}  // namespace cleave
