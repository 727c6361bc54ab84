// Philox 4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3" (SC'11). A number depends only on (seed, stream, index), never on the device or on
// what was drawn before, so that every mesh draws the same bits.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace cleave {

// A 64-bit hash of a name (FNV-1a): the stream of the parameter or op with that name.
constexpr uint64_t stream_of(std::string_view name) {
  uint64_t hash = 14695981039346656037ULL;
  for (char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211ULL;
  return hash;
}

using PhiloxBlock = std::array<uint32_t, 4>;

// Ten rounds on a 128-bit counter with a 64-bit key.
constexpr PhiloxBlock philox(PhiloxBlock counter, uint64_t key) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ k0, static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9, k1 += 0xBB67AE85;
  }
  return counter;
}

// The four numbers of block `index` in a stream.
constexpr PhiloxBlock philox_block(uint64_t seed, uint64_t stream, uint64_t index) {
  return philox({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                 static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                seed);
}

// Uniform in [0, 1) with 24 bits: exact in float, equal in double.
constexpr double unit_interval(uint32_t bits) { return (bits >> 8) * 0x1p-24; }

// Number `index` of a stream, uniform in [0, 1).
constexpr double uniform_at(uint64_t seed, uint64_t stream, uint64_t index) {
  return unit_interval(philox_block(seed, stream, index / 4)[index % 4]);
}

// Number `index` of a stream, normal with mean 0 and deviation 1 (Box-Muller).
double normal_at(uint64_t seed, uint64_t stream, uint64_t index);

}  // namespace cleave
