// A drawing as plain data: boxes, frames around them, arrows between them. to_dot writes it for
// Graphviz, to_svg (viz/svg.h) lays it out and draws it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cleave {

// A line of a box: a value, "out [8, 1024] -> [8, 128]" over its colours, or a synchronization
// inside the box.
struct ValueLine {
  std::string text;
  std::vector<std::string> fills;  // "#rrggbb": one stripe a mesh axis
  bool hexagon = false;            // a synchronization, in fills[0]
};

struct Box {
  enum class Kind : uint8_t {
    kOp,       // work
    kHexagon,  // a synchronization point
    kTensor,   // rounded: data, an output
    kGhost,    // text alone: where an arrow leaves the picture
  };
  Kind kind = Kind::kOp;
  std::string title;
  std::vector<std::string> notes = {};  // smaller lines below it
  std::vector<ValueLine> values = {};   // below those
  std::string colour = {};              // of a hexagon
  int32_t frame = -1;                   // the innermost one around it
  int32_t beside = -1;                  // a box that it should stand level with
};

struct Frame {
  enum class Kind : uint8_t {
    kPhase,   // holds all else
    kLayer,   // a repeated layer; frames of both phases with the same id are one layer
    kRegion,  // dashed: no communication inside
  };
  Kind kind = Kind::kPhase;
  std::string label;
  int32_t id = 0;  // kPhase: the Phase; kLayer: which repeat
  int32_t parent = -1;
};

struct Arrow {
  int32_t from = 0, to = 0;  // boxes
  bool upward = false;       // in the backward, which is drawn from the bottom to the top
  bool aside = false;        // dashed: saved for the backward; no say in where boxes stand
  bool operator==(const Arrow&) const = default;
};

struct LegendEntry {
  enum class Sign : uint8_t { kFill, kHexagon, kRegion, kSaved, kTensor, kText };
  Sign sign = Sign::kFill;
  std::string text;
  std::string colour = {};
};

struct Picture {
  std::string title;
  std::vector<std::string> subtitle;  // lines
  std::vector<Box> boxes;
  std::vector<Frame> frames;
  std::vector<Arrow> arrows;
  std::vector<LegendEntry> legend;
};

// The DOT text. Any name is safe in it: markup, quotes, control characters, bytes that are not
// UTF-8.
std::string to_dot(const Picture& picture);

}  // namespace cleave
