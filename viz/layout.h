// A picture with a place for everything: forward on the left and downwards, backward beside it and
// upwards, each op level with its gradient, the update below them from left to right.
#pragma once

#include <string>
#include <vector>

#include "viz/picture.h"

namespace cleave {

struct Place {
  double x = 0, y = 0, width = 0, height = 0;  // of the upper left corner; in pixels
};

struct PlacedFrame {
  Place place;
  Frame::Kind kind = Frame::Kind::kPhase;
  std::string label;
};

struct Point {
  double x = 0, y = 0;
};

// A line, then curves and lines in turn: M p0 L p1 C p2 p3 p4 L p5 ...
struct PlacedArrow {
  std::vector<Point> points;
  size_t arrow = 0;  // of the picture
};

struct Layout2d {
  double width = 0, height = 0;
  std::vector<Place> boxes;         // as the picture's
  std::vector<PlacedFrame> frames;  // outer ones first; a region may be in several pieces
  std::vector<PlacedArrow> arrows;
};

Layout2d lay_out(const Picture& picture);

// Sizes that the layout and the drawing agree on.
namespace metrics {
inline constexpr double kTitle = 13, kNote = 11, kValue = 11;              // fonts
inline constexpr double kTitleLine = 17, kNoteLine = 14, kValueLine = 17;  // heights
inline constexpr double kPadding = 8;
inline constexpr size_t kLongest = 64;  // characters of a line; longer ones are shortened
}  // namespace metrics

}  // namespace cleave
