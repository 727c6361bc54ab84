#include "cli/op_splits.h"

#include <algorithm>
#include <cctype>
#include <map>

#include "graph/error.h"
#include "planner/pins.h"
#include "viz/names.h"

namespace cleave {
namespace {

size_t at(int32_t i) { return static_cast<size_t>(i); }

// Whether the node reads a parameter with this name, also through a cast or a view.
bool reads_parameter(const Graph& graph, NodeId n, const std::string& pattern) {
  for (Value v : graph.node(n).inputs) {
    for (int depth = 0; depth < 4; ++depth) {
      const Source* s = graph.source_of(v);
      if (s != nullptr && s->kind == SourceKind::kParameter && matches(pattern, s->name)) {
        return true;
      }
      const NodeId producer = graph.value(v).producer;
      if (producer == kNoNode || graph.node(producer).inputs.size() != 1) break;
      v = graph.node(producer).inputs[0];
    }
  }
  return false;
}

}  // namespace

std::vector<OpGroup> op_groups(const Graph& graph, const Plan& plan, const std::string& pattern) {
  const auto collect = [&](const auto& named) {
    std::vector<OpGroup> groups;
    std::map<std::string, size_t> known;
    for (size_t i = 0; i < graph.nodes().size(); ++i) {
      const auto n = static_cast<NodeId>(i);
      if (graph.node(n).phase != Phase::kForward || !named(n)) continue;
      const NodeId leader = leader_of(graph, n);
      std::string key = folded_name(pin_name(graph, n)) + ' ' + graph.place(graph.node(n).loc);
      for (const AxisOption& o : plan.choices[at(leader)]) {
        key += fmt::format(" {}{}{}", static_cast<int>(o.kind), o.letter, o.atom);
      }
      // A second op of one name in one layer is another one.
      const auto [entry, added] = known.emplace(key, groups.size());
      if (added) {
        groups.push_back({folded_name(pin_name(graph, n)), graph.place(graph.node(n).loc), {n}});
      } else {
        groups[entry->second].nodes.push_back(n);
      }
    }
    return groups;
  };
  auto groups = collect([&](NodeId n) { return matches(pattern, pin_name(graph, n), true); });
  if (groups.empty()) {
    groups = collect([&](NodeId n) { return reads_parameter(graph, n, pattern); });
  }
  return groups;
}

std::string split_text(const Graph& graph, const Plan& plan, const std::vector<std::string>& words,
                       NodeId node, const std::vector<AxisOption>& choice) {
  const NodeId leader = leader_of(graph, node);
  const Node& n = graph.node(leader);
  std::string text;
  for (size_t a = 0; a < choice.size(); ++a) {
    const int64_t size = plan.mesh.axes[a].size;
    if (size == 1) continue;
    std::string how;
    switch (choice[a].kind) {
      case AxisOption::Kind::kReplicate: how = "whole"; break;
      case AxisOption::Kind::kPartialLeader: how = "partial sums pass through"; break;
      case AxisOption::Kind::kPartialFollowers: how = "partial sums pass in the backward"; break;
      case AxisOption::Kind::kRing:
      case AxisOption::Kind::kFactor: {
        for (size_t f = 0; f < n.extents.size(); ++f) {
          const char letter = n.signature->factors()[f].letter;
          if (std::tolower(letter) != std::tolower(choice[a].letter)) continue;
          const Atom& atom =
              plan.dimensions->factors[at(leader)][f][static_cast<size_t>(choice[a].atom)];
          const bool known = atom.dimension_class >= 0;
          how = fmt::format("{} {} → {}",
                            known ? words[at(atom.dimension_class)] : std::string(1, letter),
                            atom.size, atom.size / size);
        }
        break;
      }
    }
    if (!text.empty()) text += ", ";
    text += fmt::format("{}: {}", plan.mesh.axes[a].name, how);
  }
  return text.empty() ? "one device" : text;
}

}  // namespace cleave
