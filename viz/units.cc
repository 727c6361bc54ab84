#include "viz/units.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "viz/names.h"

namespace cleave {
namespace {

constexpr NodeId kSmallestLayer = 3;  // ops

class UnitFinder {
 public:
  UnitFinder(const Graph& graph, ViewLevel level) : graph_(graph), level_(level) {
    u_.of_node.assign(graph.nodes().size(), -1);
    u_.repeats = repeats(graph);
    // Two casts in a row are no layer.
    std::erase_if(u_.repeats, [](const Repeat& r) { return r.period < kSmallestLayer; });
    u_.layer = layers_of(graph, u_.repeats).nodes;
    count_readers();
  }

  Units result() {
    switch (level_) {
      case ViewLevel::kModel: parts(); break;
      case ViewLevel::kBlock: ops_of_one_layer(); break;
      case ViewLevel::kRaw: every_op(); break;
    }
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      if (u_.of_node[n] < 0) continue;
      const Node& node = graph_.nodes()[n];
      unit(u_.of_node[n]).flops += node.op->flops(Graph::call(node, graph_.input_types(node)));
    }
    for (size_t i = 0; i < u_.units.size(); ++i) find_forward(static_cast<int32_t>(i));
    return std::move(u_);
  }

 private:
  GraphUnit& unit(int32_t i) { return u_.units[static_cast<size_t>(i)]; }
  const Layer& layer(NodeId n) const { return u_.layer[static_cast<size_t>(n)]; }

  int32_t add_unit(std::string name, NodeId n) {
    u_.units.push_back({std::move(name), {}, graph_.node(n).phase, -1, 0, -1});
    return static_cast<int32_t>(u_.units.size()) - 1;
  }

  void put(NodeId n, int32_t i, bool listed = true) {
    u_.of_node[static_cast<size_t>(n)] = i;
    if (listed) unit(i).nodes.push_back(n);
  }

  // The unit that most of its nodes follow.
  void find_forward(int32_t i) {
    if (unit(i).phase != Phase::kBackward || unit(i).forward >= 0) return;
    std::map<int32_t, int> votes;
    for (NodeId n : unit(i).nodes) {
      const NodeId leader = graph_.node(n).follows;
      if (leader == kNoNode || graph_.node(leader).phase != Phase::kForward) continue;
      if (const int32_t f = u_.of_node[static_cast<size_t>(leader)]; f >= 0) ++votes[f];
    }
    const auto most =
        std::max_element(votes.begin(), votes.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    if (most != votes.end()) unit(i).forward = most->first;
  }

  bool put_in_update(NodeId n) {
    if (graph_.node(n).phase != Phase::kUpdate) return false;
    if (u_.update < 0) u_.update = add_unit("update", n);
    put(n, u_.update);
    return true;
  }

  // What the scopes of a repeat's forward nodes have in common, numbers folded: "h.*".
  std::vector<std::string> common_scopes() const {
    std::vector<std::string> common(u_.repeats.size());
    std::vector<bool> seen(u_.repeats.size());
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      const int32_t r = u_.layer[n].repeat;
      const Node& node = graph_.nodes()[n];
      if (r < 0 || node.phase != Phase::kForward) continue;
      const std::string scope = folded_name(graph_.scopes()[static_cast<size_t>(node.scope)]);
      std::string& c = common[static_cast<size_t>(r)];
      c = seen[static_cast<size_t>(r)] ? common_scope(c, scope) : scope;
      seen[static_cast<size_t>(r)] = true;
    }
    return common;
  }

  // The part of the model that a node belongs to: the first name of its scope inside the layer.
  std::string part_of(NodeId n, const std::vector<std::string>& common) const {
    const Node& node = graph_.node(n);
    std::string scope = folded_name(graph_.scopes()[static_cast<size_t>(node.scope)]);
    if (const int32_t r = layer(n).repeat; r >= 0) {
      const std::string& head = common[static_cast<size_t>(r)];
      if (scope.starts_with(head)) scope.erase(0, std::min(scope.size(), head.size() + 1));
    }
    return scope.substr(0, scope.find('.'));
  }

  // Runs of nodes of one part, the k-th of a name in one copy being that of every other copy.
  void parts() {
    const std::vector<std::string> common = common_scopes();
    std::map<std::tuple<Phase, int32_t, std::string, int32_t>, int32_t> known;
    std::map<std::tuple<Phase, Layer_>, std::string> open;  // the part that the last node was of
    std::map<std::tuple<Phase, Layer_, std::string>, int32_t> runs;
    for (NodeId n = 0; n < static_cast<NodeId>(graph_.nodes().size()); ++n) {
      if (put_in_update(n)) continue;
      const Phase phase = graph_.node(n).phase;
      const Layer_ place{layer(n).repeat, layer(n).copy};
      const std::string part = part_of(n, common);
      std::string& last = open.emplace(std::tuple(phase, place), "\n").first->second;
      int32_t& run = runs.emplace(std::tuple(phase, place, part), -1).first->second;
      // Named parts are one box each; ops without a name, one box a run.
      if (run < 0 || (part.empty() && last != part)) ++run;
      last = part;
      const auto [at, added] = known.emplace(std::tuple(phase, layer(n).repeat, part, run), 0);
      if (added) {
        at->second = add_unit(part, n);
        unit(at->second).repeat = layer(n).repeat;
      }
      const GraphUnit& u = unit(at->second);
      const bool same_copy = u.nodes.empty() || layer(u.nodes[0]).copy == layer(n).copy;
      put(n, at->second, same_copy);
    }
  }

