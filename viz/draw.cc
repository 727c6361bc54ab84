#include "viz/draw.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "graph/error.h"
#include "graph/number_text.h"
#include "viz/annotations.h"
#include "viz/captions.h"
#include "viz/names.h"
#include "viz/units.h"

namespace cleave {
namespace {

// What of a unit's work may lie before or behind a synchronization without being drawn for itself.
constexpr double kLight = 0.05;

size_t at(int32_t i) { return static_cast<size_t>(i); }

class Drawer {
 public:
  Drawer(const Graph& graph, const Plan* plan, ViewLevel level)
      : graph_(graph),
        level_(level),
        notes_(plan != nullptr ? annotate(graph, *plan) : annotate(graph)),
        units_(find_units(graph, level)),
        captions_(graph, plan, notes_, units_, level) {}

  Picture result() {
    p_.title = notes_.title;
    p_.subtitle = notes_.subtitle;
    p_.legend = notes_.legend;
    find_parts();
    for (size_t u = 0; u < units_.units.size(); ++u) add_unit_box(static_cast<int32_t>(u));
    for (size_t u = 0; u < units_.units.size(); ++u) {
      const int32_t forward = units_.units[u].forward;
      if (forward >= 0) p_.boxes[at(box_of_unit_[u])].beside = box_of_unit_[at(forward)];
    }
    for (NodeId n = 0; n < static_cast<NodeId>(graph_.nodes().size()); ++n) connect_node(n);
    for (size_t o = 0; o < graph_.outputs().size(); ++o) connect_output(o);
    for (size_t i = 0; i < graph_.sources().size(); ++i) connect_final(i);
    label_hexagons();
    drop_lonely();
    add_frames();
    add_legend();
    return std::move(p_);
  }

 private:
  // --- Parts of units ----------------------------------------------------------------------------

  // Where a node stands in its unit: cheap ops before its first and behind its last synchronization
  // are not drawn; their arrows start or end at the hexagon.
  enum class Part : uint8_t { kMain, kBefore, kAfter };

  void find_parts() {
    const size_t size = graph_.nodes().size();
    part_.assign(size, Part::kMain);
    stand_in_.assign(size, -1);
    if (level_ == ViewLevel::kRaw) return;
    std::vector<int32_t> depth(size);  // synchronizations inside the unit that come before
    std::map<std::pair<int32_t, int32_t>, double> work;
    for (size_t n = 0; n < size; ++n) {
      const Node& node = graph_.nodes()[n];
      for (size_t i = 0; i < node.inputs.size(); ++i) {
        const NodeId producer = graph_.value(node.inputs[i]).producer;
        if (!same_unit(producer, static_cast<NodeId>(n))) continue;
        const bool meet = !notes_.on_input[n][i].empty() && !captions_.of_weights(node.inputs[i]);
        depth[n] = std::max(depth[n], depth[at(producer)] + (meet ? 1 : 0));
      }
      work[{units_.of_node[n], depth[n]}] +=
          node.op->flops(Graph::call(node, graph_.input_types(node)));
    }
    std::map<int32_t, std::pair<int32_t, int32_t>> heavy;  // by unit: first and last depth
    std::map<int32_t, double> most;
    for (const auto& [key, flops] : work) most[key.first] = std::max(most[key.first], flops);
    for (const auto& [key, flops] : work) {
      if (flops < kLight * most[key.first]) continue;
      const auto [entry, added] = heavy.emplace(key.first, std::pair(key.second, key.second));
      if (!added) entry->second.second = key.second;
    }
    for (size_t n = 0; n < size; ++n) {
      const int32_t u = units_.of_node[n];
      if (u < 0 || u == units_.update) continue;
      const auto [first, last] = heavy.at(u);
      part_[n] = depth[n] < first ? Part::kBefore : depth[n] > last ? Part::kAfter : Part::kMain;
    }
  }

