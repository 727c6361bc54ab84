#include "data/pre_tokenizer.h"

#include "data/unicode.h"

namespace cleave {
namespace {

// The end of the run of characters of this class.
size_t run_end(std::string_view text, size_t at, CharClass kind) {
  while (at < text.size()) {
    const Character c = character_at(text, at);
    if (c.kind != kind) break;
    at += c.bytes;
  }
  return at;
}

bool is_newline(char32_t code) { return code == '\r' || code == '\n'; }

// 's 't 're 've 'm 'll 'd after the apostrophe: the bytes they take, or 0. Under (?i:...) the long
// s counts as an s.
size_t contraction(std::string_view rest, bool any_case) {
  const auto letter = [&](size_t i) {
    const char c = i < rest.size() ? rest[i] : '\0';
    return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
  };
  switch (letter(0)) {
    case 's':
    case 't':
    case 'm':
    case 'd': return 1;
    case 'r':
    case 'v': return letter(1) == 'e' ? 2 : 0;
    case 'l': return letter(1) == 'l' ? 2 : 0;
    default: return any_case && rest.starts_with("\u017F") ? 2 : 0;
  }
}

// \s+(?!\S)|\s+ : the whole run at the end of the text, else all but its last character, which the
// next piece may begin with; that one alone when there is no other.
size_t space_end(std::string_view text, size_t begin) {
  size_t end = begin, last = begin;
  while (end < text.size()) {
    const Character c = character_at(text, end);
    if (c.kind != CharClass::kSpace) break;
    last = end;
    end += c.bytes;
  }
  return end == text.size() || last == begin ? end : last;
}

size_t gpt2_end(std::string_view text, size_t begin) {
  const Character first = character_at(text, begin);
  if (first.code == '\'') {
    const size_t bytes = contraction(text.substr(begin + 1), /*any_case=*/false);
    if (bytes > 0) return begin + 1 + bytes;
  }
  // " ?" before letters, numbers or neither.
  size_t at = begin;
  Character c = first;
  if (first.code == ' ' && begin + 1 < text.size()) {
    at = begin + 1;
    c = character_at(text, at);
  }
  if (c.kind != CharClass::kSpace) return run_end(text, at + c.bytes, c.kind);
  return space_end(text, begin);
}

// \s*[\r\n]+ : up to the last newline of the white space that begins here; 0: it has none.
size_t last_newline_end(std::string_view text, size_t begin) {
  size_t found = 0;
  for (size_t at = begin; at < text.size();) {
    const Character c = character_at(text, at);
    if (c.kind != CharClass::kSpace) break;
    at += c.bytes;
    if (is_newline(c.code)) found = at;
  }
  return found;
}

size_t gpt4_end(std::string_view text, size_t begin, int most_digits) {
  const Character first = character_at(text, begin);
  if (first.code == '\'') {
    const size_t bytes = contraction(text.substr(begin + 1), /*any_case=*/true);
    if (bytes > 0) return begin + 1 + bytes;
  }
  const size_t second = begin + first.bytes;
  if (first.kind == CharClass::kLetter) return run_end(text, second, CharClass::kLetter);
  if (first.kind == CharClass::kNumber) {
    size_t end = second;
    for (int n = 1; n < most_digits && end < text.size(); ++n) {
      const Character c = character_at(text, end);
      if (c.kind != CharClass::kNumber) break;
      end += c.bytes;
    }
    return end;
  }
  // [^\r\n\p{L}\p{N}]?\p{L}+
  const bool more = second < text.size();
  const Character next = more ? character_at(text, second) : Character{};
  if (more && next.kind == CharClass::kLetter && !is_newline(first.code)) {
    return run_end(text, second, CharClass::kLetter);
  }
  //  ?[^\s\p{L}\p{N}]+[\r\n]*
  const bool spaced = first.code == ' ' && more && next.kind == CharClass::kOther;
  if (spaced || first.kind == CharClass::kOther) {
    size_t end = run_end(text, second, CharClass::kOther);
    while (end < text.size() && is_newline(static_cast<char32_t>(text[end]))) ++end;
    return end;
  }
  const size_t newline = last_newline_end(text, begin);
  return newline > 0 ? newline : space_end(text, begin);
}

}  // namespace

std::string_view pattern_of(SplitRule rule) {
  switch (rule) {
    case SplitRule::kGpt2:
      return R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
    case SplitRule::kGpt4:
      return R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
             R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
    case SplitRule::kQwen2:
      return R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
             R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  }
  return "";
}

size_t piece_end(SplitRule rule, std::string_view text, size_t begin) {
  switch (rule) {
    case SplitRule::kGpt2: return gpt2_end(text, begin);
    case SplitRule::kGpt4: return gpt4_end(text, begin, 3);
    case SplitRule::kQwen2: return gpt4_end(text, begin, 1);
  }
  return text.size();
}

}  // namespace cleave
