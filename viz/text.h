// Names as text that XML, DOT and a screen can take, and how wide they are drawn.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace cleave {

// UTF-8 without control characters: those, and bytes that are not UTF-8, become "\x0a".
std::string clean_text(std::string_view text);
// The same, as text of an XML element or attribute.
std::string xml_text(std::string_view text);
// At most so many characters of printable text; an ellipsis in the middle stands for the rest.
std::string shortened(std::string_view text, size_t characters);
// Of printable text in Helvetica, in units of the font's size, with some room for other fonts.
double text_width(std::string_view text, double size, bool bold = false);

}  // namespace cleave
