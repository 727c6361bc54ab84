#include "viz/layout.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "viz/columns.h"
#include "viz/rows.h"
#include "viz/text.h"

namespace cleave {
namespace {

constexpr double kRowGap = 16, kFramedGap = 9, kMostSlack = 20;
constexpr double kFrameMargin = 9, kFrameLabel = 15;
constexpr double kBandMargin = 8, kBandLabel = 18;
constexpr double kPanelPadding = 16, kPanelLabel = 26, kPanelGap = 22;
constexpr double kPortDistance = 12;
constexpr double kNarrowest = 0.56;  // a page's width for its height
constexpr int32_t kMostInRow = 7;
constexpr size_t kLargestStrip = 14;  // boxes of an update that is drawn as a strip
constexpr int32_t kForward = 0, kBackward = 1, kUpdate = 2;

size_t at(int32_t i) { return static_cast<size_t>(i); }

Place size_of_box(const Box& b) {
  const auto width = [](const std::string& text, double size, bool bold) {
    return text_width(shortened(clean_text(text), metrics::kLongest), size, bold);
  };
  if (b.kind == Box::Kind::kHexagon) {
    double w = width(b.title, metrics::kNote, true) + 34;
    for (const std::string& n : b.notes) w += width(n, metrics::kNote, false) + 6;
    return {0, 0, w, 24};
  }
  if (b.kind == Box::Kind::kGhost) return {0, 0, width(b.title, metrics::kNote, false) + 8, 18};
  double w = b.title.empty() ? 0 : width(b.title, metrics::kTitle, true);
  for (const std::string& n : b.notes) w = std::max(w, width(n, metrics::kNote, false));
  for (const ValueLine& v : b.values) w = std::max(w, width(v.text, metrics::kValue, false));
  const double h = (b.title.empty() ? 2 : 5 + metrics::kTitleLine) +
                   metrics::kNoteLine * static_cast<double>(b.notes.size()) +
                   metrics::kValueLine * static_cast<double>(b.values.size()) +
                   (b.values.empty() ? 3 : 0);
  return {0, 0, std::max(w + 2 * metrics::kPadding, 56.0), h};
}

// A set of boxes in rows. Coordinates are across and along the rows' direction, so that a panel can
// run downwards or to the right.
struct Panel {
  std::vector<int32_t> boxes;
  std::vector<double> row_start, row_end;
  bool rightwards = false;
  Place place;
};

// Where a region's frame runs, in rows and across.
struct Piece {
  std::vector<int32_t> boxes;
  int32_t frame = 0, panel = 0, first = 0, last = 0;
  double left = 0, right = 0;
};

class PageMaker {
 public:
  explicit PageMaker(const Picture& p) : p_(p) {
    const size_t n = p.boxes.size();
    phase_.resize(n, kForward), layer_.resize(n, -1), region_.resize(n, -1), row_.resize(n);
    for (size_t b = 0; b < n; ++b) {
      place_.push_back(size_of_box(p.boxes[b]));
      for (int32_t f = p.boxes[b].frame; f >= 0; f = p.frames[at(f)].parent) {
        const Frame& frame = p.frames[at(f)];
        if (frame.kind == Frame::Kind::kPhase) phase_[b] = frame.id;
        if (frame.kind == Frame::Kind::kLayer) layer_[b] = frame.id;
        if (frame.kind != Frame::Kind::kRegion) continue;
        region_[b] = f;  // whose label needs room
        place_[b].width = std::max(place_[b].width, label_width(f) - 2 * kFrameMargin);
      }
      panels_[at(phase_[b])].boxes.push_back(static_cast<int32_t>(b));
    }
    across_.resize(n), along_.resize(n);
    panels_[kUpdate].rightwards = panels_[kUpdate].boxes.size() <= kLargestStrip;
  }