  bool same_unit(NodeId a, NodeId b) const {
    return a != kNoNode && b != kNoNode && units_.of_node[at(a)] >= 0 &&
           units_.of_node[at(a)] == units_.of_node[at(b)] &&
           units_.layer[at(a)] == units_.layer[at(b)];
  }

  // --- Boxes -------------------------------------------------------------------------------------

  int32_t add_box(Box box) {
    p_.boxes.push_back(std::move(box));
    home_.push_back({});
    return static_cast<int32_t>(p_.boxes.size()) - 1;
  }

  void add_unit_box(int32_t i) {
    const GraphUnit& u = units_.units[at(i)];
    std::vector<NodeId> main;
    for (NodeId n : u.nodes) {
      if (part_[at(n)] == Part::kMain) main.push_back(n);
    }
    const bool whole_update = u.phase == Phase::kUpdate && level_ != ViewLevel::kRaw;
    const int32_t b = add_box(whole_update ? captions_.update_box(u) : captions_.box_of(i, main));
    home_[at(b)] = {u.phase, u.repeat, u.phase == Phase::kUpdate ? "" : region_of(u, main)};
    box_of_unit_.push_back(b);
  }

  // The region of most of the work.
  std::string region_of(const GraphUnit& u, const std::vector<NodeId>& main) const {
    std::map<std::string, double> work;
    for (NodeId n : main.empty() ? u.nodes : main) {
      const Node& node = graph_.node(n);
      work[notes_.region_of_node[at(n)]] +=
          1 + node.op->flops(Graph::call(node, graph_.input_types(node)));
    }
    return std::max_element(work.begin(), work.end(),
                            [](const auto& a, const auto& b) { return a.second < b.second; })
        ->first;
  }

  int32_t named_box(const std::string& key, Box box, Phase phase) {
    const auto [entry, added] = named_.emplace(key, 0);
    if (added) {
      entry->second = add_box(std::move(box));
      home_[at(entry->second)].phase = phase;
    }
    return entry->second;
  }

  static Box plain(Box::Kind kind, std::string title) {
    Box box;
    box.kind = kind;
    box.title = std::move(title);
    return box;
  }

  int32_t all_gradients() {
    return named_box("gradients", plain(Box::Kind::kTensor, "all gradients"), Phase::kUpdate);
  }
  int32_t next_weights() {
    return named_box("next step", plain(Box::Kind::kTensor, "next step's weights"), Phase::kUpdate);
  }

  // --- Arrows ------------------------------------------------------------------------------------

  Phase phase_of(int32_t box) const { return home_[at(box)].phase; }

  void add_arrow(int32_t from, int32_t to, bool aside = false) {
    const bool crossing = phase_of(from) != phase_of(to);
    if (crossing && level_ != ViewLevel::kRaw) {
      // Of what passes between the phases only what is saved, and whatever goes to the update.
      if (phase_of(from) == Phase::kUpdate) to = next_weights();
      if (phase_of(to) == Phase::kUpdate && phase_of(from) == Phase::kBackward)
        from = all_gradients();
      if (phase_of(to) == Phase::kUpdate && phase_of(from) == Phase::kForward) return;
    }
    if (from == to || !arrows_.insert({from, to}).second) return;
    Arrow arrow{from, to};
    arrow.aside = phase_of(from) != phase_of(to) || (aside && !crossing);
    arrow.upward = phase_of(from) == Phase::kBackward && phase_of(to) == Phase::kBackward;
    p_.arrows.push_back(arrow);
    if (!arrow.aside) joined_.emplace_back(from, to);
  }

