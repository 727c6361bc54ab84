// Which ops and values of a graph the patterns of pins name.
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "graph/error.h"
#include "planner/pins.h"

namespace cleave {
namespace {

// The prefix of a scoped name that a pattern has matched ends at a dot or at the name's end; its
// length, or npos. The longest one, so that "h.*" stops at "h.3".
size_t matched_prefix(std::string_view pattern, std::string_view name) {
  for (size_t end = 0; end <= name.size(); ++end) {
    if (end < name.size() && name[end] != '.') continue;
    if (matches(pattern, name.substr(0, end))) return end;
  }
  return std::string_view::npos;
}

std::string_view without_last_part(std::string_view name) {
  const size_t dot = name.rfind('.');
  return dot == std::string_view::npos ? std::string_view() : name.substr(0, dot);
}

// The kinds of source that have a placement of their own to keep.
bool is_kept(const Source& s) {
  return s.kind == SourceKind::kParameter || s.kind == SourceKind::kState;
}

void check_dimension(const PlacementPin& pin, const Graph& graph, Value v,
                     const std::string& name) {
  const auto rank = std::ssize(graph.type(v).shape);
  if (pin.kind != Placement::Kind::kShard || pin.dim < rank) return;
  fail("--pin '{}': {} has {} dimension{}, counted from 0", pin.text, name, rank,
       rank == 1 ? "" : "s");
}

}  // namespace

bool contradict(const PlacementPin& a, const PlacementPin& b) {
  return a.kind != b.kind || a.dim != b.dim || (a.part >= 0 && b.part >= 0 && a.part != b.part);
}

bool matches(std::string_view pattern, std::string_view name, bool inside) {
  if (inside) return matched_prefix(pattern, name) != std::string_view::npos;
  if (pattern.empty()) return name.empty();
  if (pattern[0] != '*') {
    return !name.empty() && pattern[0] == name[0] && matches(pattern.substr(1), name.substr(1));
  }
  const bool dots = pattern.starts_with("**");
  const std::string_view rest = pattern.substr(dots ? 2 : 1);
  for (size_t n = 0;; ++n) {
    if (matches(rest, name.substr(n))) return true;
    if (n == name.size() || (!dots && name[n] == '.')) return false;
  }
}

std::string pin_name(const Graph& graph, NodeId node) {
  const Node& n = graph.node(node);
  const std::string& scope = graph.scopes()[static_cast<size_t>(n.scope)];
  return scope.empty() ? std::string(n.op->name) : fmt::format("{}.{}", scope, n.op->name);
}

NodePins node_pins(const Pins& pins, const Graph& graph) {
  const size_t count = graph.nodes().size();
  NodePins result{std::vector<int8_t>(count, -1), std::vector<int32_t>(count, -1), {}};
  if (pins.nodes.empty()) return result;
  std::vector<std::string> names(count);
  for (size_t n = 0; n < count; ++n) names[n] = pin_name(graph, static_cast<NodeId>(n));
  std::set<NodeId> cuts;
  // By node: the pin that says whether it is computed again, and the one that says its stage.
  std::vector<const NodePin*> remade_by(count, nullptr), staged_by(count, nullptr);
  const auto claim = [&](std::vector<const NodePin*>& by, const NodePin& pin, size_t n) {
    const NodePin* other = std::exchange(by[n], &pin);
    if (other == nullptr || (other->kind == pin.kind && other->stage == pin.stage)) return;
    fail("--pin '{}' and '{}' contradict each other: both are about {}", other->text, pin.text,
         names[n]);
  };
  for (const NodePin& pin : pins.nodes) {
    bool found = false;
    std::set<std::string> begun;  // of a cut: what it has named so far
    for (size_t n = 0; n < count; ++n) {
      if (graph.nodes()[n].phase != Phase::kForward) continue;
      const size_t prefix = matched_prefix(pin.pattern, names[n]);
      if (prefix == std::string::npos) continue;
      found = true;
      switch (pin.kind) {
        case NodePin::Kind::kRemake:
        case NodePin::Kind::kKeep:
          claim(remade_by, pin, n);
          result.remade[n] = pin.kind == NodePin::Kind::kRemake ? 1 : 0;
          break;
        case NodePin::Kind::kStage:
          claim(staged_by, pin, n);
          result.stage_of[n] = pin.stage;
          break;
        case NodePin::Kind::kCut:
          if (begun.insert(names[n].substr(0, prefix)).second) cuts.insert(static_cast<NodeId>(n));
          break;
      }
    }
    if (!found) fail("--pin '{}': no op of the forward is called {}", pin.text, pin.pattern);
  }
  result.cuts.assign(cuts.begin(), cuts.end());
  return result;
}

std::vector<ValuePin> value_pins(const Pins& pins, const Graph& graph) {
  std::vector<ValuePin> result;
  std::map<std::pair<Value, std::string_view>, const PlacementPin*> pinned;  // by value, axis
  for (const PlacementPin& pin : pins.placements) {
    const size_t before = result.size();
    const auto add = [&](Value v) {
      const PlacementPin*& other = pinned[{v, pin.axis}];
      if (other != nullptr && contradict(*other, pin)) {
        const Source* s = graph.source_of(v);
        fail("--pin '{}' and '{}' contradict each other: both are about {}", other->text, pin.text,
             s != nullptr ? s->name : pin_name(graph, graph.value(v).producer));
      }
      other = &pin;
      result.push_back({&pin, v});
    };
    for (const Source& s : graph.sources()) {
      if (!is_kept(s) || !matches(pin.pattern, s.name)) continue;
      check_dimension(pin, graph, s.value, s.name);
      add(s.value);
    }
    if (result.size() == before) {
      for (size_t n = 0; n < graph.nodes().size(); ++n) {
        const std::string name = pin_name(graph, static_cast<NodeId>(n));
        if (graph.nodes()[n].phase != Phase::kForward || !matches(pin.pattern, name)) continue;
        check_dimension(pin, graph, graph.nodes()[n].outputs[0], name);
        add(graph.nodes()[n].outputs[0]);
      }
    }
    bool scope = false;
    for (const Source& s : graph.sources()) {
      if (result.size() > before && !scope) break;
      if (s.kind != SourceKind::kParameter || !matches(pin.pattern, without_last_part(s.name))) {
        continue;
      }
      const auto rank = std::ssize(graph.type(s.value).shape);
      scope = true;
      if (pin.kind != Placement::Kind::kShard || pin.dim < rank) add(s.value);
    }
    if (result.size() > before) continue;
    if (scope) {
      fail("--pin '{}': no parameter of {} has a dimension {}, counted from 0", pin.text,
           pin.pattern, pin.dim);
    }
    fail("--pin '{}': no parameter, state or op is called {}, and no scope with parameters",
         pin.text, pin.pattern);
  }
  return result;
}

}  // namespace cleave
