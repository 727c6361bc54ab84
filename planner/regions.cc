#include "planner/regions.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>

#include "graph/error.h"

namespace cleave {
namespace {

// How a node meets a class.
struct Meeting {
  NodeId node = kNoNode;
  bool passes = false;  // the class can be split here: the node is in a region
  bool ends = false;    // a synchronization point
  SyncPoint sync;
};

double bytes_of(const Graph& graph, Value v) {
  return static_cast<double>(numel(graph.type(v).shape) * size_of(graph.type(v).dtype));
}

class RegionFinder {
 public:
  RegionFinder(const Graph& graph, const Dimensions& dims) : graph_(graph), dims_(dims) {
    nodes_of_.resize(dims.classes.size());
    for (size_t n = 0; n < graph.nodes().size(); ++n) {
      std::vector<ClassId> seen;
      for (const auto& factor : dims.factors[n]) {
        for (const Atom& a : factor) seen.push_back(a.dimension_class);
      }
      std::sort(seen.begin(), seen.end());
      seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
      for (ClassId c : seen) nodes_of_[static_cast<size_t>(c)].push_back(static_cast<NodeId>(n));
      const auto in = graph.input_types(graph.nodes()[n]);
      flops_.push_back(graph.nodes()[n].op->flops(Graph::call(graph.nodes()[n], in)));
    }
    total_ = std::accumulate(flops_.begin(), flops_.end(), 0.0);
  }

  void regions_of(ClassId c, std::vector<Region>& result) {
    std::map<NodeId, Meeting> meetings;
    for (NodeId n : nodes_of_[static_cast<size_t>(c)]) meetings.emplace(n, meet(n, c));
    // Ops are connected by the values that carry the class between them.
    std::map<NodeId, NodeId> root;
    const auto find = [&](NodeId n) {
      while (root.at(n) != n) n = root[n] = root.at(root.at(n));
      return n;
    };
    for (const auto& [n, m] : meetings) {
      if (m.passes) root[n] = n;
    }
    std::map<Value, NodeId> region_of_value;  // a member that touches the value
    for (const auto& [n, m] : meetings) {
      if (!m.passes) continue;
      for (const auto* list : {&graph_.node(n).inputs, &graph_.node(n).outputs}) {
        for (Value v : *list) {
          if (!carries(v, c)) continue;
          const auto [at, added] = region_of_value.emplace(v, n);
          if (!added) {
            const NodeId a = find(n), b = find(at->second);
            root[std::max(a, b)] = std::min(a, b);
          }
        }
      }
    }
    std::map<NodeId, Region> regions;
    for (const auto& [n, m] : meetings) {
      if (!m.passes) continue;
      Region& r = regions[find(n)];
      r.dimension_class = c;
      r.nodes.push_back(n);
      r.flops += flops_[static_cast<size_t>(n)];
      if (m.ends) r.syncs.push_back(m.sync);
    }
    for (const auto& [n, m] : meetings) {
      if (m.passes) continue;
      // It ends every region whose values it reads.
      std::vector<NodeId> ended;
      for (Value v : graph_.node(n).inputs) {
        const auto at = region_of_value.find(v);
        if (at == region_of_value.end()) continue;
        const NodeId r = find(at->second);
        if (std::find(ended.begin(), ended.end(), r) == ended.end()) ended.push_back(r);
      }
      for (NodeId r : ended) regions[r].syncs.push_back(m.sync);
    }
    for (auto& [n, r] : regions) {
      if (r.flops <= 0) continue;
      r.flops_share = total_ > 0 ? r.flops / total_ : 0;
      result.push_back(std::move(r));
    }
  }

 private:
  bool carries(Value v, ClassId c) const {
    for (const ValueAtom& a : dims_.values[static_cast<size_t>(v)]) {
      if (a.dimension_class == c) return true;
    }
    return false;
  }

