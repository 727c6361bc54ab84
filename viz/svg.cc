#include "viz/svg.h"

#include <fmt/format.h>

#include <algorithm>

#include "graph/error.h"
#include "viz/layout.h"
#include "viz/text.h"

namespace cleave {
namespace {

constexpr double kMargin = 16;
constexpr double kHead = 19, kSub = 12.5;  // fonts of the title
constexpr double kLegendLine = 21, kLegendFont = 11.5;
constexpr const char* kStyle =
    "text{font-family:Helvetica,Arial,'Liberation Sans',sans-serif;fill:#1f2328}"
    ".t{font-size:13px;font-weight:bold}.n{font-size:11px;fill:#57606a}.v{font-size:11px}"
    ".h{font-size:11px;fill:#fff}.r{font-size:11px;font-weight:bold;fill:#1f5fa8}"
    ".l{font-size:12px;font-weight:bold;fill:#8a6100}.p{font-size:14px;font-weight:bold;fill:#"
    "57606a}"
    ".k{stroke:#fff;stroke-width:4px;stroke-linejoin:round;paint-order:stroke}"
    ".a{fill:none;stroke:#57606a;stroke-width:1.2}"
    ".s{fill:none;stroke:#a0a8b2;stroke-width:1;stroke-dasharray:4 3}";

std::string fitted(const std::string& text) {
  return xml_text(shortened(clean_text(text), metrics::kLongest));
}

std::string text_at(double x, double y, const char* style, const std::string& text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"{}\">{}</text>", x, y, style, text);
}

std::string rectangle(const Place& p, double corner, std::string_view fill, std::string_view more) {
  return fmt::format(
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"{:g}\" fill=\"{}\" "
      "{}/>",
      p.x, p.y, p.width, p.height, corner, fill, more);
}

std::string hexagon(const Place& p, const std::string& colour) {
  const double in = 9, x0 = p.x, x1 = p.x + p.width, y0 = p.y, y1 = p.y + p.height,
               m = (y0 + y1) / 2;
  return fmt::format(
      "<polygon points=\"{:.1f},{:.1f} {:.1f},{:.1f} {:.1f},{:.1f} {:.1f},{:.1f} {:.1f},{:.1f} "
      "{:.1f},{:.1f}\" fill=\"{}\"/>",
      x0, m, x0 + in, y0, x1 - in, y0, x1, m, x1 - in, y1, x0 + in, y1, colour);
}

std::string stripes(const Place& p, const std::vector<std::string>& fills) {
  std::string text;
  const double width = p.width / static_cast<double>(std::max<size_t>(fills.size(), 1));
  for (size_t i = 0; i < fills.size(); ++i) {
    text +=
        rectangle({p.x + width * static_cast<double>(i), p.y, width, p.height}, 0, fills[i], "");
  }
  return text;
}

// All that the box says, for the pointer's tooltip.
std::string tooltip(const Box& b) {
  std::string text = b.title;
  for (const std::string& n : b.notes) text += " | " + n;
  for (const ValueLine& v : b.values) text += " | " + v.text;
  return fmt::format("<title>{}</title>", xml_text(text));
}

bool is_long(const Box& b) {
  const auto over = [](const std::string& t) { return t.size() > metrics::kLongest; };
  return over(b.title) || std::any_of(b.notes.begin(), b.notes.end(), over) ||
         std::any_of(b.values.begin(), b.values.end(),
                     [&](const ValueLine& v) { return over(v.text); });
}

std::string box_svg(const Box& b, const Place& p) {
  std::string text = is_long(b) ? tooltip(b) : "";
  const double left = p.x + metrics::kPadding;
  if (b.kind == Box::Kind::kGhost) {
    return text + text_at(p.x + 4, p.y + 13, "n k", fitted(b.title));
  }
  if (b.kind == Box::Kind::kHexagon) {
    text += hexagon(p, b.colour);
    std::string line = fmt::format("<tspan font-weight=\"bold\">{}</tspan>", fitted(b.title));
    for (const std::string& n : b.notes) line += "&#160; " + fitted(n);
    return text +
           fmt::format(
               "<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"h\" text-anchor=\"middle\">{}</text>",
               p.x + p.width / 2, p.y + 16, line);
  }
  const bool tensor = b.kind == Box::Kind::kTensor;
  const double corner = tensor ? 11 : 3;
  text += rectangle(p, corner, "#fff", "");
  double y = p.y + (b.title.empty() ? 1 : 4 + metrics::kTitleLine);
  std::string words = b.title.empty() ? "" : text_at(left, y - 4, "t", fitted(b.title));
  for (const std::string& n : b.notes) {
    y += metrics::kNoteLine;
    words += text_at(left, y - 4, "n", fitted(n));
  }
  for (size_t i = 0; i < b.values.size(); ++i) {
    const bool last = i + 1 == b.values.size();
    const double height = metrics::kValueLine - (last ? 0 : 1);
    // Inside the border, and of its round corners.
    Place line = {p.x + 0.5, y, p.width - 1, last ? p.y + p.height - y - 0.5 : height};
    if (tensor && last) line = {p.x + 5, y, p.width - 10, height - 1};
    const ValueLine& v = b.values[i];
    text +=
        v.hexagon
            ? hexagon({p.x + 3, y + 0.5,
                       std::min(p.width - 6, text_width(clean_text(v.text), metrics::kValue) + 22),
                       height - 1},
                      v.fills[0])
            : stripes(line, v.fills);
    words += text_at(left + (v.hexagon ? 4 : 0), y + 12.5, v.hexagon ? "h" : "v", fitted(v.text));
    y += metrics::kValueLine;
  }
  return text + rectangle(p, corner, "none", "stroke=\"#7d8590\"") + words;
}

std::string frame_svg(const PlacedFrame& f) {
  const Place& p = f.place;
  const std::string label = xml_text(shortened(clean_text(f.label), metrics::kLongest));
  switch (f.kind) {
    case Frame::Kind::kPhase:
      return rectangle(p, 8, "#f6f8fa", "stroke=\"#d0d7de\"") +
             text_at(p.x + 12, p.y + 19, "p", label);
    case Frame::Kind::kLayer:
      return rectangle(p, 6, "#fff8e1", "stroke=\"#e3c880\"") +
             text_at(p.x + 10, p.y + 15, "l", label);
    case Frame::Kind::kRegion:
      return rectangle(
          p, 6, "#eaf3fc",
          "fill-opacity=\"0.7\" stroke=\"#1f5fa8\" stroke-dasharray=\"5 3\" stroke-width=\"1.3\"");
  }
  return "";
}

std::string arrow_svg(const PlacedArrow& placed, const Arrow& a, const std::string& ids) {
  const std::vector<Point>& q = placed.points;
  std::string path = fmt::format("M{:.1f} {:.1f}L{:.1f} {:.1f}", q[0].x, q[0].y, q[1].x, q[1].y);
  for (size_t i = 2; i + 3 < q.size(); i += 4) {
    path += fmt::format("C{:.1f} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}L{:.1f} {:.1f}", q[i].x, q[i].y,
                        q[i + 1].x, q[i + 1].y, q[i + 2].x, q[i + 2].y, q[i + 3].x, q[i + 3].y);
  }
  return fmt::format("<path d=\"{}\" class=\"{}\" marker-end=\"url(#{}{})\"/>", path,
                     a.aside ? "s" : "a", ids, a.aside ? "o" : "e");
}

// --- Legend --------------------------------------------------------------------------------------

double sign_width(LegendEntry::Sign sign) { return sign == LegendEntry::Sign::kText ? 0 : 34; }

std::string sign_svg(const LegendEntry& e, double x, double y, const std::string& ids) {
  const Place p = {x, y - 12, 26, 15};
  using Sign = LegendEntry::Sign;
  switch (e.sign) {
    case Sign::kFill: return rectangle(p, 0, e.colour, "stroke=\"#7d8590\" stroke-width=\"0.7\"");
    case Sign::kHexagon: return hexagon(p, e.colour);
    case Sign::kRegion:
      return rectangle(p, 4, "#eaf3fc",
                       "stroke=\"#1f5fa8\" stroke-dasharray=\"4 2\" stroke-width=\"1.3\"");
    case Sign::kTensor: return rectangle(p, 7, "#fff", "stroke=\"#7d8590\"");
    case Sign::kSaved:
      return fmt::format("<path d=\"M{:.1f} {:.1f}h24\" class=\"s\" marker-end=\"url(#{}o)\"/>", x,
                         y - 4, ids);
    case Sign::kText: break;
  }
  return "";
}

// Entries one after the other, in lines of at most this width. Returns the lines' count.
int legend_svg(const Picture& p, double width, double top, const std::string& ids,
               std::string& text) {
  double x = kMargin;
  int lines = p.legend.empty() ? 0 : 1;
  for (const LegendEntry& e : p.legend) {
    const double wide = sign_width(e.sign) + text_width(clean_text(e.text), kLegendFont) + 20;
    if (x > kMargin && x + wide > width - kMargin) x = kMargin, ++lines;
    const double y = top + kLegendLine * lines - 5;
    text += sign_svg(e, x, y, ids);
    text += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" font-size=\"{:g}\">{}</text>\n",
                        x + sign_width(e.sign), y, kLegendFont, xml_text(e.text));
    x += wide;
  }
  return lines;
}

}  // namespace

