#include "viz/draw.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <set>

#include "graph/error.h"
#include "viz/annotations.h"
#include "viz/names.h"
#include "viz/units.h"

namespace cleave {
namespace {

std::string bytes_text(double bytes) {
  if (bytes >= 0.5 * 1073741824) return fmt::format("{:.2f} GiB", bytes / 1073741824);
  if (bytes >= 0.5 * 1048576) return fmt::format("{:.1f} MiB", bytes / 1048576);
  if (bytes >= 512) return fmt::format("{:.1f} KiB", bytes / 1024);
  return fmt::format("{:.0f} B", bytes);
}

size_t at(int32_t i) { return static_cast<size_t>(i); }

class Drawer {
 public:
  Drawer(const Graph& graph, const Plan* plan, ViewLevel level)
      : graph_(graph),
        plan_(plan),
        level_(level),
        notes_(plan != nullptr ? annotate(graph, *plan) : annotate(graph)),
        units_(find_units(graph, level)),
        last_forward_(find_last_forward()),
        total_(std::accumulate(units_.units.begin(), units_.units.end(), 0.0,
                               [](double sum, const Unit& u) { return sum + u.flops; })) {}

  Picture result() {
    p_.title = notes_.title;
    for (const auto& [text, colour] : notes_.legend) p_.legend.push_back({text, colour});
    for (const Unit& u : units_.units) box_of_unit_.push_back(add_unit_box(u));
    for (NodeId n = 0; n < static_cast<NodeId>(graph_.nodes().size()); ++n) connect_node(n);
    for (size_t o = 0; o < graph_.outputs().size(); ++o) connect_output(o);
    for (size_t i = 0; i < graph_.sources().size(); ++i) connect_final(i);
    label_hexagons();
    add_frames();
    add_anchors();
    return std::move(p_);
  }

 private:
  // --- Boxes -------------------------------------------------------------------------------------

  int32_t add_box(Box box) {
    p_.boxes.push_back(std::move(box));
    home_.push_back({});
    return static_cast<int32_t>(p_.boxes.size()) - 1;
  }

  std::string shape_text(Value v) const {
    std::string text = to_string(graph_.type(v));
    if (plan_ == nullptr || plan_->values[at(v)].empty()) return text;
    const Shape local = plan_->layout(v, 0).local_shape(plan_->mesh);
    return local == graph_.type(v).shape ? text : text + " → " + to_string(local);
  }

  // Names of the parameters that the unit reads, without what they share with its scope.
  std::string parameters_of(const Unit& u) const {
    std::vector<std::string> names;
    for (NodeId n : u.nodes) {
      for (Value v : graph_.node(n).inputs) {
        const Source* s = graph_.source_of(v);
        if (s == nullptr || s->kind != SourceKind::kParameter) continue;
        names.push_back(fmt::format("{} {}", last_part(s->name), to_string(graph_.type(v).shape)));
      }
    }
    return fmt::format("{}", fmt::join(names, ", "));
  }

  // The different ops of a unit that do work, in order, as many as fit.
  std::string ops_of(const Unit& u) const {
    std::string text;
    std::set<std::string_view> seen;
    for (NodeId n : u.nodes) {
      const OpDef& op = *graph_.node(n).op;
      if (op.view != nullptr || !seen.insert(op.name).second) continue;
      if (text.size() + op.name.size() > 44) return text + ", ...";
      text += fmt::format("{}{}", text.empty() ? "" : ", ", op.name);
    }
    return text;
  }

  int32_t add_unit_box(const Unit& u) {
    Box box;
    const NodeId first = u.nodes[0];
    if (u.phase == Phase::kUpdate && level_ != ViewLevel::kRaw) {
      box.lines = {"optimizer", fmt::format("{} ops", u.nodes.size())};
    } else if (level_ == ViewLevel::kModel) {
      const std::string ops = ops_of(u);
      box.lines = {u.name.empty() ? ops : u.name};
      if (!u.name.empty() && ops != u.name) box.lines.push_back(ops);
      if (u.flops >= 0.005 * total_) {
        box.lines.push_back(fmt::format("{:.0f} % of flops", 100 * u.flops / total_));
      }
    } else {
      const Node& node = graph_.node(first);
      const std::string& scope = graph_.scopes()[at(node.scope)];
      box.lines = {scope.empty() ? u.name : fmt::format("{}  {}", u.name, last_part(scope))};
      // What the box gives: of views put into it, the last.
      box.lines.push_back(shape_text(node.outputs[0]));
      if (const std::string names = parameters_of(u); !names.empty()) box.lines.push_back(names);
    }
    box.fills = fills_of(u);
    const int32_t b = add_box(std::move(box));
    home_[at(b)] = {u.phase, u.repeat, u.phase == Phase::kUpdate ? "" : region_of(u)};
    return b;
  }

