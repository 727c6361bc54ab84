// UTF-8, and the three classes of code points by which tokenizers split a text.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace cleave {

enum class CharClass : uint8_t {
  kOther,
  kLetter,  // general categories L*
  kNumber,  // general categories N*
  kSpace,   // the property White_Space
};

// One character of a text: a code point, or a byte that is not part of valid UTF-8.
struct Character {
  char32_t code = 0;  // kNotUtf8 for such a byte
  uint8_t bytes = 1;
  CharClass kind = CharClass::kOther;
};

inline constexpr char32_t kNotUtf8 = 0xFFFFFFFF;

// The character that begins at `at`, which must be inside the text.
Character character_at(std::string_view text, size_t at);

CharClass class_of(char32_t code);  // kOther for what is no code point

// Appends a code point as UTF-8.
void append_utf8(std::string& text, char32_t code);

// Where each run of code points of one class begins: code point * 4 + class, ascending.
extern const std::array<uint32_t, 1610> kUnicodeRuns;

}  // namespace cleave
