// Pictures as SVG, laid out by viz/layout.h: no other program is needed.
#pragma once

#include <string>

#include "viz/picture.h"

namespace cleave {

// More boxes than this cannot be read on one page, nor laid out at once.
inline constexpr size_t kMostBoxes = 600;

// A whole SVG document on a white ground, with title and legend. `ids`: what the names of its parts
// begin with, where several stand in one page. Throws Error when there are more than kMostBoxes
// boxes.
std::string to_svg(const Picture& picture, const std::string& ids = "");

}  // namespace cleave