  // For each mesh axis how most bytes of the results lie; of an op's box, its own first result.
  std::vector<std::string> fills_of(const Unit& u) const {
    std::vector<std::map<std::string, double>> weight;
    for (NodeId n : u.nodes) {
      for (Value v : graph_.node(n).outputs) {
        const auto& fills = notes_.fills_of_value[at(v)];
        weight.resize(std::max(weight.size(), fills.size()));
        for (size_t a = 0; a < fills.size(); ++a) {
          weight[a][fills[a]] +=
              static_cast<double>(numel(graph_.type(v).shape) * size_of(graph_.type(v).dtype));
        }
        if (level_ != ViewLevel::kModel && !fills.empty()) return fills;
      }
    }
    std::vector<std::string> result;
    for (const auto& w : weight) {
      const auto most = std::max_element(
          w.begin(), w.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
      result.push_back(most->first);
    }
    return result.empty() ? std::vector<std::string>{colours::kPlain} : result;
  }

  // The region of most of the unit's work.
  std::string region_of(const Unit& u) const {
    std::map<std::string, double> work;
    for (NodeId n : u.nodes) {
      const Node& node = graph_.node(n);
      work[notes_.region_of_node[at(n)]] +=
          1 + node.op->flops(Graph::call(node, graph_.input_types(node)));
    }
    return std::max_element(work.begin(), work.end(),
                            [](const auto& a, const auto& b) { return a.second < b.second; })
        ->first;
  }

  int32_t named_box(const std::string& key, Box::Kind kind, std::vector<std::string> lines,
                    Phase phase) {
    const auto [entry, added] = named_.emplace(key, 0);
    if (added) {
      entry->second = add_box({kind, std::move(lines), {}, -1});
      home_[at(entry->second)].phase = phase;
    }
    return entry->second;
  }

  // --- Arrows ------------------------------------------------------------------------------------

  void add_arrow(int32_t from, int32_t to, bool aside = false) {
    if (from == to || !arrows_.insert({from, to}).second) return;
    const auto phase = [&](int32_t b) { return home_[at(b)].phase; };
    const bool crossing = (phase(from) == Phase::kForward) != (phase(to) == Phase::kForward);
    Arrow arrow{from, to};
    arrow.upward = !crossing && phase(from) != Phase::kForward;
    arrow.aside = aside || crossing;
    p_.arrows.push_back(arrow);
    if (!crossing && !aside) joined_.emplace_back(from, to);
  }

  // The hexagon of a mark between two boxes; -1: there is none there.
  int32_t hexagon(const Mark& mark, int32_t from, int32_t to) {
    if (const auto seen = hexagon_of_.find(mark.identity); seen != hexagon_of_.end()) {
      return seen->second;
    }
    std::string key = mark.identity;
    if (mark.bundled) {
      key = "bundle " + mark.text;
    } else if (level_ == ViewLevel::kModel) {
      key = fmt::format("{} {} {} {}", mark.text, mark.bytes, from, from < 0 ? to : -1);
    }
    const auto [entry, added] = named_.emplace("mark " + key, 0);
    if (added) {
      entry->second = add_box({Box::Kind::kHexagon, {mark.text}, {mark.colour}, -1});
      Home& home = home_[at(entry->second)];
      home.phase = mark.bundled ? Phase::kUpdate : mark.phase;
      const int32_t beside = from >= 0 ? from : to;
      if (!mark.bundled && beside >= 0) home.repeat = home_[at(beside)].repeat;
    }
    hexagon_of_[mark.identity] = entry->second;
    Merged& merged = merged_[entry->second];
    merged.bundled = mark.bundled;
    merged.bytes += mark.bytes;
    ++merged.count;
    return entry->second;
  }

  // From a box (-1: from outside) through the marks to a box.
  void connect(int32_t from, int32_t to, const std::vector<Mark>& marks, bool aside) {
    int32_t last = from;
    for (const Mark& m : marks) {
      const int32_t h = hexagon(m, last, to);
      // A bundle takes in all gradients: at the coarsest level their arrows would be the picture.
      const bool gradient = last >= 0 && home_[at(last)].phase == Phase::kBackward;
      const bool hidden = m.bundled && level_ == ViewLevel::kModel && gradient;
      if (last >= 0 && !hidden) add_arrow(last, h, aside);
      if (m.bundled || home_[at(h)].phase == Phase::kUpdate) aside = false;
      last = h;
    }
    const bool saved = last >= 0 && to >= 0 && home_[at(last)].phase != home_[at(to)].phase;
    if (saved && !marks.empty() && level_ == ViewLevel::kModel && !marks.back().bundled) return;
    if (last >= 0 && to >= 0) add_arrow(last, to, aside);
  }

  // Where a value comes from: a unit's box, a source's, or the picture's edge. -1: not drawn.
  int32_t origin(Value v, NodeId reader) {
    const ValueInfo& info = graph_.value(v);
    if (info.producer != kNoNode) {
      const int32_t u = units_.of_node[at(info.producer)];
      if (u >= 0) return box_of_unit_[at(u)];
      const Phase phase = graph_.node(info.producer).phase;
      if (phase != graph_.node(reader).phase || phase == Phase::kUpdate) return -1;
      const int32_t ghost = named_box(fmt::format("from {}", v), Box::Kind::kGhost,
                                      {"from " + place_of(info.producer)}, phase);
      adopt(ghost, reader);
      return ghost;
    }
    const Source& s = graph_.sources()[at(info.source)];
    if (s.kind != SourceKind::kData && level_ != ViewLevel::kRaw) return -1;
    const Phase phase = graph_.node(reader).phase;
    if (level_ == ViewLevel::kModel && phase != Phase::kForward) return -1;
    // One box for each phase, so that data do not tie the phases together.
    return named_box(fmt::format("source {} {}", v, static_cast<int>(phase)), Box::Kind::kTensor,
                     {s.name, shape_text(v)}, phase);
  }

  // "add h.3"
  std::string place_of(NodeId n) const {
    const Node& node = graph_.node(n);
    const std::string& scope = graph_.scopes()[at(node.scope)];
    return fmt::format("{}{}{}", node.op->name, scope.empty() ? "" : " ", scope);
  }

  // A ghost stands in the frame of the first box that it is connected to.
  void adopt(int32_t ghost, NodeId n) {
    const int32_t u = units_.of_node[at(n)];
    if (u >= 0 && home_[at(ghost)].region.empty())
      home_[at(ghost)] = home_[at(box_of_unit_[at(u)])];
  }

  void connect_node(NodeId n) {
    const Node& node = graph_.node(n);
    const int32_t u = units_.of_node[at(n)];
    const int32_t to = u < 0 ? -1 : box_of_unit_[at(u)];
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      const Value v = node.inputs[i];
      const NodeId producer = graph_.value(v).producer;
      const std::vector<Mark>& marks = notes_.on_input[at(n)][i];
      if (to < 0) {
        leave(v, n, marks);
        continue;
      }
      const bool saved = producer != kNoNode && graph_.node(producer).phase != node.phase;
      if (saved && marks.empty() && !worth_an_arrow(producer, n)) continue;
      if (between_copies(producer, n)) {
        // The next copy is not drawn: what happens on the way is.
        if (!marks.empty()) connect(origin(v, n), -1, marks, false);
        continue;
      }
      connect(saved && level_ == ViewLevel::kModel && !marks.empty() && !marks[0].bundled
                  ? -1
                  : origin(v, n),
              to, marks, saved);
    }
    for (const Mark& m : notes_.inside[at(n)]) {
      if (to >= 0) both_ways(to, hexagon(m, to, to));
    }
  }