  // The hexagon of a mark between two boxes; -1: there is none there.
  int32_t hexagon(const Mark& mark, int32_t from, int32_t to) {
    if (const auto seen = hexagon_of_.find(mark.identity); seen != hexagon_of_.end()) {
      return seen->second;
    }
    std::string key = mark.identity;
    if (mark.bundled) {
      key = "bundle " + mark.text + (mark.phase == Phase::kForward ? " forward" : "");
    } else if (level_ != ViewLevel::kRaw && from < 0) {
      key = fmt::format("{} to {}", mark.text, to);  // weights of one unit: all together
    } else if (level_ == ViewLevel::kModel) {
      key = fmt::format("{} {} {}", mark.text, mark.bytes, from);
    }
    const auto [entry, added] = named_.emplace("mark " + key, 0);
    if (added) {
      Box box = plain(Box::Kind::kHexagon, mark.text);
      box.colour = mark.colour;
      entry->second = add_box(std::move(box));
      Home& home = home_[at(entry->second)];
      home.phase = mark.bundled && mark.phase != Phase::kForward ? Phase::kUpdate : mark.phase;
      const int32_t beside = from >= 0 ? from : to;
      if (!mark.bundled && beside >= 0) home.repeat = home_[at(beside)].repeat;
    }
    hexagon_of_[mark.identity] = entry->second;
    Merged& merged = merged_[entry->second];
    merged.bundled = mark.bundled;
    merged.bytes += mark.bytes;
    merged.sizes.insert(mark.bytes);
    ++merged.count;
    return entry->second;
  }

  // From a box (-1: from outside) through the marks to a box. Returns the last hexagon, -1: none.
  int32_t connect(int32_t from, int32_t to, const std::vector<Mark>& marks, bool aside) {
    int32_t last = from, hex = -1;
    for (const Mark& m : marks) {
      hex = hexagon(m, last, to);
      if (last >= 0) add_arrow(last, hex, aside);
      if (phase_of(hex) == Phase::kUpdate) aside = false;
      last = hex;
    }
    const bool saved = last >= 0 && to >= 0 && phase_of(last) != phase_of(to);
    const bool hidden =
        saved && level_ == ViewLevel::kModel && !marks.empty() && !marks.back().bundled;
    if (last >= 0 && to >= 0 && !hidden) add_arrow(last, to, aside);
    return hex;
  }

  // The box, or the hexagon, that stands for a node that makes or reads a value.
  int32_t standing_for(NodeId n) {
    const int32_t u = units_.of_node[at(n)];
    if (u < 0) return -1;
    if (part_[at(n)] == Part::kBefore && stand_in_[at(n)] < 0) {
      stand_in_[at(n)] = box_of_unit_[at(u)];
      find_stand_in_before(n);
    }
    return stand_in_[at(n)] >= 0 ? stand_in_[at(n)] : box_of_unit_[at(u)];
  }

  // The hexagon that a node's results go through on their way to the main part of its unit.
  void find_stand_in_before(NodeId n) {
    for (NodeId r = n + 1; r < static_cast<NodeId>(graph_.nodes().size()); ++r) {
      if (!same_unit(n, r)) continue;
      const Node& reader = graph_.node(r);
      for (size_t i = 0; i < reader.inputs.size(); ++i) {
        if (graph_.value(reader.inputs[i]).producer != n) continue;
        const auto& marks = notes_.on_input[at(r)][i];
        if (marks.empty() && part_[at(r)] != Part::kBefore) continue;
        stand_in_[at(n)] = marks.empty()
                               ? standing_for(r)
                               : hexagon(marks[0], -1, box_of_unit_[at(units_.of_node[at(n)])]);
        return;
      }
    }
  }

