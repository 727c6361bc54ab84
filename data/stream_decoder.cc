#include "data/stream_decoder.h"

#include "data/unicode.h"

namespace cleave {
namespace {

// Whether more bytes could make a character of these.
bool may_continue(std::string_view rest) {
  const auto first = static_cast<uint8_t>(rest[0]);
  const size_t wanted = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : first >= 0xC2 ? 2 : 1;
  if (first >= 0xF5 || rest.size() >= wanted) return false;
  // Any continuation that makes the shortest valid character will do for a trial.
  for (const char second : {'\x80', '\xBF'}) {
    std::string trial(rest);
    while (trial.size() < wanted) trial += trial.size() == 1 ? second : '\x80';
    if (character_at(trial, 0).code != kNotUtf8) return true;
  }
  return false;
}

}  // namespace

std::string StreamDecoder::push(int32_t token) {
  const int32_t tokens[] = {token};
  held_ += tokenizer_->decode(tokens);
  return take(false);
}

std::string StreamDecoder::finish() { return take(true); }

std::string StreamDecoder::take(bool all) {
  std::string text;
  size_t at = 0;
  while (at < held_.size()) {
    const std::string_view rest = std::string_view(held_).substr(at);
    const Character c = character_at(rest, 0);
    if (c.code != kNotUtf8) {
      text += rest.substr(0, c.bytes);
    } else if (!all && may_continue(rest)) {
      break;
    } else {
      text += "\uFFFD";
    }
    at += c.bytes;
  }
  held_.erase(0, at);
  return text;
}

}  // namespace cleave