  bool is_view(NodeId n) const {
    const Node& node = graph_.node(n);
    return node.op->view != nullptr &&
           graph_.value(node.outputs[0]).storage == graph_.value(node.inputs[0]).storage;
  }

  void count_readers() {
    reader_.assign(graph_.values().size(), kNoNode);
    for (NodeId n = static_cast<NodeId>(graph_.nodes().size()); n-- > 0;) {
      for (Value v : graph_.node(n).inputs) reader_[static_cast<size_t>(v)] = n;
    }
  }

  // One input and one output of the same shape, dimension by dimension: a cast, a scale.
  static bool is_elementwise(const Node& node) {
    return node.inputs.size() == 1 && node.outputs.size() == 1 &&
           node.signature->inputs()[0] == node.signature->outputs()[0];
  }

  // What a box would only be in the way for: a parameter made ready for the op that reads it
  // (kNoNode: none), ...
  NodeId prepares(NodeId n) const {
    const Node& node = graph_.node(n);
    if (node.phase != Phase::kForward || !is_elementwise(node)) return kNoNode;
    const Source* s = graph_.source_of(node.inputs[0]);
    if (s == nullptr || s->kind != SourceKind::kParameter) return kNoNode;
    const NodeId reader = reader_[static_cast<size_t>(node.outputs[0])];
    return reader != kNoNode && layer(reader) == layer(n) ? reader : kNoNode;
  }

  // ... and a gradient made ready for the update.
  bool finishes(NodeId n) const {
    const Node& node = graph_.node(n);
    if (node.phase != Phase::kBackward || !is_elementwise(node)) return false;
    const NodeId reader = reader_[static_cast<size_t>(node.outputs[0])];
    return reader != kNoNode && graph_.node(reader).phase == Phase::kUpdate;
  }

  void ops_of_one_layer() {
    const auto largest = std::max_element(
        u_.repeats.begin(), u_.repeats.end(), [](const Repeat& a, const Repeat& b) {
          return int64_t{a.count} * a.period < int64_t{b.count} * b.period;
        });
    const auto r = static_cast<int32_t>(largest - u_.repeats.begin());
    const bool all = largest == u_.repeats.end();
    const Layer drawn{r, all ? 0 : largest->count / 2};
    std::vector<NodeId> late;
    for (NodeId n = 0; n < static_cast<NodeId>(graph_.nodes().size()); ++n) {
      const Node& node = graph_.node(n);
      if (node.phase == Phase::kUpdate) {
        if (all || layer(n) == drawn) put_in_update(n);
        continue;
      }
      if (!all && layer(n) != drawn) continue;
      if (prepares(n) != kNoNode) {
        late.push_back(n);
        continue;
      }
      // A view costs nothing, and a cast next to it: they are part of the box whose result it
      // shows.
      const bool shows = is_view(n) || finishes(n) || node.op->name == "cast";
      const NodeId maker = shows ? graph_.value(node.inputs[0]).producer : kNoNode;
      const int32_t host = maker == kNoNode ? -1 : u_.of_node[static_cast<size_t>(maker)];
      if (host >= 0 && unit(host).phase == node.phase) {
        put(n, host);
      } else if (const int32_t leader = leading_unit(n); leader >= 0) {
        // The gradients of an op, with respect to each operand, are one box.
        const auto [entry, added] = gradients_of_.emplace(leader, 0);
        if (added) {
          entry->second = add_unit(unit(leader).name, n);
          unit(entry->second).forward = leader;
        }
        put(n, entry->second);
      } else {
        put(n, add_unit(std::string(node.op->name), n));
      }
    }
    for (NodeId n : late) put(n, u_.of_node[static_cast<size_t>(prepares(n))]);
  }

  // The unit of the forward's op that a node of the backward follows; -1: none.
  int32_t leading_unit(NodeId n) const {
    const NodeId leader = graph_.node(n).follows;
    if (graph_.node(n).phase != Phase::kBackward || leader == kNoNode) return -1;
    return u_.of_node[static_cast<size_t>(leader)];
  }

  void every_op() {
    for (NodeId n = 0; n < static_cast<NodeId>(graph_.nodes().size()); ++n) {
      put(n, add_unit(std::string(graph_.node(n).op->name), n));
    }
  }

  using Layer_ = std::pair<int32_t, int32_t>;  // a Layer that can be ordered

  const Graph& graph_;
  ViewLevel level_;
  std::vector<NodeId> reader_;               // by value: the first one
  std::map<int32_t, int32_t> gradients_of_;  // by unit of the forward
  Units u_;
};

}  // namespace

std::string unit_name(const Graph& graph, const Units& units, const GraphUnit& unit) {
  const GraphUnit& forward =
      unit.forward >= 0 ? units.units[static_cast<size_t>(unit.forward)] : unit;
  if (!unit.name.empty()) return unit.name;
  if (!forward.name.empty()) return forward.name;
  for (const Output& o : graph.outputs()) {
    const NodeId maker = graph.value(o.value).producer;
    if (std::find(forward.nodes.begin(), forward.nodes.end(), maker) != forward.nodes.end())
      return o.name;
  }
  return "";
}

Units find_units(const Graph& graph, ViewLevel level) { return UnitFinder(graph, level).result(); }

}  // namespace cleave