std::string to_svg(const Picture& p, const std::string& ids) {
  if (p.boxes.size() > kMostBoxes) {
    fail("the picture has {} boxes, and more than {} cannot be read on one page", p.boxes.size(),
         kMostBoxes);
  }
  const Layout2d layout = lay_out(p);
  double width = std::max(layout.width, text_width(clean_text(p.title), kHead, true));
  for (const std::string& s : p.subtitle) width = std::max(width, text_width(clean_text(s), kSub));
  width += 2 * kMargin;
  const double head = 30 + 19 * static_cast<double>(p.subtitle.size()) + 8;
  std::string legend;
  const double below = kMargin + head + layout.height + 8;
  const int lines = legend_svg(p, width, below, ids, legend);
  const double height = below + kLegendLine * lines + 12;

  std::string text = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 "
      "0 {0:.0f} "
      "{1:.0f}\">\n<title>{2}</title>\n<style>{3}</style>\n"
      "<defs><marker id=\"{4}e\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"6.5\" "
      "markerHeight=\"6.5\" "
      "orient=\"auto-start-reverse\"><path d=\"M0 0.5L8 4L0 7.5z\" fill=\"#57606a\"/></marker>"
      "<marker id=\"{4}o\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"6\" "
      "markerHeight=\"6\" "
      "orient=\"auto-start-reverse\"><path d=\"M0 0.5L8 4L0 7.5z\" "
      "fill=\"#a0a8b2\"/></marker></defs>\n",
      width, height, xml_text(p.title), kStyle, ids);
  text += rectangle({0, 0, width, height}, 10, "#ffffff", "") + "\n";
  text +=
      fmt::format("<text x=\"{:g}\" y=\"{:g}\" font-size=\"{:g}\" font-weight=\"bold\">{}</text>\n",
                  kMargin, kMargin + 16, kHead, xml_text(p.title));
  double y = kMargin + 16;
  for (const std::string& s : p.subtitle) {
    y += 19;
    text +=
        fmt::format("<text x=\"{:g}\" y=\"{:g}\" font-size=\"{:g}\" fill=\"#57606a\">{}</text>\n",
                    kMargin, y, kSub, xml_text(s));
  }
  text += fmt::format("<g transform=\"translate({:g} {:g})\">\n", kMargin, kMargin + head);
  for (const PlacedFrame& f : layout.frames) text += frame_svg(f) + "\n";
  for (const PlacedArrow& a : layout.arrows) {
    if (p.arrows[a.arrow].aside) text += arrow_svg(a, p.arrows[a.arrow], ids) + "\n";
  }
  for (const PlacedArrow& a : layout.arrows) {
    if (!p.arrows[a.arrow].aside) text += arrow_svg(a, p.arrows[a.arrow], ids) + "\n";
  }
  for (const PlacedFrame& f : layout.frames) {
    if (f.kind == Frame::Kind::kRegion) {
      text += text_at(f.place.x + 7, f.place.y + 12, "r k", fitted(f.label)) + "\n";
    }
  }
  for (size_t b = 0; b < p.boxes.size(); ++b) {
    text += "<g>" + box_svg(p.boxes[b], layout.boxes[b]) + "</g>\n";
  }
  return text + "</g>\n" + legend + "</svg>\n";
}

}  // namespace cleave