  Layout2d result() {
    rows_of({kForward, kBackward});
    rows_of({kUpdate});
    for (int32_t p : {kForward, kBackward, kUpdate}) columns_of(p);
    for (int32_t p : {kForward, kBackward}) find_pieces(p);
    space_rows({kForward, kBackward});
    space_rows({kUpdate});
    arrange();
    place_boxes();
    place_frames();
    for (size_t a = 0; a < p_.arrows.size(); ++a) route(a);
    return std::move(out_);
  }

 private:
  double across_size(int32_t b) const {
    return panels_[at(phase_[at(b)])].rightwards ? place_[at(b)].height : place_[at(b)].width;
  }
  double along_size(int32_t b) const {
    return panels_[at(phase_[at(b)])].rightwards ? place_[at(b)].width : place_[at(b)].height;
  }
  bool structural(const Arrow& a) const {
    return !a.aside && a.from != a.to && phase_[at(a.from)] == phase_[at(a.to)];
  }

  void rows_of(std::vector<int32_t> phases) {
    const auto here = [&](int32_t b) {
      return std::find(phases.begin(), phases.end(), phase_[at(b)]) != phases.end();
    };
    RowProblem problem;
    problem.size = static_cast<int32_t>(p_.boxes.size());
    for (const Arrow& a : p_.arrows) {
      if (!structural(a) || !here(a.from)) continue;
      // The backward is read from the bottom.
      if (phase_[at(a.from)] == kBackward) {
        problem.below.emplace_back(a.to, a.from);
      } else {
        problem.below.emplace_back(a.from, a.to);
      }
    }
    std::map<int32_t, std::vector<int32_t>> bands;
    for (int32_t b = 0; b < problem.size; ++b) {
      if (here(b) && layer_[at(b)] >= 0) bands[layer_[at(b)]].push_back(b);
    }
    for (int32_t b = 0; b < problem.size; ++b) {
      const int32_t other = p_.boxes[at(b)].beside;
      if (here(b) && other >= 0 && here(other)) problem.beside.emplace_back(other, b);
    }
    for (const auto& [id, boxes] : bands) problem.bands.push_back(boxes);
    Rows rows = find_rows(problem);
    // Boxes of other panels count for nothing.
    std::vector<int32_t> used;
    for (int32_t b = 0; b < problem.size; ++b) {
      if (here(b)) used.push_back(rows.of_box[at(b)]);
    }
    std::sort(used.begin(), used.end());
    used.erase(std::unique(used.begin(), used.end()), used.end());
    for (int32_t b = 0; b < problem.size; ++b) {
      if (!here(b)) continue;
      row_[at(b)] = static_cast<int32_t>(
          std::lower_bound(used.begin(), used.end(), rows.of_box[at(b)]) - used.begin());
    }
    break_long_rows(phases, static_cast<int32_t>(used.size()));
  }

  // A row of many boxes becomes several. Arrows still lead from upper to lower rows.
  void break_long_rows(const std::vector<int32_t>& phases, int32_t count) {
    std::vector<int32_t> height(at(count), 1), top(at(count) + 1);
    for (int32_t p : phases) {
      std::vector<int32_t> size(at(count));
      for (int32_t b : panels_[at(p)].boxes) ++size[at(row_[at(b)])];
      for (size_t r = 0; r < at(count); ++r)
        height[r] = std::max(height[r], (size[r] + kMostInRow - 1) / kMostInRow);
    }
    for (size_t r = 0; r < at(count); ++r) top[r + 1] = top[r] + height[r];
    for (int32_t p : phases) {
      std::vector<int32_t> seen(at(count));
      for (int32_t b : panels_[at(p)].boxes) {
        const size_t r = at(row_[at(b)]);
        row_[at(b)] = top[r] + seen[r]++ / kMostInRow;
      }
      panels_[at(p)].row_start.assign(at(top.back()), 0);
      panels_[at(p)].row_end.assign(at(top.back()), 0);
    }
  }

