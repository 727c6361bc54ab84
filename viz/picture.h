// A drawing as plain data: boxes, frames around them, arrows between them. to_dot writes it for
// Graphviz.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cleave {

struct Box {
  enum class Kind : uint8_t {
    kOp,       // a rectangle
    kHexagon,  // a synchronization point
    kTensor,   // rounded: data, a parameter, an output
    kGhost,    // text alone: where an arrow leaves the picture
  };
  Kind kind = Kind::kOp;
  std::vector<std::string> lines;  // the first one bold
  std::vector<std::string> fills;  // "#rrggbb": one stripe each
  int32_t frame = -1;              // the innermost one around it
};

struct Frame {
  std::string label;
  std::string colour = "#888888";
  bool dashed = false;
  int32_t parent = -1;
};

struct Arrow {
  int32_t from = 0, to = 0;  // boxes
  bool upward = false;       // drawn from the bottom to the top, as the backward runs
  bool aside = false;        // thin and dashed, with no say in where boxes stand
  bool both = false;         // a head at both ends
  bool operator==(const Arrow&) const = default;
};

struct LegendEntry {
  std::string text, colour;
};

struct Picture {
  std::string title;
  std::vector<Box> boxes;
  std::vector<Frame> frames;
  std::vector<Arrow> arrows;
  std::vector<int32_t> anchors;  // boxes near the top whose frames stand in this order, from left
  std::vector<LegendEntry> legend;
};

// The DOT text. Any name is safe in it: markup, quotes, control characters, bytes that are not
// UTF-8.
std::string to_dot(const Picture& picture);

}  // namespace cleave
