// DOT to SVG, by Graphviz's dot in a child process, which may hang on large graphs.
#pragma once

#include <string>

namespace cleave {

struct Rendering {
  bool done = false;
  std::string why_not;  // one line: not installed, too slow, dot's own complaint
};

// Draws the DOT file into an SVG file. `time_limit`: seconds, after which dot is killed.
Rendering render_svg(const std::string& dot_path, const std::string& svg_path, double time_limit);

}  // namespace cleave