  void columns_of(int32_t p) {
    ColumnProblem problem;
    std::vector<int32_t> index(p_.boxes.size(), -1);
    for (int32_t b : panels_[at(p)].boxes) {
      index[at(b)] = static_cast<int32_t>(problem.items.size());
      problem.items.push_back({across_size(b), row_[at(b)], region_[at(b)]});
    }
    std::vector<size_t> arrows;
    for (size_t a = 0; a < p_.arrows.size(); ++a) {
      const Arrow& arrow = p_.arrows[a];
      if (!structural(arrow) || phase_[at(arrow.from)] != p) continue;
      problem.links.emplace_back(index[at(arrow.from)], index[at(arrow.to)]);
      arrows.push_back(a);
    }
    problem.gap = panels_[at(p)].rightwards ? 14 : 24;
    const Columns columns = find_columns(problem);
    for (int32_t b : panels_[at(p)].boxes) across_[at(b)] = columns.left[at(index[at(b)])];
    for (size_t i = 0; i < arrows.size(); ++i) passes_[arrows[i]] = columns.passes[i];
    (panels_[at(p)].rightwards ? panels_[at(p)].place.height : panels_[at(p)].place.width) =
        columns.width;
  }

  // --- Frames of regions -------------------------------------------------------------------------

  double label_width(int32_t frame) const {
    return text_width(clean_text(p_.frames[at(frame)].label), metrics::kNote, true) + 14;
  }

  // Grows a frame box by box, as long as nothing else gets into it.
  void find_pieces(int32_t p) {
    std::map<int32_t, std::vector<int32_t>> members;
    for (int32_t b : panels_[at(p)].boxes) {
      if (region_[at(b)] >= 0) members[region_[at(b)]].push_back(b);
    }
    for (auto& [frame, boxes] : members) {
      std::stable_sort(boxes.begin(), boxes.end(),
                       [&](int32_t a, int32_t b) { return row_[at(a)] < row_[at(b)]; });
      const size_t begin = pieces_.size();
      for (int32_t b : boxes) {
        const double left = across_[at(b)], right = left + place_[at(b)].width;
        bool taken = false;
        for (size_t i = begin; i < pieces_.size() && !taken; ++i) {
          Piece grown = pieces_[i];
          grown.boxes.push_back(b);
          grown.first = std::min(grown.first, row_[at(b)]);
          grown.last = std::max(grown.last, row_[at(b)]);
          grown.left = std::min(grown.left, left);
          grown.right = std::max(grown.right, right);
          if (grown.last - pieces_[i].last > 1 || !is_clean(grown)) continue;
          pieces_[i] = grown;
          taken = true;
        }
        if (!taken) pieces_.push_back({{b}, frame, p, row_[at(b)], row_[at(b)], left, right});
      }
    }
    for (Piece& piece : pieces_) {
      if (piece.panel != p) continue;
      const double missing =
          label_width(piece.frame) - (piece.right - piece.left) - 2 * kFrameMargin;
      Piece wide = piece;
      wide.right += std::max(missing, 0.0);
      if (missing > 0 && is_clean(wide)) piece = wide;
      panels_[at(p)].place.width = std::max(panels_[at(p)].place.width, piece.right);
    }
  }

  bool is_clean(const Piece& piece) const {
    return std::none_of(panels_[at(piece.panel)].boxes.begin(),
                        panels_[at(piece.panel)].boxes.end(), [&](int32_t b) {
                          if (region_[at(b)] == piece.frame) return false;
                          const double left = across_[at(b)], right = left + place_[at(b)].width;
                          return row_[at(b)] >= piece.first && row_[at(b)] <= piece.last &&
                                 right > piece.left - kFrameMargin &&
                                 left < piece.right + kFrameMargin;
                        });
  }

  // --- Rows to places ----------------------------------------------------------------------------

