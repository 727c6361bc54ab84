// Tokens to text one by one, for a terminal: characters come out whole.
#pragma once

#include <memory>
#include <string>

#include "data/tokenizer.h"

namespace cleave {

class StreamDecoder {
 public:
  explicit StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer)
      : tokenizer_(std::move(tokenizer)) {}

  // The text that is complete with this token, as valid UTF-8: the start of a character is held
  // back, and a byte that can be part of none becomes U+FFFD.
  std::string push(int32_t token);
  // What was held back, at the end of the tokens.
  std::string finish();

 private:
  std::string take(bool all);

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string held_;
};

}  // namespace cleave
