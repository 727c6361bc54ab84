// Remembers the tokens of short pieces: a text says the same words again and again.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace cleave {

// Each piece has one place; the last one to come there stays.
class PieceCache {
 public:
  static constexpr size_t kMostBytes = 24, kMostTokens = 9;

  // For a text of this many bytes; at most 2 MiB.
  explicit PieceCache(size_t text_bytes) {
    int bits = 6;
    while (bits < 15 && (size_t{16} << bits) < text_bytes) ++bits;
    entries_.resize(size_t{1} << bits);
    shift_ = 64 - bits;
  }

  // A piece as three words, which say all of it.
  struct Key {
    std::array<uint64_t, 3> words{};
    uint64_t size = 0;
    bool operator==(const Key&) const = default;
  };
  static Key key_of(std::string_view piece) {
    Key key{{}, piece.size()};
    std::memcpy(key.words.data(), piece.data(), piece.size());
    return key;
  }

  // The tokens of a piece of at most kMostBytes; none when it is not known.
  std::span<const int32_t> find(const Key& key) const {
    const Entry& e = entries_[slot(key)];
    if (e.words != key.words || e.size != key.size) return {};
    return {e.tokens.data(), e.count};
  }
  void put(const Key& key, std::span<const int32_t> tokens) {
    if (tokens.size() > kMostTokens) return;
    Entry& e = entries_[slot(key)];
    e.words = key.words;
    e.size = static_cast<uint8_t>(key.size);
    e.count = static_cast<uint8_t>(tokens.size());
    std::copy(tokens.begin(), tokens.end(), e.tokens.begin());
  }

 private:
  struct alignas(64) Entry {
    std::array<uint64_t, 3> words{};
    uint8_t size = 0, count = 0;
    std::array<int32_t, kMostTokens> tokens{};
  };
  size_t slot(const Key& key) const {
    uint64_t h = (key.words[0] ^ key.size << 59) * 0x9E3779B97F4A7C15ULL;
    h = (h ^ h >> 29 ^ key.words[1]) * 0xBF58476D1CE4E5B9ULL;
    h = (h ^ h >> 32 ^ key.words[2]) * 0x94D049BB133111EBULL;
    return h >> shift_;
  }

  std::vector<Entry> entries_;
  int shift_ = 0;
};

}  // namespace cleave