  std::pair<int32_t, int32_t> band_rows(int32_t id) const {
    std::pair<int32_t, int32_t> rows = {std::numeric_limits<int32_t>::max(), -1};
    for (size_t b = 0; b < layer_.size(); ++b) {
      if (layer_[b] != id || phase_[b] == kUpdate) continue;
      rows = {std::min(rows.first, row_[b]), std::max(rows.second, row_[b])};
    }
    return rows;
  }

  void space_rows(std::vector<int32_t> phases) {
    Panel& first = panels_[at(phases[0])];
    const size_t count = first.row_start.size();
    std::vector<double> size(count), before(count), after(count), slant(count);
    for (int32_t p : phases) {
      for (int32_t b : panels_[at(p)].boxes)
        size[at(row_[at(b)])] = std::max(size[at(row_[at(b)])], along_size(b));
    }
    if (phases[0] == kForward) {
      for (const Piece& piece : pieces_) {
        before[at(piece.first)] = std::max(before[at(piece.first)], kFrameLabel + 3);
        after[at(piece.last)] = std::max(after[at(piece.last)], kFrameMargin - 2);
      }
      for (int32_t id : layer_ids()) {
        const auto [top, bottom] = band_rows(id);
        if (bottom < 0) continue;
        before[at(top)] += kBandLabel + kBandMargin;
        after[at(bottom)] += kBandMargin + 4;
      }
    }
    for (size_t a = 0; a < p_.arrows.size(); ++a) add_slant(a, phases, slant);
    double along = 0;
    for (size_t r = 0; r < count; ++r) {
      const bool framed = r > 0 && before[r] + after[r - 1] > 0;
      const double gap = (framed ? kFramedGap : kRowGap) + std::min(kMostSlack, slant[r] / 14);
      along += before[r] + (r > 0 ? gap : 0);
      for (int32_t p : phases) panels_[at(p)].row_start[r] = along;
      along += size[r];
      for (int32_t p : phases) panels_[at(p)].row_end[r] = along;
      along += after[r];
    }
    for (int32_t p : phases) {
      Panel& panel = panels_[at(p)];
      (panel.rightwards ? panel.place.width : panel.place.height) =
          along + (panel.rightwards ? 10 * static_cast<double>(count) : 0);
      if (panel.rightwards) {
        for (size_t r = 0; r < count; ++r) {
          panel.row_start[r] += 10 * static_cast<double>(r);
          panel.row_end[r] += 10 * static_cast<double>(r);
        }
      }
    }
  }

  double middle(int32_t b) const { return across_[at(b)] + across_size(b) / 2; }

  // How far links run across in the gap above each row: they need room to bend.
  void add_slant(size_t a, const std::vector<int32_t>& phases, std::vector<double>& slant) const {
    const Arrow& arrow = p_.arrows[a];
    if (!structural(arrow) || phase_[at(arrow.from)] != phases[0]) {
      if (phases.size() < 2 || !structural(arrow) || phase_[at(arrow.from)] != phases[1]) return;
    }
    std::vector<double> xs = {middle(arrow.from)};
    if (const auto found = passes_.find(a); found != passes_.end()) {
      xs.insert(xs.end(), found->second.begin(), found->second.end());
    }
    xs.push_back(middle(arrow.to));
    const bool down = row_[at(arrow.from)] < row_[at(arrow.to)];
    int32_t row = row_[at(arrow.from)];
    for (size_t i = 1; i < xs.size(); ++i) {
      const int32_t below = down ? row + 1 : row;
      row += down ? 1 : -1;
      if (below >= 0 && at(below) < slant.size())
        slant[at(below)] = std::max(slant[at(below)], std::abs(xs[i] - xs[i - 1]));
    }
  }

  std::vector<int32_t> layer_ids() const {
    std::vector<int32_t> ids(layer_.begin(), layer_.end());
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    std::erase(ids, -1);
    return ids;
  }