  Meeting meet(NodeId n, ClassId c) const {
    const Node& node = graph_.node(n);
    Meeting m;
    m.node = n;
    m.sync.node = n;
    m.sync.phase = node.phase;
    m.sync.place = graph_.place(node.loc);
    const std::string& scope = graph_.scopes()[static_cast<size_t>(node.scope)];
    if (!scope.empty()) m.sync.place = scope + " " + m.sync.place;
    int occurrences = 0;
    bool whole = false;
    std::vector<size_t> reduced;  // outputs
    const auto& factors = dims_.factors[static_cast<size_t>(n)];
    for (size_t f = 0; f < factors.size(); ++f) {
      const bool here = std::any_of(factors[f].begin(), factors[f].end(),
                                    [&](const Atom& a) { return a.dimension_class == c; });
      if (!here) continue;
      ++occurrences;
      const Factor& factor = node.signature->factors()[f];
      whole |= factor.whole || dims_.contradicts[static_cast<size_t>(n)][f];
      for (size_t o = 0; o < node.outputs.size(); ++o) {
        if (!node.signature->reduced_in(static_cast<int>(f), o)) continue;
        reduced.push_back(o);
        m.sync.reduction = factor.reduction;
      }
    }
    m.passes = occurrences == 1 && !whole;
    m.ends = !m.passes || !reduced.empty();
    if (occurrences > 1 || whole) {
      m.sync.kind = occurrences > 1 ? SyncKind::kConflict : SyncKind::kWhole;
      if (m.sync.kind == SyncKind::kWhole && node.op->split != nullptr) {
        for (Value v : node.outputs) m.sync.bytes += carries(v, c) ? 0 : bytes_of(graph_, v);
      }
      if (m.sync.bytes == 0) {
        for (Value v : node.inputs) m.sync.bytes += carries(v, c) ? bytes_of(graph_, v) : 0;
      }
    } else {
      for (size_t o : reduced) m.sync.bytes += bytes_of(graph_, node.outputs[o]);
    }
    return m;
  }

  const Graph& graph_;
  const Dimensions& dims_;
  std::vector<std::vector<NodeId>> nodes_of_;  // by class
  std::vector<double> flops_;                  // by node
  double total_ = 0;
};

}  // namespace

std::string_view name_of(SyncKind kind) {
  switch (kind) {
    case SyncKind::kReduction: return "reduction";
    case SyncKind::kWhole: return "whole";
    case SyncKind::kConflict: return "conflict";
  }
  return "?";
}

std::vector<Region> find_regions(const Graph& graph, const Dimensions& dimensions) {
  std::vector<Region> result;
  RegionFinder finder(graph, dimensions);
  for (size_t c = 0; c < dimensions.classes.size(); ++c) {
    if (dimensions.classes[c].size > 1) finder.regions_of(static_cast<ClassId>(c), result);
  }
  std::stable_sort(result.begin(), result.end(),
                   [](const Region& a, const Region& b) { return a.flops > b.flops; });
  return result;
}

std::vector<SyncGroup> fold_syncs(const Graph& graph, const std::vector<SyncPoint>& syncs) {
  using Key = std::tuple<const OpDef*, SyncKind, Phase, double, int32_t, int32_t>;
  std::map<Key, size_t> known;
  std::vector<SyncGroup> result;
  for (const SyncPoint& s : syncs) {
    const Node& n = graph.node(s.node);
    const Key key{n.op, s.kind, s.phase, s.bytes, n.loc.file, n.loc.line};
    const auto [at, added] = known.emplace(key, result.size());
    if (added) {
      result.push_back({s, 1});
    } else {
      ++result[at->second].count;
    }
  }
  return result;
}

std::vector<RegionGroup> fold_regions(const Graph& graph, std::vector<Region> regions) {
  std::map<std::string, size_t> known;
  std::vector<RegionGroup> result;
  for (Region& r : regions) {
    std::string key;
    for (NodeId n : r.nodes) {
      const Node& node = graph.node(n);
      key += fmt::format("{}{}{};", node.op->name, node.signature->text(),
                         fmt::join(node.extents, ","));
    }
    for (const SyncPoint& s : r.syncs) {
      key += fmt::format("{}{}{};", static_cast<int>(s.kind), static_cast<int>(s.phase), s.bytes);
    }
    // Two classes that pass through the same ops (batch and sequence) are no copies of each other.
    for (auto at = known.find(key); at != known.end(); at = known.find(key)) {
      const std::vector<NodeId>& nodes = result[at->second].first.nodes;
      if (!std::binary_search(nodes.begin(), nodes.end(), r.nodes.front())) break;
      key += '+';
    }
    const auto [at, added] = known.emplace(std::move(key), result.size());
    if (added) {
      result.push_back({std::move(r), 1});
    } else {
      ++result[at->second].count;
      result[at->second].first.flops_share += r.flops_share;
    }
  }
  return result;
}

}  // namespace cleave