  // Where a value comes from: a unit's box, a source's, or the picture's edge. -1: not drawn.
  int32_t origin(Value v, NodeId reader) {
    const ValueInfo& info = graph_.value(v);
    if (info.producer != kNoNode) {
      if (const int32_t box = standing_for(info.producer); box >= 0) return box;
      const Phase phase = graph_.node(info.producer).phase;
      if (phase != graph_.node(reader).phase || phase == Phase::kUpdate) return -1;
      const int32_t ghost =
          named_box(fmt::format("from {}", v),
                    plain(Box::Kind::kGhost, "from " + place_of(info.producer)), phase);
      adopt(ghost, reader);
      return ghost;
    }
    const Source& s = graph_.sources()[at(info.source)];
    const Phase phase = graph_.node(reader).phase;
    if (s.kind != SourceKind::kData && level_ != ViewLevel::kRaw) return -1;
    if (level_ != ViewLevel::kRaw && phase != Phase::kForward) return -1;
    Box box = plain(Box::Kind::kTensor, s.name);
    ValueLine line = captions_.line("", v);
    line.text.erase(0, 1);
    box.values = {std::move(line)};
    // One box for each phase, so that sources do not tie the phases together.
    return named_box(fmt::format("source {} {}", v, static_cast<int>(phase)), std::move(box),
                     phase);
  }

  // "add h.3"
  std::string place_of(NodeId n) const {
    const Node& node = graph_.node(n);
    const std::string& scope = graph_.scopes()[at(node.scope)];
    return fmt::format("{}{}{}", node.op->name, scope.empty() ? "" : " ", scope);
  }

  // A ghost stands in the frame of the first box that it is connected to.
  void adopt(int32_t ghost, NodeId n) {
    if (const int32_t box = standing_for(n); box >= 0) home_[at(ghost)] = home_[at(box)];
    home_[at(ghost)].region.clear();
  }

  void connect_node(NodeId n) {
    const Node& node = graph_.node(n);
    const int32_t u = units_.of_node[at(n)];
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      const Value v = node.inputs[i];
      const NodeId producer = graph_.value(v).producer;
      const std::vector<Mark>& marks = notes_.on_input[at(n)][i];
      if (u < 0) {
        leave(v, n, marks);
      } else if (same_unit(producer, n) && u != units_.update) {
        connect_inside(v, n, marks);
      } else if (producer != kNoNode && u == units_.update && units_.of_node[at(producer)] == u) {
        for (const Mark& m : marks) add_line(box_of_unit_[at(u)], m, "");
      } else {
        connect_input(v, n, marks);
      }
    }
    for (const Mark& m : notes_.inside[at(n)]) {
      if (u >= 0) add_line(box_of_unit_[at(u)], m, "");
    }
  }

  // A value that stays in its unit.
  void connect_inside(Value v, NodeId n, const std::vector<Mark>& marks) {
    if (captions_.of_weights(v)) return connect_weights(v, n, marks);
    const NodeId producer = graph_.value(v).producer;
    const int32_t box = box_of_unit_[at(units_.of_node[at(n)])];
    const Part from = part_[at(producer)], to = part_[at(n)];
    if (to == Part::kAfter) {
      const int32_t hex =
          connect(from == Part::kAfter ? standing_for(producer) : box, -1, marks, false);
      const int32_t known = hex >= 0 ? hex : from == Part::kAfter ? stand_in_[at(producer)] : -1;
      if (known >= 0) stand_in_[at(n)] = known;
    } else if (from == Part::kBefore) {
      if (!marks.empty()) connect(-1, to == Part::kBefore ? standing_for(n) : box, marks, false);
    } else {
      for (const Mark& m : marks) add_line(box, m, "");
    }
  }

  void connect_input(Value v, NodeId n, const std::vector<Mark>& marks) {
    const NodeId producer = graph_.value(v).producer;
    const Phase phase = graph_.node(n).phase;
    const bool saved = producer != kNoNode && graph_.node(producer).phase != phase;
    const int32_t to = standing_for(n);
    if (saved && marks.empty() && !worth_an_arrow(producer, n)) return;
    if (level_ != ViewLevel::kRaw && captions_.of_weights(v)) return connect_weights(v, n, marks);
    if (between_copies(producer, n)) {
      // The next copy is not drawn: what happens on the way is.
      if (!marks.empty()) connect(origin(v, n), -1, marks, false);
      return;
    }
    const bool from_outside =
        saved && level_ == ViewLevel::kModel && !marks.empty() && !marks[0].bundled;
    connect(from_outside ? -1 : origin(v, n), to, marks, saved);
  }