  void both_ways(int32_t box, int32_t hexagon_box) {
    if (!arrows_.insert({box, hexagon_box}).second) return;
    Arrow arrow{box, hexagon_box};
    arrow.both = true;
    p_.arrows.push_back(arrow);
    joined_.emplace_back(box, hexagon_box);
  }

  bool between_copies(NodeId producer, NodeId reader) const {
    if (level_ != ViewLevel::kModel || producer == kNoNode) return false;
    const Layer& a = units_.layer[at(producer)];
    const Layer& b = units_.layer[at(reader)];
    return a.repeat >= 0 && a.repeat == b.repeat && a.copy != b.copy &&
           graph_.node(reader).phase != Phase::kUpdate;
  }

  // Saved values are drawn in full where one can see them, and else only where the forward turns
  // into the backward.
  bool worth_an_arrow(NodeId producer, NodeId reader) const {
    if (graph_.node(reader).phase == Phase::kUpdate) return level_ != ViewLevel::kModel;
    if (level_ != ViewLevel::kModel) return true;
    return graph_.node(reader).follows == last_forward_ && producer == last_forward_;
  }

  // The last node of the forward that a node of the backward follows: the loss.
  NodeId find_last_forward() const {
    NodeId last = kNoNode;
    for (const Node& node : graph_.nodes()) {
      if (node.phase != Phase::kBackward || node.follows == kNoNode) continue;
      const bool saved = std::any_of(node.inputs.begin(), node.inputs.end(), [&](Value v) {
        return graph_.value(v).producer == node.follows;
      });
      if (saved) last = std::max(last, node.follows);
    }
    return last;
  }

