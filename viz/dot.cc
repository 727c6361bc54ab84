// Picture to DOT.
#include <fmt/format.h>

#include "viz/picture.h"
#include "viz/text.h"

namespace cleave {
namespace {

constexpr const char* kFont = "Helvetica";

// As text inside an HTML-like label: an empty tag would be a syntax error of it, and "]]>" would
// end more than the text.
std::string text_of(const std::string& text) {
  std::string safe;
  for (char c : xml_text(text)) safe += c == '[' ? "&#91;" : c == ']' ? "&#93;" : std::string(1, c);
  return safe.empty() ? " " : safe;
}

std::string small(const std::string& text) {
  return fmt::format(R"(<FONT POINT-SIZE="9">{}</FONT>)", text_of(text));
}

// The title over the notes over the values, each with a cell in its colour for every mesh axis.
std::string table(const Box& b) {
  size_t stripes = 1;
  for (const ValueLine& v : b.values) stripes = std::max(stripes, v.fills.size());
  std::string rows = fmt::format(R"(<TR><TD COLSPAN="{}" ALIGN="LEFT"><B>{}</B></TD></TR>)",
                                 stripes + 1, text_of(b.title));
  for (const std::string& n : b.notes) {
    rows += fmt::format(R"(<TR><TD COLSPAN="{}" ALIGN="LEFT">{}</TD></TR>)", stripes + 1, small(n));
  }
  for (const ValueLine& v : b.values) {
    if (v.hexagon) {
      rows += fmt::format(
          R"(<TR><TD COLSPAN="{}" ALIGN="LEFT" BGCOLOR="{}"><FONT COLOR="white">{}</FONT></TD></TR>)",
          stripes + 1, v.fills[0], small(v.text));
      continue;
    }
    rows += "<TR>";
    for (size_t i = 0; i < stripes; ++i) {
      rows += fmt::format(R"(<TD BGCOLOR="{}" WIDTH="10"> </TD>)",
                          i < v.fills.size() ? v.fills[i] : "#ffffff");
    }
    rows += fmt::format(R"(<TD ALIGN="LEFT">{}</TD></TR>)", small(v.text));
  }
  return fmt::format(
      R"(<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="1" CELLPADDING="2">{}</TABLE>>)", rows);
}

std::string lines(const Box& b) {
  std::string text = fmt::format("<<B>{}</B>", text_of(b.title));
  for (const std::string& n : b.notes) text += "<BR/>" + small(n);
  return text + ">";
}

std::string box_text(const Box& b, size_t i) {
  switch (b.kind) {
    case Box::Kind::kGhost:
      return fmt::format("n{} [label={}, shape=plaintext, fontcolor=\"#777777\", fontsize=9];\n", i,
                         lines(b));
    case Box::Kind::kHexagon:
      return fmt::format(
          "n{} [label={}, shape=hexagon, style=filled, fillcolor=\"{}\", fontcolor=white, "
          "fontsize=10, "
          "margin=\"0.02,0.01\"];\n",
          i, lines(b), b.colour);
    case Box::Kind::kTensor: return fmt::format("n{} [label={}, style=rounded];\n", i, table(b));
    case Box::Kind::kOp: break;
  }
  return fmt::format("n{} [label={}];\n", i, table(b));
}

// The frame, the frames inside, and the boxes.
void add_frame(const Picture& p, int32_t frame, const std::string& indent, std::string& text) {
  for (size_t f = 0; f < p.frames.size(); ++f) {
    const Frame& inner = p.frames[f];
    if (inner.parent != frame) continue;
    const bool region = inner.kind == Frame::Kind::kRegion;
    const char* colour = region                              ? "#1f5fa8"
                         : inner.kind == Frame::Kind::kLayer ? "#8a6100"
                                                             : "#57606a";
    text += fmt::format("{}subgraph cluster_{} {{\n", indent, f);
    text += fmt::format(
        "{}  graph [label=<<B>{}</B>>, labeljust=l, color=\"{}\", fontcolor=\"{}\", "
        "style=\"{}\"];\n",
        indent, text_of(inner.label), colour, colour, region ? "dashed,rounded" : "rounded");
    add_frame(p, static_cast<int32_t>(f), indent + "  ", text);
    text += indent + "}\n";
  }
  for (size_t i = 0; i < p.boxes.size(); ++i) {
    if (p.boxes[i].frame == frame) text += indent + box_text(p.boxes[i], i);
  }
}

std::string arrow_text(const Arrow& a) {
  // An upward arrow is turned round for the layout, which puts tails above heads.
  const char* attributes =
      a.aside    ? " [constraint=false, style=dashed, color=\"#a0a8b2\", arrowsize=0.5]"
      : a.upward ? " [dir=back]"
                 : "";
  const bool turned = a.upward && !a.aside;
  return fmt::format("  n{} -> n{}{};\n", turned ? a.to : a.from, turned ? a.from : a.to,
                     attributes);
}

std::string legend_text(const Picture& p) {
  std::string rows;
  for (const LegendEntry& e : p.legend) {
    rows += fmt::format(R"(<TR><TD BGCOLOR="{}" WIDTH="22"> </TD><TD ALIGN="LEFT">{}</TD></TR>)",
                        e.colour.empty() ? "#ffffff" : e.colour, text_of(e.text));
  }
  if (rows.empty()) return "";
  return fmt::format(
      "  legend [shape=plaintext, fontsize=10, label=<<TABLE BORDER=\"0\" CELLSPACING=\"3\" "
      "CELLPADDING=\"2\">{}</TABLE>>];\n",
      rows);
}

}  // namespace

std::string to_dot(const Picture& p) {
  std::string title = fmt::format("<B>{}</B>", text_of(p.title));
  for (const std::string& s : p.subtitle) title += "<BR/>" + text_of(s);
  std::string text = fmt::format(
      "digraph cleave {{\n  graph [label=<{}>, labelloc=t, fontname=\"{}\", fontsize=13, "
      "nodesep=0.22, "
      "ranksep=0.3];\n",
      title, kFont);
  text += fmt::format(
      "  node [shape=box, fontname=\"{}\", fontsize=11, margin=\"0.03,0.03\", height=0.3, "
      "color=\"#7d8590\"];\n",
      kFont);
  text += fmt::format("  edge [color=\"#57606a\", arrowsize=0.6, fontname=\"{}\"];\n", kFont);
  text += legend_text(p);
  add_frame(p, -1, "  ", text);
  for (const Arrow& a : p.arrows) text += arrow_text(a);
  return text + "}\n";
}

}  // namespace cleave
