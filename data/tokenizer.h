// Text to tokens and back.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace cleave {

// Immutable: several threads may use one.
class Tokenizer {
 public:
  // Receives the tokens of a text a few thousand at a time.
  using Sink = std::function<void(std::span<const int32_t>)>;

  virtual ~Tokenizer() = default;

  // Takes any bytes, valid UTF-8 or not. No token is added in front or behind. Besides the text,
  // memory is needed for what one call of the sink is given.
  virtual void encode(std::string_view text, const Sink& sink) const = 0;
  std::vector<int32_t> encode(std::string_view text) const;

  // The bytes that were encoded. An id outside the vocabulary becomes U+FFFD.
  std::string decode(std::span<const int32_t> tokens) const;
  // Of one token; empty when there is no such token.
  virtual std::string_view bytes_of(int32_t token) const = 0;

  // One more than the largest id.
  virtual int64_t vocab_size() const = 0;
  // "bytes", or where it was read from.
  virtual const std::string& name() const = 0;
  // A hash of all that decides about tokens, wherever it was read from.
  virtual uint64_t fingerprint() const = 0;
};

// Empty or "bytes": a token a byte. Throws Error, naming the path and the field, when the tokenizer
// cannot be read or is of a kind that is not supported.
std::shared_ptr<const Tokenizer> load_tokenizer(const std::string& path);

}  // namespace cleave
