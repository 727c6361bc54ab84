#include "data/unicode.h"

#include <vector>

namespace cleave {
namespace {

constexpr char32_t kEnd = 0x110000;

// The runs written out, a byte for each code point: about a megabyte, made at the first use.
const std::vector<CharClass>& classes() {
  static const std::vector<CharClass> all = [] {
    std::vector<CharClass> table;
    table.reserve(kEnd);
    for (size_t r = 0; r < kUnicodeRuns.size(); ++r) {
      const size_t end = r + 1 < kUnicodeRuns.size() ? kUnicodeRuns[r + 1] >> 2 : kEnd;
      table.resize(end, static_cast<CharClass>(kUnicodeRuns[r] & 3));
    }
    return table;
  }();
  return all;
}

bool continues(std::string_view text, size_t at) {
  return at < text.size() && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80;
}

char32_t tail(std::string_view text, size_t at) { return static_cast<uint8_t>(text[at]) & 0x3F; }

}  // namespace

CharClass class_of(char32_t code) { return code < kEnd ? classes()[code] : CharClass::kOther; }

Character character_at(std::string_view text, size_t at) {
  const char32_t first = static_cast<uint8_t>(text[at]);
  if (first < 0x80) return {first, 1, class_of(first)};
  char32_t code = kNotUtf8;
  uint8_t bytes = 1;
  if (first < 0xE0 && continues(text, at + 1)) {
    code = (first & 0x1F) << 6 | tail(text, at + 1);
    bytes = 2;
    if (first < 0xC2) code = kNotUtf8;  // a continuation, or a longer form than needed
  } else if (first >= 0xE0 && first < 0xF0 && continues(text, at + 1) && continues(text, at + 2)) {
    code = (first & 0x0F) << 12 | tail(text, at + 1) << 6 | tail(text, at + 2);
    bytes = 3;
    if (code < 0x800 || (code >= 0xD800 && code < 0xE000)) code = kNotUtf8;
  } else if (first >= 0xF0 && first < 0xF5 && continues(text, at + 1) && continues(text, at + 2) &&
             continues(text, at + 3)) {
    code = (first & 0x07) << 18 | tail(text, at + 1) << 12 | tail(text, at + 2) << 6 |
           tail(text, at + 3);
    bytes = 4;
    if (code < 0x10000 || code >= kEnd) code = kNotUtf8;
  }
  if (code == kNotUtf8) return {kNotUtf8, 1, CharClass::kOther};
  return {code, bytes, class_of(code)};
}

void append_utf8(std::string& text, char32_t code) {
  const auto add = [&](char32_t byte) { text += static_cast<char>(byte); };
  if (code < 0x80) {
    add(code);
  } else if (code < 0x800) {
    add(0xC0 | code >> 6), add(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    add(0xE0 | code >> 12), add(0x80 | (code >> 6 & 0x3F)), add(0x80 | (code & 0x3F));
  } else {
    add(0xF0 | code >> 18), add(0x80 | (code >> 12 & 0x3F)), add(0x80 | (code >> 6 & 0x3F)),
        add(0x80 | (code & 0x3F));
  }
}

}  // namespace cleave
