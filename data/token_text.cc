#include "data/token_text.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "graph/error.h"

namespace cleave {

static_assert(std::endian::native == std::endian::little, "token files are little endian");

size_t bytes_of(TokenType type) {
  switch (type) {
    case TokenType::kUint8: return 1;
    case TokenType::kUint16:
    case TokenType::kInt16: return 2;
    case TokenType::kUint32:
    case TokenType::kInt32: return 4;
  }
  return 0;
}

std::string_view name_of(TokenType type) {
  switch (type) {
    case TokenType::kUint8: return "uint8";
    case TokenType::kUint16: return "uint16";
    case TokenType::kInt16: return "int16";
    case TokenType::kUint32: return "uint32";
    case TokenType::kInt32: return "int32";
  }
  return "";
}

TokenText::TokenText(std::vector<TokenPiece> pieces) : pieces_(std::move(pieces)) {
  int64_t end = 0;
  for (const TokenPiece& p : pieces_) {
    CLEAVE_ASSERT(p.bytes.size() % bytes_of(p.type) == 0, "{} bytes of {}", p.bytes.size(),
                  name_of(p.type));
    end += static_cast<int64_t>(p.bytes.size() / bytes_of(p.type));
    ends_.push_back(end);
  }
}

size_t TokenText::piece_of(int64_t index) const {
  return static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), index) - ends_.begin());
}

namespace {

// Calls f(T{}, bytes) with the C++ type of the tokens.
template <class F>
void with_type(TokenType type, std::span<const std::byte> bytes, const F& f) {
  switch (type) {
    case TokenType::kUint8: return f(uint8_t{}, bytes);
    case TokenType::kUint16: return f(uint16_t{}, bytes);
    case TokenType::kInt16: return f(int16_t{}, bytes);
    case TokenType::kUint32: return f(uint32_t{}, bytes);
    case TokenType::kInt32: return f(int32_t{}, bytes);
  }
}

// Files need not align their tokens.
template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

}  // namespace

// f(T{}, bytes, index of the first token) for each piece that the range touches.
template <class F>
void TokenText::visit(int64_t first, int64_t count, const F& f) const {
  CLEAVE_ASSERT(first >= 0 && count >= 0 && first <= size() && count <= size() - first,
                "tokens {} to {} + {} of {}", first, first, count, size());
  for (size_t p = piece_of(first); count > 0; ++p) {
    const TokenPiece& piece = pieces_[p];
    const int64_t here = std::min(count, ends_[p] - first);
    const size_t width = bytes_of(piece.type);
    const auto before = static_cast<size_t>(ends_[p] - first) * width;
    with_type(piece.type, piece.bytes.last(before).first(static_cast<size_t>(here) * width),
              [&](auto t, std::span<const std::byte> bytes) { f(t, bytes, first); });
    first += here;
    count -= here;
  }
}

void TokenText::read(int64_t first, std::span<int32_t> tokens) const {
  int32_t* out = tokens.data();
  visit(first, static_cast<int64_t>(tokens.size()),
        [&]<class T>(T, std::span<const std::byte> bytes, int64_t) {
          for (size_t at = 0; at < bytes.size(); at += sizeof(T)) {
            *out++ = static_cast<int32_t>(load<T>(bytes.data() + at));
          }
        });
}

std::optional<StrangeToken> TokenText::first_outside(int64_t first, int64_t count,
                                                     int64_t vocab) const {
  std::optional<StrangeToken> found;
  visit(first, count, [&]<class T>(T, std::span<const std::byte> bytes, int64_t start) {
    if (found) return;
    constexpr auto lowest = static_cast<int64_t>(std::numeric_limits<T>::min());
    constexpr auto highest = static_cast<int64_t>(std::numeric_limits<T>::max());
    if (lowest >= 0 && vocab > highest) return;
    const size_t n = bytes.size() / sizeof(T);
    for (size_t i = 0; i < n; ++i) {
      const auto token = static_cast<int64_t>(load<T>(bytes.data() + i * sizeof(T)));
      if (token >= 0 && token < vocab) continue;
      found = StrangeToken{token, start + static_cast<int64_t>(i)};
      return;
    }
  });
  return found;
}

int64_t TokenText::largest(int64_t first, int64_t count) const {
  int64_t largest = -1;
  visit(first, count, [&]<class T>(T, std::span<const std::byte> bytes, int64_t) {
    T most = std::numeric_limits<T>::min();
    for (size_t at = 0; at < bytes.size(); at += sizeof(T)) {
      most = std::max(most, load<T>(bytes.data() + at));
    }
    largest = std::max(largest, static_cast<int64_t>(most));
  });
  return largest;
}

std::string TokenText::place(int64_t index) const {
  const size_t p = piece_of(index);
  CLEAVE_ASSERT(index >= 0 && p < pieces_.size(), "token {} of {}", index, size());
  const TokenPiece& piece = pieces_[p];
  const int64_t before = p == 0 ? 0 : ends_[p - 1];
  return fmt::format("'{}' at byte {}", piece.path,
                     piece.offset + (index - before) * static_cast<int64_t>(bytes_of(piece.type)));
}

}  // namespace cleave