  // A value of the picture that is read outside of it.
  void leave(Value v, NodeId reader, const std::vector<Mark>& marks) {
    const NodeId producer = graph_.value(v).producer;
    if (level_ != ViewLevel::kBlock || producer == kNoNode) return;
    const int32_t u = units_.of_node[at(producer)];
    const Phase phase = graph_.node(reader).phase;
    if (u < 0 || phase != graph_.node(producer).phase || phase == Phase::kUpdate) return;
    const int32_t ghost = named_box(fmt::format("to {}", v), Box::Kind::kGhost,
                                    {fmt::format("to {} {}", graph_.node(reader).op->name,
                                                 graph_.scopes()[at(graph_.node(reader).scope)])},
                                    phase);
    connect(box_of_unit_[at(u)], ghost, marks, false);
  }

  void connect_output(size_t o) {
    const Output& output = graph_.outputs()[o];
    const NodeId producer = graph_.value(output.value).producer;
    const int32_t u = producer == kNoNode ? -1 : units_.of_node[at(producer)];
    if (u < 0 || (u == units_.update && level_ == ViewLevel::kBlock)) return;
    const int32_t box = named_box("output " + output.name, Box::Kind::kTensor, {output.name},
                                  graph_.node(producer).phase);
    connect(box_of_unit_[at(u)], box, notes_.on_output[o], false);
  }

  // New weights that are moved to where the next step reads them.
  void connect_final(size_t i) {
    const NodeId producer = graph_.value(graph_.sources()[i].final).producer;
    const int32_t u = producer == kNoNode ? -1 : units_.of_node[at(producer)];
    if (u < 0 || notes_.on_final[i].empty()) return;
    const int32_t box =
        named_box("next step", Box::Kind::kTensor, {"weights", "of the next step"}, Phase::kUpdate);
    connect(box_of_unit_[at(u)], box, notes_.on_final[i], false);
  }

  // --- Frames ------------------------------------------------------------------------------------

  void label_hexagons() {
    for (const auto& [box, merged] : merged_) {
      const int64_t count = merged.count;
      std::vector<std::string>& lines = p_.boxes[at(box)].lines;
      if (merged.bundled) {
        lines.push_back(fmt::format("{}, {} tensors", bytes_text(merged.bytes), count));
      } else {
        lines.push_back(bytes_text(merged.bytes / static_cast<double>(count)) +
                        (count > 1 ? fmt::format(" x{}", count) : ""));
      }
    }
  }

  int32_t frame_for(const std::string& key, Frame frame) {
    const auto [entry, added] = frames_.emplace(key, static_cast<int32_t>(p_.frames.size()));
    if (added) p_.frames.push_back(std::move(frame));
    return entry->second;
  }

  // Phase, then repeated layer, then region: what is connected inside one of the former and split
  // alike.
  void add_frames() {
    const std::vector<int32_t> component = components();
    for (size_t b = 0; b < p_.boxes.size(); ++b) {
      const Home& home = home_[b];
      std::string key = fmt::format("{}", static_cast<int>(home.phase));
      int32_t frame = frame_for(key, {std::string(name_of(home.phase)), "#444444", false, -1});
      if (home.repeat >= 0) {
        key += fmt::format(" {}", home.repeat);
        frame = frame_for(
            key, {fmt::format("one of {} equal layers", units_.repeats[at(home.repeat)].count),
                  "#8a6d3b", false, frame});
      }
      if (!home.region.empty() && level_ != ViewLevel::kRaw) {
        key += fmt::format(" {} {}", home.region, component[b]);
        frame = frame_for(key, {home.region, "#1f5fa8", true, frame});
      }
      p_.boxes[b].frame = frame;
    }
  }

  // The forward begins at the top, and the backward ends there.
  void add_anchors() {
    int32_t first[3] = {-1, -1, -1};  // by phase
    for (size_t i = 0; i < units_.units.size(); ++i) {
      int32_t& box = first[static_cast<size_t>(units_.units[i].phase)];
      if (box < 0 || units_.units[i].phase == Phase::kBackward) box = box_of_unit_[i];
    }
    for (int32_t box : first) {
      if (box >= 0) p_.anchors.push_back(box);
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

  // Where a box stands.
  struct Home {
    Phase phase = Phase::kForward;
    int32_t repeat = -1;
    std::string region;
  };
  struct Merged {
    int64_t count = 0;
    double bytes = 0;
    bool bundled = false;
  };

  const Graph& graph_;
  const Plan* plan_;
  const ViewLevel level_;
  const Annotations notes_;
  const Units units_;
  const NodeId last_forward_;
  const double total_;  // flops
  Picture p_;
  std::vector<Home> home_;  // by box
  std::vector<int32_t> box_of_unit_;
  std::map<std::string, int32_t> named_;
  std::map<int32_t, Merged> merged_;           // by the hexagon's box
  std::map<std::string, int32_t> hexagon_of_;  // by a mark's identity
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