  // Panels side by side; the update below them, or, when it is long, as a third one.
  void arrange() {
    double x = 0, height = 0;
    for (int32_t p : {kForward, kBackward, kUpdate}) {
      Panel& panel = panels_[at(p)];
      if (panel.boxes.empty() || panel.rightwards) continue;
      panel.place.x = x;
      panel.place.y = 0;
      panel.place.width += 2 * kPanelPadding + 2 * kFrameMargin;
      panel.place.height += kPanelLabel + kPanelPadding;
      x += panel.place.width + kPanelGap;
      height = std::max(height, panel.place.height);
    }
    out_.width = std::max(x - kPanelGap, 0.0);
    for (int32_t p : {kForward, kBackward}) panels_[at(p)].place.height = height;
    if (Panel& panel = panels_[kUpdate]; panel.rightwards && !panel.boxes.empty()) {
      panel.place.x = 0;
      panel.place.y = height > 0 ? height + 14 : 0;
      panel.place.width += 2 * kPanelPadding;
      out_.width = std::max(out_.width, panel.place.width);
      panel.place.width = out_.width;
      panel.place.height += kPanelLabel + kPanelPadding;
      height = panel.place.y + panel.place.height;
    }
    out_.height = height;
    out_.width = std::max(out_.width, kNarrowest * height);
    panels_[kUpdate].place.width =
        panels_[kUpdate].rightwards ? out_.width : panels_[kUpdate].place.width;
    widen();
  }

  // When the update is the widest, the other panels share what is left over.
  void widen() {
    std::vector<Panel*> side;
    double x = 0;
    for (int32_t p : {kForward, kBackward, kUpdate}) {
      if (!panels_[at(p)].boxes.empty() && !panels_[at(p)].rightwards)
        side.push_back(&panels_[at(p)]);
    }
    double used = kPanelGap * static_cast<double>(side.empty() ? 0 : side.size() - 1);
    for (const Panel* p : side) used += p->place.width;
    for (Panel* p : side) {
      p->place.x = x;
      const double more = std::max(0.0, out_.width - used) / static_cast<double>(side.size());
      p->place.width += more;
      shift_[p] = more / 2;
      x += p->place.width + kPanelGap;
    }
  }

  Point point(const Panel& panel, double across, double along) const {
    const auto shift = shift_.find(&panel);
    const double extra = shift == shift_.end() ? 0 : shift->second;
    if (panel.rightwards) {
      return {panel.place.x + kPanelPadding + along, panel.place.y + kPanelLabel + across};
    }
    return {panel.place.x + kPanelPadding + kFrameMargin + extra + across,
            panel.place.y + kPanelLabel + along};
  }

  void place_boxes() {
    for (const Panel& panel : panels_) {
      for (int32_t b : panel.boxes) {
        const size_t r = at(row_[at(b)]);
        along_[at(b)] = (panel.row_start[r] + panel.row_end[r] - along_size(b)) / 2;
        const Point corner = point(panel, across_[at(b)], along_[at(b)]);
        place_[at(b)].x = corner.x;
        place_[at(b)].y = corner.y;
      }
    }
    out_.boxes = place_;
  }

