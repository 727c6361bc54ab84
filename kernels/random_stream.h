// The numbers of a Philox stream that a name and a step choose: dropout's masks, and how moments
// are rounded. Number `index` is that of the element with this row-major index in the whole tensor,
// so every shard draws its part of one stream.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "graph/philox.h"

namespace cleave {

class RandomStream {
 public:
  RandomStream(uint64_t seed, std::string_view name, int32_t step)
      : seed_(seed), stream_(mixed(stream_of(name), step)) {}

  uint32_t at(uint64_t index) const { return philox_block(seed_, stream_, index / 4)[index % 4]; }

  // Calls fn(i, at(first + i)) for i < n.
  template <class Fn>
  void each(uint64_t first, int64_t n, const Fn& fn) const {
    uint32_t bits[4 * kBlocks];
    for (int64_t i = 0; i < n;) {
      const uint64_t skip = (first + static_cast<uint64_t>(i)) % 4;
      draw((first + static_cast<uint64_t>(i)) / 4, bits);
      const int64_t count = std::min<int64_t>(4 * kBlocks - static_cast<int64_t>(skip), n - i);
      for (int64_t j = 0; j < count; ++j) fn(i + j, bits[static_cast<uint64_t>(j) + skip]);
      i += count;
    }
  }

 private:
  static constexpr int kBlocks = 16;  // drawn side by side, in vector registers

  // The stream's hash and the step, mixed as in splitmix64.
  static uint64_t mixed(uint64_t stream, int32_t step) {
    uint64_t z =
        stream + 0x9E3779B97F4A7C15ULL * static_cast<uint64_t>(static_cast<uint32_t>(step));
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }

  // The numbers of kBlocks blocks, as philox_block gives them, one block after the other.
  void draw(uint64_t block, uint32_t* bits) const {
    uint32_t c0[kBlocks], c1[kBlocks], c2[kBlocks], c3[kBlocks];
    for (int l = 0; l < kBlocks; ++l) {
      const uint64_t index = block + static_cast<uint64_t>(l);
      c0[l] = static_cast<uint32_t>(index), c1[l] = static_cast<uint32_t>(index >> 32);
      c2[l] = static_cast<uint32_t>(stream_), c3[l] = static_cast<uint32_t>(stream_ >> 32);
    }
    uint32_t k0 = static_cast<uint32_t>(seed_), k1 = static_cast<uint32_t>(seed_ >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9, k1 += 0xBB67AE85) {
      for (int l = 0; l < kBlocks; ++l) {
        const uint64_t p0 = uint64_t{0xD2511F53} * c0[l], p1 = uint64_t{0xCD9E8D57} * c2[l];
        c0[l] = static_cast<uint32_t>(p1 >> 32) ^ c1[l] ^ k0;
        c1[l] = static_cast<uint32_t>(p1);
        c2[l] = static_cast<uint32_t>(p0 >> 32) ^ c3[l] ^ k1;
        c3[l] = static_cast<uint32_t>(p0);
      }
    }
    for (int l = 0; l < kBlocks; ++l) {
      bits[4 * l] = c0[l], bits[4 * l + 1] = c1[l], bits[4 * l + 2] = c2[l],
               bits[4 * l + 3] = c3[l];
    }
  }

  uint64_t seed_, stream_;
};

}  // namespace cleave
