// Picture to DOT.
#include <fmt/format.h>

#include "viz/picture.h"

namespace cleave {
namespace {

constexpr const char* kFont = "Helvetica";

// Length of the UTF-8 character that begins at `at`; 0 when there is none.
size_t utf8_length(const std::string& text, size_t at) {
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
  // Encodings longer than needed, surrogates, and what lies above the last character.
  const unsigned second = byte(at + 1);
  if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
      (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F)) {
    return 0;
  }
  return length;
}

// As text inside an HTML-like label.
std::string escaped(const std::string& text) {
  std::string safe;
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text, at);
    const std::string_view c = std::string_view(text).substr(at, length);
    at += length == 0 ? 1 : length;
    if (length == 0) {
      safe += "\xEF\xBF\xBD";  // U+FFFD
    } else if (c == "&") {
      safe += "&amp;";
    } else if (c == "<") {
      safe += "&lt;";
    } else if (c == ">") {
      safe += "&gt;";
    } else if (c == "\"") {
      safe += "&quot;";
    } else if (length == 1 && (static_cast<unsigned char>(c[0]) < 0x20 || c[0] == 0x7F)) {
      safe += ' ';
    } else if (c == "[" || c == "]") {
      safe += fmt::format("&#{};", static_cast<int>(c[0]));  // "]]>" would end more than the text
    } else {
      safe += c;
    }
  }
  return safe;
}

// An empty tag would be a syntax error of the label.
std::string line_text(const std::string& line) { return line.empty() ? " " : escaped(line); }

std::string label(const std::vector<std::string>& lines) {
  std::string text = "<";
  for (size_t i = 0; i < lines.size(); ++i) {
    text += i == 0 ? fmt::format("<B>{}</B>", line_text(lines[i]))
                   : fmt::format(R"(<BR/><FONT POINT-SIZE="9">{}</FONT>)", line_text(lines[i]));
  }
  return (lines.empty() ? text + " " : text) + ">";
}

std::string box_text(const Picture& p, size_t i) {
  const Box& b = p.boxes[i];
  std::string style, fill = b.fills.empty() ? "#ffffff" : b.fills[0];
  switch (b.kind) {
    case Box::Kind::kOp: style = "filled"; break;
    case Box::Kind::kHexagon: style = "filled"; break;
    case Box::Kind::kTensor: style = "filled,rounded"; break;
    case Box::Kind::kGhost: break;
  }
  if (b.kind == Box::Kind::kOp && b.fills.size() > 1) {
    style = "striped";
    for (size_t f = 1; f < b.fills.size(); ++f) fill += ":" + b.fills[f];
  }
  if (b.kind == Box::Kind::kGhost) {
    return fmt::format(
        "n{} [label={}, shape=plaintext, style=\"\", fontcolor=\"#777777\", fontsize=9];\n", i,
        label(b.lines));
  }
  const bool hexagon = b.kind == Box::Kind::kHexagon;
  return fmt::format(
      "n{} [label={}, style=\"{}\", fillcolor=\"{}\"{}];\n", i, label(b.lines), style, fill,
      hexagon ? ", shape=hexagon, fontcolor=white, fontsize=10, margin=\"0.02,0.01\"" : "");
}

// The frame, the frames inside, and the boxes.
void add_frame(const Picture& p, int32_t frame, const std::string& indent, std::string& text) {
  for (size_t f = 0; f < p.frames.size(); ++f) {
    const Frame& inner = p.frames[f];
    if (inner.parent != frame) continue;
    text += fmt::format("{}subgraph cluster_{} {{\n", indent, f);
    text += fmt::format(
        "{}  graph [label=<<B>{}</B>>, labeljust=l, color=\"{}\", fontcolor=\"{}\", "
        "style=\"{}\", penwidth={}];\n",
        indent, line_text(inner.label), inner.colour, inner.colour,
        inner.dashed ? "dashed,rounded" : "rounded", inner.dashed ? 1.6 : 1.0);
    add_frame(p, static_cast<int32_t>(f), indent + "  ", text);
    text += indent + "}\n";
  }
  for (size_t i = 0; i < p.boxes.size(); ++i) {
    if (p.boxes[i].frame == frame) text += indent + box_text(p, i);
  }
}

std::string arrow_text(const Arrow& a) {
  std::string attributes;
  const auto add = [&](std::string_view attribute) {
    attributes += attributes.empty() ? "" : ", ";
    attributes += attribute;
  };
  // An upward arrow is turned round for the layout, which puts tails above heads.
  if (a.both) {
    add("dir=both");
  } else if (a.upward) {
    add("dir=back");
  }
  if (a.aside)
    add("constraint=false, style=dashed, color=\"#bbbbbb\", penwidth=0.7, arrowsize=0.5");
  return fmt::format("  n{} -> n{}{};\n", a.upward ? a.to : a.from, a.upward ? a.from : a.to,
                     attributes.empty() ? "" : " [" + attributes + "]");
}

std::string legend_text(const Picture& p) {
  if (p.legend.empty()) return "";
  std::string rows;
  for (const LegendEntry& e : p.legend) {
    rows += fmt::format(R"(<TR><TD BGCOLOR="{}" WIDTH="22"> </TD><TD ALIGN="LEFT">{}</TD></TR>)",
                        e.colour, line_text(e.text));
  }
  return fmt::format(
      "  legend [shape=plaintext, style=\"\", fontsize=10, label=<<TABLE BORDER=\"0\" "
      "CELLSPACING=\"3\" CELLPADDING=\"2\">{}</TABLE>>];\n",
      rows);
}

// Invisible points in one row, each above its frame: dot keeps their order.
std::string anchors_text(const Picture& p) {
  std::string row, down;
  for (size_t i = 0; i < p.anchors.size(); ++i) {
    row += fmt::format("{}a{}", i == 0 ? "" : " -> ", i);
    down += fmt::format("  a{} -> n{} [style=invis, weight=10];\n", i, p.anchors[i]);
  }
  if (p.anchors.size() < 2) return "";
  return fmt::format(
      "  {{\n    rank=same;\n    node [shape=point, style=invis, height=0];\n"
      "    {} [style=invis];\n  }}\n{}",
      row, down);
}

}  // namespace

std::string to_dot(const Picture& p) {
  std::string text = "digraph cleave {\n";
  text += fmt::format(
      "  graph [label=<<B>{}</B>>, labelloc=t, fontname=\"{}\", fontsize=13, rankdir=TB, "
      "nodesep=0.22, ranksep=0.3, newrank=false];\n",
      line_text(p.title), kFont);
  text += fmt::format(
      "  node [shape=box, fontname=\"{}\", fontsize=11, margin=\"0.09,0.05\", height=0.3, "
      "color=\"#666666\"];\n",
      kFont);
  text += fmt::format("  edge [color=\"#555555\", arrowsize=0.6, fontname=\"{}\"];\n", kFont);
  text += legend_text(p);
  add_frame(p, -1, "  ", text);
  text += anchors_text(p);
  for (const Arrow& a : p.arrows) text += arrow_text(a);
  return text + "}\n";
}

}  // namespace cleave