  // Parameters on their way to the ops that read them, and gradients on their way to the update.
  void connect_weights(Value v, NodeId n, const std::vector<Mark>& marks) {
    const NodeId producer = graph_.value(v).producer;
    const bool gradient = producer != kNoNode && graph_.node(producer).phase == Phase::kBackward;
    const int32_t box = box_of_unit_[at(units_.of_node[at(gradient ? producer : n)])];
    if (units_.of_node[at(gradient ? producer : n)] < 0) return;
    std::vector<Mark> bundled;
    for (const Mark& m : marks) {
      if (m.bundled && gradient) {
        bundled.push_back(m);
      } else {
        add_line(box, m, gradient ? ", gradients" : ", weights");
      }
    }
    if (gradient && graph_.node(n).phase == Phase::kUpdate) {
      connect(all_gradients(), box_of_unit_[at(units_.update)], bundled, false);
    }
  }

  // A synchronization that is a line of a box: inside an op, or of parameters and their gradients.
  void add_line(int32_t box, const Mark& mark, const char* of) {
    if (!lined_.insert(mark.identity).second) return;
    Merged& m = lines_[{box, mark.text + of}];
    m.colour = mark.colour;
    m.bytes += mark.bytes;
    m.sizes.insert(mark.bytes);
    ++m.count;
  }

  bool between_copies(NodeId producer, NodeId reader) const {
    if (level_ != ViewLevel::kModel || producer == kNoNode) return false;
    const Layer& a = units_.layer[at(producer)];
    const Layer& b = units_.layer[at(reader)];
    return a.repeat >= 0 && a.repeat == b.repeat && a.copy != b.copy &&
           graph_.node(reader).phase != Phase::kUpdate;
  }

  // Saved values are drawn in full where one can see them, and else only from an op to its own
  // gradient.
  bool worth_an_arrow(NodeId producer, NodeId reader) const {
    if (level_ == ViewLevel::kRaw) return true;
    if (graph_.node(reader).phase == Phase::kUpdate)
      return graph_.node(producer).phase == Phase::kBackward;
    const int32_t from = units_.of_node[at(producer)], to = units_.of_node[at(reader)];
    if (from < 0 || to < 0) return false;
    return units_.units[at(to)].forward == from;
  }

  // A value of the picture that is read outside of it.
  void leave(Value v, NodeId reader, const std::vector<Mark>& marks) {
    const NodeId producer = graph_.value(v).producer;
    if (level_ != ViewLevel::kBlock || producer == kNoNode) return;
    const int32_t from = standing_for(producer);
    const Phase phase = graph_.node(reader).phase;
    if (from < 0 || phase != graph_.node(producer).phase || phase == Phase::kUpdate) return;
    const int32_t ghost = named_box(fmt::format("to {}", v),
                                    plain(Box::Kind::kGhost, "to " + place_of(reader)), phase);
    connect(from, ghost, marks, false);
  }

  void connect_output(size_t o) {
    const Output& output = graph_.outputs()[o];
    const NodeId producer = graph_.value(output.value).producer;
    const int32_t u = producer == kNoNode ? -1 : units_.of_node[at(producer)];
    if (u < 0 || (u == units_.update && level_ != ViewLevel::kRaw)) return;
    const int32_t box = named_box("output " + output.name, plain(Box::Kind::kTensor, output.name),
                                  graph_.node(producer).phase);
    connect(standing_for(producer), box, notes_.on_output[o], false);
  }

  // New weights that are moved to where the next step reads them.
  void connect_final(size_t i) {
    const NodeId producer = graph_.value(graph_.sources()[i].final).producer;
    const int32_t u = producer == kNoNode ? -1 : units_.of_node[at(producer)];
    if (u < 0 || notes_.on_final[i].empty()) return;
    connect(box_of_unit_[at(u)], next_weights(), notes_.on_final[i], false);
  }