  void place_frames() {
    for (const Frame& f : p_.frames) {
      if (f.kind != Frame::Kind::kPhase) continue;
      const Panel& panel = panels_[at(f.id)];
      if (!panel.boxes.empty()) out_.frames.push_back({panel.place, f.kind, f.label});
    }
    for (int32_t id : layer_ids()) {
      const auto [top, bottom] = band_rows(id);
      if (bottom < 0) continue;
      const auto frame = std::find_if(
          p_.frames.begin(), p_.frames.end(),
          [&, id = id](const Frame& f) { return f.kind == Frame::Kind::kLayer && f.id == id; });
      const bool backward = !panels_[kBackward].boxes.empty();
      const Panel& left = panels_[kForward].boxes.empty() ? panels_[kBackward] : panels_[kForward];
      const Panel& right = backward ? panels_[kBackward] : left;
      const double y = left.place.y + kPanelLabel;
      const double y0 = y + left.row_start[at(top)] - band_before(top) - kBandLabel - 2;
      const double y1 = y + left.row_end[at(bottom)] + kBandMargin + band_after(bottom);
      out_.frames.push_back(
          {{left.place.x + 5, y0, right.place.x + right.place.width - left.place.x - 10, y1 - y0},
           frame->kind,
           frame->label});
    }
    for (const Piece& piece : pieces_) {
      const Panel& panel = panels_[at(piece.panel)];
      double y0 = std::numeric_limits<double>::max(), y1 = 0;
      for (int32_t b : piece.boxes) {
        y0 = std::min(y0, along_[at(b)]);
        y1 = std::max(y1, along_[at(b)] + along_size(b));
      }
      const Point a = point(panel, piece.left, y0), b = point(panel, piece.right, y1);
      out_.frames.push_back(
          {{a.x - kFrameMargin, a.y - kFrameLabel - 1, b.x - a.x + 2 * kFrameMargin,
            b.y - a.y + kFrameLabel + kFrameMargin - 1},
           Frame::Kind::kRegion,
           p_.frames[at(piece.frame)].label});
    }
  }

  double band_before(int32_t row) const {
    return std::any_of(pieces_.begin(), pieces_.end(),
                       [&](const Piece& p) { return p.first == row; })
               ? kFrameLabel + 3
               : 0;
  }
  double band_after(int32_t row) const {
    return std::any_of(pieces_.begin(), pieces_.end(),
                       [&](const Piece& p) { return p.last == row; })
               ? kFrameMargin - 2
               : 0;
  }

  // --- Arrows ------------------------------------------------------------------------------------

  // Where an arrow leaves or enters the side of a box, given all that use this side.
  double port(int32_t box, bool end_side, size_t arrow, bool head) {
    const auto key = std::pair(box, end_side);
    auto [entry, added] = ports_.try_emplace(key);
    if (added) {
      struct Want {
        double at;
        size_t arrow;
        bool head;
      };
      std::vector<Want> wants;
      for (size_t a = 0; a < p_.arrows.size(); ++a) {
        const Arrow& other = p_.arrows[a];
        if (!structural(other) || row_[at(other.from)] == row_[at(other.to)]) continue;
        const bool down = row_[at(other.from)] < row_[at(other.to)];
        if (other.from == box && down == end_side) wants.push_back({wish(a, false), a, false});
        if (other.to == box && down != end_side) wants.push_back({wish(a, true), a, true});
      }
      std::stable_sort(wants.begin(), wants.end(),
                       [](const Want& a, const Want& b) { return a.at < b.at; });
      const double low = across_[at(box)] + 10, high = across_[at(box)] + across_size(box) - 10;
      const double distance =
          wants.size() < 2
              ? 0
              : std::min(kPortDistance, (high - low) / static_cast<double>(wants.size() - 1));
      for (size_t i = 0; i < wants.size(); ++i) {
        wants[i].at = std::clamp(wants[i].at, low, high);
        if (i > 0) wants[i].at = std::max(wants[i].at, wants[i - 1].at + distance);
      }
      for (size_t i = wants.size(); i-- > 0;) {
        const double most = i + 1 == wants.size() ? high : wants[i + 1].at - distance;
        wants[i].at = std::min(wants[i].at, most);
        entry->second[{wants[i].arrow, wants[i].head}] = wants[i].at;
      }
    }
    return entry->second[{arrow, head}];
  }

