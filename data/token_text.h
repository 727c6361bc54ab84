// Tokens of 8, 16 or 32 bits as they lie in files or in memory, read as one text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace cleave {

// Little endian. A token of 32 bits above 2^31 - 1 is read as a negative number, which no
// vocabulary holds.
enum class TokenType : uint8_t { kUint8, kUint16, kInt16, kUint32, kInt32 };

size_t bytes_of(TokenType type);
std::string_view name_of(TokenType type);  // "uint16"

// Some tokens in a row.
struct TokenPiece {
  TokenType type = TokenType::kUint8;
  std::span<const std::byte> bytes;   // whole tokens
  std::string path;                   // of the file, for messages
  int64_t offset = 0;                 // bytes of that file before the first token
  std::shared_ptr<const void> owner;  // keeps `bytes` alive
};

// A token that a vocabulary does not hold.
struct StrangeToken {
  int64_t token = 0;
  int64_t index = 0;  // in the text
};

// Pieces one after the other. Reading is safe from several threads.
class TokenText {
 public:
  TokenText() = default;
  // Throws InternalError when a piece holds part of a token.
  explicit TokenText(std::vector<TokenPiece> pieces);

  int64_t size() const { return ends_.empty() ? 0 : ends_.back(); }
  const std::vector<TokenPiece>& pieces() const { return pieces_; }

  // Copies the tokens from `first` on; all of them must be there.
  void read(int64_t first, std::span<int32_t> tokens) const;

  // The first of `count` tokens from `first` on that is not in [0, vocab).
  std::optional<StrangeToken> first_outside(int64_t first, int64_t count, int64_t vocab) const;
  // The largest of them; -1 of none.
  int64_t largest(int64_t first, int64_t count) const;

  // "'shard.bin' at byte 1040": where a token lies.
  std::string place(int64_t index) const;

 private:
  size_t piece_of(int64_t index) const;
  template <class F>
  void visit(int64_t first, int64_t count, const F& f) const;

  std::vector<TokenPiece> pieces_;
  std::vector<int64_t> ends_;  // tokens up to the end of each piece
};

}  // namespace cleave