  // --- Frames ------------------------------------------------------------------------------------

  static std::string amount(int64_t count, double bytes, const std::set<double>& sizes,
                            bool bundled) {
    if (count == 1) return bytes_text(bytes);
    if (bundled || sizes.size() > 1) return fmt::format("{}, {} tensors", bytes_text(bytes), count);
    return fmt::format("{} × {}", bytes_text(*sizes.begin()), count);
  }

  void label_hexagons() {
    for (const auto& [box, m] : merged_) {
      p_.boxes[at(box)].notes.push_back(amount(m.count, m.bytes, m.sizes, m.bundled));
    }
    for (const auto& [key, m] : lines_) {
      const std::string text = key.second + "  " + amount(m.count, m.bytes, m.sizes, false);
      p_.boxes[at(key.first)].values.push_back({text, {m.colour}, true});
    }
  }

  // Boxes of ops on weights and their gradients alone, to which no arrow was drawn.
  void drop_lonely() {
    if (level_ == ViewLevel::kRaw) return;
    std::vector<bool> linked(p_.boxes.size());
    for (const Arrow& a : p_.arrows) linked[at(a.from)] = linked[at(a.to)] = true;
    for (const GraphUnit& u : units_.units) {
      const bool weights = std::all_of(u.nodes.begin(), u.nodes.end(), [&](NodeId n) {
        const auto& inputs = graph_.node(n).inputs;
        return !inputs.empty() && std::all_of(inputs.begin(), inputs.end(),
                                              [&](Value v) { return captions_.of_weights(v); });
      });
      const auto box = at(box_of_unit_[static_cast<size_t>(&u - units_.units.data())]);
      if (!weights || u.phase == Phase::kUpdate) linked[box] = true;
    }
    for (size_t b = 0; b < linked.size(); ++b)
      linked[b] = linked[b] || p_.boxes[b].kind != Box::Kind::kOp;
    std::vector<int32_t> moved(p_.boxes.size(), -1);
    std::vector<Box> kept;
    std::vector<Home> homes;
    for (size_t b = 0; b < p_.boxes.size(); ++b) {
      if (!linked[b]) continue;
      moved[b] = static_cast<int32_t>(kept.size());
      kept.push_back(std::move(p_.boxes[b]));
      homes.push_back(std::move(home_[b]));
    }
    p_.boxes = std::move(kept);
    home_ = std::move(homes);
    for (Box& b : p_.boxes) b.beside = b.beside < 0 ? -1 : moved[at(b.beside)];
    for (Arrow& a : p_.arrows) a.from = moved[at(a.from)], a.to = moved[at(a.to)];
    for (auto& [a, b] : joined_) a = moved[at(a)], b = moved[at(b)];
  }

  int32_t frame_for(const std::string& key, Frame frame) {
    const auto [entry, added] = frames_.emplace(key, static_cast<int32_t>(p_.frames.size()));
    if (added) p_.frames.push_back(std::move(frame));
    return entry->second;
  }

  std::string label_of(Phase phase) const {
    const int32_t count = level_ == ViewLevel::kBlock ? block_copies() : 1;
    const std::string which = count > 1 ? fmt::format(" of one of {} equal layers", count) : "";
    switch (phase) {
      case Phase::kForward: return "Forward ↓" + which;
      case Phase::kBackward: return "Backward ↑" + which;
      case Phase::kUpdate: break;
    }
    return level_ == ViewLevel::kRaw ? "Update" : "Update →";
  }

  int32_t block_copies() const {
    int32_t copies = 1;
    for (size_t n = 0; n < units_.of_node.size(); ++n) {
      const Layer& l = units_.layer[n];
      if (units_.of_node[n] >= 0 && l.repeat >= 0)
        copies = std::max(copies, units_.repeats[at(l.repeat)].count);
    }
    return copies;
  }