  // The place that would make the arrow straight there.
  double wish(size_t a, bool head) const {
    const Arrow& arrow = p_.arrows[a];
    const auto found = passes_.find(a);
    if (found != passes_.end() && !found->second.empty()) {
      return head ? found->second.back() : found->second.front();
    }
    const double low = std::max(across_[at(arrow.from)], across_[at(arrow.to)]) + 10;
    const double high = std::min(across_[at(arrow.from)] + across_size(arrow.from),
                                 across_[at(arrow.to)] + across_size(arrow.to)) -
                        10;
    const int32_t narrow = across_size(arrow.from) < across_size(arrow.to) ? arrow.from : arrow.to;
    return low <= high ? std::clamp(middle(narrow), low, high)
                       : middle(head ? arrow.from : arrow.to);
  }

  void route(size_t a) {
    const Arrow& arrow = p_.arrows[a];
    PlacedArrow placed{{}, a};
    const Panel& panel = panels_[at(phase_[at(arrow.from)])];
    if (!structural(arrow) || row_[at(arrow.from)] == row_[at(arrow.to)]) {
      placed.points = sideways(arrow);
      out_.arrows.push_back(std::move(placed));
      return;
    }
    const bool down = row_[at(arrow.from)] < row_[at(arrow.to)];
    std::vector<double> xs = {port(arrow.from, down, a, false)};
    const auto& between = passes_[a];
    xs.insert(xs.end(), between.begin(), between.end());
    xs.push_back(port(arrow.to, !down, a, true));
    int32_t row = row_[at(arrow.from)];
    const auto edge = [&](int32_t r, bool end) {
      return end ? panel.row_end[at(r)] : panel.row_start[at(r)];
    };
    const auto box_edge = [&](int32_t b, bool end) {
      return along_[at(b)] + (end ? along_size(b) : 0);
    };
    std::vector<Point> points = {point(panel, xs[0], box_edge(arrow.from, down)),
                                 point(panel, xs[0], edge(row, down))};
    for (size_t i = 1; i < xs.size(); ++i) {
      const double from = edge(row, down);
      row += down ? 1 : -1;
      const double to = edge(row, !down), half = (from + to) / 2;
      points.push_back(point(panel, xs[i - 1], half));
      points.push_back(point(panel, xs[i], half));
      points.push_back(point(panel, xs[i], to));
      const bool last = i + 1 == xs.size();
      points.push_back(point(panel, xs[i], last ? box_edge(arrow.to, !down) : edge(row, down)));
    }
    placed.points = std::move(points);
    out_.arrows.push_back(std::move(placed));
  }

  // Between boxes that stand beside each other, or in different panels.
  std::vector<Point> sideways(const Arrow& arrow) const {
    const Place &a = place_[at(arrow.from)], &b = place_[at(arrow.to)];
    const double ya = a.y + a.height / 2, yb = b.y + b.height / 2;
    if (a.x + a.width <= b.x || b.x + b.width <= a.x) {
      const bool right = a.x < b.x;
      const Point from = {right ? a.x + a.width : a.x, ya}, to = {right ? b.x : b.x + b.width, yb};
      const double half = (from.x + to.x) / 2;
      return {from, from, {half, from.y}, {half, to.y}, to, to};
    }
    const bool down = a.y < b.y;
    const Point from = {a.x + a.width / 2, down ? a.y + a.height : a.y};
    const Point to = {b.x + b.width / 2, down ? b.y : b.y + b.height};
    const double half = (from.y + to.y) / 2;
    return {from, from, {from.x, half}, {to.x, half}, to, to};
  }

  const Picture& p_;
  Layout2d out_;
  std::vector<Place> place_;                     // by box
  std::vector<int32_t> phase_, layer_, region_;  // by box; -1: none
  std::vector<int32_t> row_;                     // by box
  std::vector<double> across_, along_;           // by box
  Panel panels_[3];
  std::vector<Piece> pieces_;
  std::map<size_t, std::vector<double>> passes_;  // by arrow
  std::map<std::pair<int32_t, bool>, std::map<std::pair<size_t, bool>, double>> ports_;
  std::map<const Panel*, double> shift_;
};

}  // namespace

Layout2d lay_out(const Picture& picture) { return PageMaker(picture).result(); }

}  // namespace cleave
