#include "viz/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

namespace cleave {
namespace {

// Length of the UTF-8 character that begins at `at`; 0 when there is none.
size_t utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const unsigned first = byte(at);
  size_t length = 0;
  if (first < 0x80) length = 1;
  if (first >= 0xC2 && first < 0xE0) length = 2;
  if (first >= 0xE0 && first < 0xF0) length = 3;
  if (first >= 0xF0 && first < 0xF5) length = 4;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(at + i) & 0xC0) != 0x80) return 0;
  }
  // Encodings longer than needed, surrogates, what lies above the last character, and the two
  // characters of the base plane that XML does not know.
  const unsigned second = byte(at + 1);
  if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
      (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F) ||
      (first == 0xEF && second == 0xBF && byte(at + 2) > 0xBD)) {
    return 0;
  }
  return length;
}

bool is_control(std::string_view c) {
  const auto first = static_cast<unsigned char>(c[0]);
  if (c.size() == 1) return first < 0x20 || first == 0x7F;
  return c.size() == 2 && first == 0xC2 && static_cast<unsigned char>(c[1]) < 0xA0;
}

// Of Helvetica, in thousandths of the size, from the space to '~'.
constexpr std::array<int, 95> kWidths = {
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333,  278, 278, 556, 556, 556,
    556, 556, 556, 556, 556, 556, 556, 278, 278, 584, 584, 584, 556, 1015, 667, 667, 722, 722, 667,
    611, 778, 722, 278, 500, 667, 556, 833, 722, 778, 667, 778, 722, 667,  611, 722, 667, 944, 667,
    667, 611, 278, 278, 278, 469, 556, 333, 556, 556, 500, 556, 556, 278,  556, 556, 222, 222, 500,
    222, 833, 556, 556, 556, 556, 333, 500, 278, 556, 500, 722, 500, 500,  500, 334, 260, 334, 584};

}  // namespace

std::string clean_text(std::string_view text) {
  std::string safe;
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text, at);
    const std::string_view c = text.substr(at, std::max<size_t>(length, 1));
    at += c.size();
    if (length > 0 && !is_control(c)) {
      safe += c;
      continue;
    }
    for (char byte : c) safe += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
  }
  return safe;
}

std::string xml_text(std::string_view text) {
  std::string safe;
  for (char c : clean_text(text)) {
    switch (c) {
      case '&': safe += "&amp;"; break;
      case '<': safe += "&lt;"; break;
      case '>': safe += "&gt;"; break;
      case '"': safe += "&quot;"; break;
      default: safe += c;
    }
  }
  return safe;
}

std::string shortened(std::string_view text, size_t characters) {
  std::vector<std::string_view> parts;
  for (size_t at = 0; at < text.size();) {
    const size_t length = std::max<size_t>(utf8_length(text, at), 1);
    parts.push_back(text.substr(at, length));
    at += length;
  }
  if (parts.size() <= characters) return std::string(text);
  const size_t head = characters / 2, tail = characters - 1 - head;
  std::string result;
  for (size_t i = 0; i < head; ++i) result += parts[i];
  result += "…";
  for (size_t i = parts.size() - tail; i < parts.size(); ++i) result += parts[i];
  return result;
}

double text_width(std::string_view text, double size, bool bold) {
  double thousandths = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t length = std::max<size_t>(utf8_length(text, at), 1);
    const char c = text[at];
    // Latin letters with marks and arrows are about as wide as an 'm', the rest of the world's
    // characters square.
    thousandths += length == 1 && c >= ' ' && c <= '~' ? kWidths[static_cast<size_t>(c - ' ')]
                   : length == 2                       ? 600
                                                       : 1000;
    at += length;
  }
  return thousandths * size / 1000 * (bold ? 1.09 : 1.03);
}

}  // namespace cleave
