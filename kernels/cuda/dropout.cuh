// DropoutMask (kernels/dropout_mask.h) on the device: the same numbers, of a step that only the
// device knows.
#pragma once

#include <cstdint>

#include "kernels/cuda/dropout_rule.h"

namespace cleave {

// S: the type of the factors.
template <class S>
class DeviceMask {
 public:
  __device__ DeviceMask(const DropoutRule& rule, int32_t step)
      : seed_(rule.seed),
        stream_(mixed(rule.stream, step)),
        threshold_(rule.threshold),
        scale_(static_cast<S>(rule.scale)) {}

  // The scale when the element is kept, else 0.
  __device__ S at(uint64_t index) const {
    uint32_t bits[4];
    draw(index / 4, bits);
    const uint32_t low = (index & 1) != 0 ? bits[1] : bits[0];
    const uint32_t high = (index & 1) != 0 ? bits[3] : bits[2];
    return factor((index & 2) != 0 ? high : low);
  }

  // factors[i] = at(first + i).
  template <int N>
  __device__ void fill(uint64_t first, S (&factors)[N]) const {
    if (N % 4 == 0 && first % 4 == 0) {
#pragma unroll
      for (int b = 0; b < N / 4; ++b) {
        uint32_t bits[4];
        draw(first / 4 + static_cast<uint64_t>(b), bits);
#pragma unroll
        for (int j = 0; j < 4; ++j) factors[4 * b + j] = factor(bits[j]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) factors[i] = at(first + static_cast<uint64_t>(i));
    }
  }

 private:
  // The stream's hash and the step, mixed as in splitmix64.
  __device__ static uint64_t mixed(uint64_t stream, int32_t step) {
    uint64_t z =
        stream + 0x9E3779B97F4A7C15ULL * static_cast<uint64_t>(static_cast<uint32_t>(step));
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }

  __device__ S factor(uint32_t bits) const { return (bits >> 8) >= threshold_ ? scale_ : S{0}; }

  // The four numbers of a block, as philox_block gives them.
  __device__ void draw(uint64_t block, uint32_t (&bits)[4]) const {
    uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
    uint32_t c2 = static_cast<uint32_t>(stream_), c3 = static_cast<uint32_t>(stream_ >> 32);
    uint32_t k0 = static_cast<uint32_t>(seed_), k1 = static_cast<uint32_t>(seed_ >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t{0xD2511F53} * c0, p1 = uint64_t{0xCD9E8D57} * c2;
      c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
      c1 = static_cast<uint32_t>(p1);
      c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
      c3 = static_cast<uint32_t>(p0);
      k0 += 0x9E3779B9, k1 += 0xBB67AE85;
    }
    bits[0] = c0, bits[1] = c1, bits[2] = c2, bits[3] = c3;
  }

  uint64_t seed_, stream_;
  uint32_t threshold_;
  S scale_;
};

}  // namespace cleave