  // Phase, then repeated layer, then region: what is connected inside one of the former and split
  // alike.
  void add_frames() {
    const std::vector<int32_t> component = components();
    for (size_t b = 0; b < p_.boxes.size(); ++b) {
      const Home& home = home_[b];
      std::string key = fmt::format("{}", static_cast<int>(home.phase));
      int32_t frame = frame_for(
          key, {Frame::Kind::kPhase, label_of(home.phase), static_cast<int32_t>(home.phase), -1});
      if (home.repeat >= 0 && home.phase != Phase::kUpdate) {
        key += fmt::format(" {}", home.repeat);
        frame =
            frame_for(key, {Frame::Kind::kLayer,
                            fmt::format("× {} equal layers", units_.repeats[at(home.repeat)].count),
                            home.repeat, frame});
      }
      if (!home.region.empty() && level_ != ViewLevel::kRaw) {
        key += fmt::format(" {} {}", home.region, component[b]);
        frame = frame_for(key, {Frame::Kind::kRegion, home.region, 0, frame});
      }
      p_.boxes[b].frame = frame;
    }
  }

  std::vector<int32_t> components() const {
    std::vector<int32_t> root(p_.boxes.size());
    std::iota(root.begin(), root.end(), 0);
    const auto find = [&](int32_t b) {
      while (root[at(b)] != b) b = root[at(b)] = root[at(root[at(b)])];
      return b;
    };
    for (const auto& [a, b] : joined_) {
      const Home &x = home_[at(a)], &y = home_[at(b)];
      if (x.region == y.region && x.repeat == y.repeat && x.phase == y.phase) {
        root[at(find(a))] = find(b);
      }
    }
    std::vector<int32_t> result;
    for (int32_t b = 0; b < static_cast<int32_t>(root.size()); ++b) result.push_back(find(b));
    return result;
  }

  void add_legend() {
    using Sign = LegendEntry::Sign;
    if (std::any_of(p_.arrows.begin(), p_.arrows.end(), [](const Arrow& a) { return a.aside; })) {
      p_.legend.push_back({Sign::kSaved, "kept for the backward"});
    }
    p_.legend.push_back({Sign::kTensor, "data, results"});
  }

  // Where a box stands.
  struct Home {
    Phase phase = Phase::kForward;
    int32_t repeat = -1;
    std::string region;
  };
  struct Merged {
    int64_t count = 0;
    double bytes = 0;
    std::set<double> sizes;
    bool bundled = false;
    std::string colour = {};
  };

  const Graph& graph_;
  const ViewLevel level_;
  const Annotations notes_;
  const Units units_;
  const Captions captions_;
  Picture p_;
  std::vector<Part> part_;         // by node
  std::vector<int32_t> stand_in_;  // by node: the hexagon that stands for it; -1: none
  std::vector<Home> home_;         // by box
  std::vector<int32_t> box_of_unit_;
  std::map<std::string, int32_t> named_;
  std::map<int32_t, Merged> merged_;                         // by the hexagon's box
  std::map<std::pair<int32_t, std::string>, Merged> lines_;  // by box, text
  std::set<std::string> lined_;                              // identities of marks in lines_
  std::map<std::string, int32_t> hexagon_of_;                // by a mark's identity
  std::set<std::pair<int32_t, int32_t>> arrows_;
  std::vector<std::pair<int32_t, int32_t>> joined_;  // boxes with an arrow that counts
  std::map<std::string, int32_t> frames_;
};

}  // namespace

ViewLevel view_level_named(std::string_view name) {
  if (name == "model") return ViewLevel::kModel;
  if (name == "block") return ViewLevel::kBlock;
  if (name == "raw") return ViewLevel::kRaw;
  fail("there is no level '{}'; write model, block or raw", name);
}

Picture draw(const Graph& graph, ViewLevel level) { return Drawer(graph, nullptr, level).result(); }

Picture draw(const Graph& graph, const Plan& plan, ViewLevel level) {
  return Drawer(graph, &plan, level).result();
}

}  // namespace cleave
