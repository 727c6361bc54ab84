#include "planner/fold.h"

#include <algorithm>
#include <array>
#include <map>

#include "graph/error.h"

namespace cleave {
namespace {

constexpr int32_t kKept = 4;  // copies of a repeat

class Folding {
 public:
  Folding(const Graph& graph, const std::vector<Repeat>& repeats, const Layers& layers,
          const std::vector<Piece>& pieces, const std::vector<bool>& whole)
      : graph_(graph),
        repeats_(repeats),
        layers_(layers),
        pieces_(pieces),
        piece_of_(pieces_of_nodes(graph, pieces)),
        place_(layers.nodes) {
    place_sums();
    for (size_t n = 0; n < place_.size(); ++n) {
      const Layer l = place_[n];
      if (l.repeat < 0) continue;
      auto& nodes = nodes_[{l.repeat, l.copy}][static_cast<size_t>(graph.nodes()[n].phase)];
      position_.emplace(static_cast<NodeId>(n), static_cast<int32_t>(nodes.size()));
      nodes.push_back(static_cast<NodeId>(n));
    }
    for (size_t r = 0; r < repeats.size(); ++r) {
      decide(static_cast<int32_t>(r), !whole.empty() && whole[r]);
    }
    for (size_t p = 0; p < pieces.size(); ++p) add_group(static_cast<int32_t>(p));
  }

  FoldedGraph run() {
    Graph& to = result_.graph;
    to.name = graph_.name;
    to.micro_batches = graph_.micro_batches;
    for (const std::string& f : graph_.files()) to.intern_file(f);
    for (const std::string& s : graph_.scopes()) to.intern_scope(s);
    moved_.assign(graph_.values().size(), kNoValue);
    moved_node_.assign(graph_.nodes().size(), kNoNode);
    for (size_t s = 0; s < graph_.sources().size(); ++s) {
      const Source& source = graph_.sources()[s];
      if (!kept(layers_.sources[s])) continue;
      moved_[static_cast<size_t>(source.value)] = to.add_source(source, graph_.type(source.value));
    }
    for (size_t n = 0; n < graph_.nodes().size(); ++n) add(static_cast<NodeId>(n));
    for (const Source& s : graph_.sources()) {
      if (moved_[static_cast<size_t>(s.value)] == kNoValue || s.final == s.value) continue;
      to.set_final(moved_[static_cast<size_t>(s.value)], moved_[static_cast<size_t>(s.final)]);
    }
    for (const Output& o : graph_.outputs()) {
      to.add_output(o.name, moved_[static_cast<size_t>(o.value)]);
    }
    to.cursor = {};
    place_values();
    return std::move(result_);
  }

 private:
  // Sums of the update over all parameters have a node for each: it belongs where what it adds
  // does.
  void place_sums() {
    for (size_t n = 0; n < place_.size(); ++n) {
      const Node& node = graph_.nodes()[n];
      if (node.phase != Phase::kUpdate || place_[n].repeat >= 0) continue;
      for (Value v : node.inputs) {
        const NodeId producer = graph_.value(v).producer;
        if (producer == kNoNode) continue;
        const Layer l = layers_.nodes[static_cast<size_t>(producer)];
        if (l.repeat >= 0) place_[n] = l;
      }
    }
  }

  // A value belongs where it is made, unless it passes from one copy to another. Counting that with
  // either copy would let the search move a cost from copies that stand for many to one that does
  // not.
  void place_values() {
    const Graph& g = result_.graph;
    result_.group_of_value.assign(g.values().size(), -1);
    auto& place = result_.group_of_value;
    for (size_t v = 0; v < place.size(); ++v) {
      const NodeId producer = g.values()[v].producer;
      if (producer != kNoNode) place[v] = result_.group_of[static_cast<size_t>(producer)];
    }
    std::map<int32_t, std::array<int32_t, 2>> between;  // by repeat: at an end, inside
    for (size_t n = 0; n < g.nodes().size(); ++n) {
      const int32_t reader = result_.group_of[n];
      for (Value v : g.nodes()[n].inputs) {
        int32_t& at = place[static_cast<size_t>(v)];
        if (at < 0) at = reader;
        const FoldedGroup a = result_.groups[static_cast<size_t>(at)];
        const FoldedGroup b = result_.groups[static_cast<size_t>(reader)];
        if (a.repeat < 0 || a.repeat != b.repeat || a.piece < 0 || a.copy == b.copy) continue;
        if (g.nodes()[n].phase == Phase::kUpdate) continue;
        const auto [edges, added] = between.try_emplace(a.repeat);
        if (added) {
          const int32_t count = repeats_[static_cast<size_t>(a.repeat)].count;
          edges->second = {static_cast<int32_t>(result_.groups.size()),
                           static_cast<int32_t>(result_.groups.size() + 1)};
          result_.groups.push_back({-1, a.repeat, -1, 1, false});
          result_.groups.push_back({-1, a.repeat, -1, std::max(1.0, count - 3.0), true});
        }
        const bool inside = a.weight > 1 && b.weight > 1;
        at = edges->second[inside];
      }
    }
    for (int32_t& at : place) at = std::max(at, 0);
  }

  bool same(int32_t repeat, int32_t a, int32_t b) const {
    const auto x = nodes_.find({repeat, a}), y = nodes_.find({repeat, b});
    for (size_t phase = 0; phase < 3; ++phase) {
      const auto &p = x->second[phase], &q = y->second[phase];
      if (p.size() != q.size()) return false;
      for (size_t i = 0; i < p.size(); ++i) {
        if (node_hash(graph_, p[i]) != node_hash(graph_, q[i])) return false;
      }
    }
    return true;
  }

  // Whether the inner copies are alike, so that two stand for them.
  void decide(int32_t repeat, bool whole) {
    const int32_t count = repeats_[static_cast<size_t>(repeat)].count;
    bool alike = count > kKept && !whole;
    for (int32_t c = 2; c + 1 < count && alike; ++c) alike = same(repeat, 1, c);
    alike_.push_back(alike);
  }

  bool kept(Layer l) const {
    if (l.repeat < 0 || !alike_[static_cast<size_t>(l.repeat)]) return true;
    return l.copy < 2 || l.copy >= repeats_[static_cast<size_t>(l.repeat)].count - 2;
  }

  void add_group(int32_t p) {
    const Piece& piece = pieces_[static_cast<size_t>(p)];
    const Layer layer{piece.repeat, piece.copy};
    if (!kept(layer)) {  // the second copy's stands for it
      result_.group_of_piece.push_back(result_.group_of_piece.back());
      return;
    }
    FoldedGroup group{p, piece.repeat, piece.copy, 1, false};
    if (piece.repeat >= 0 && alike_[static_cast<size_t>(piece.repeat)]) {
      const int32_t count = repeats_[static_cast<size_t>(piece.repeat)].count;
      if (piece.copy == 1 || piece.copy == count - 2) group.weight = (count - 2) / 2.0;
    }
    if (piece.repeat >= 0) {
      group_[{piece.repeat, piece.copy}] = static_cast<int32_t>(result_.groups.size());
    }
    result_.group_of_piece.push_back(static_cast<int32_t>(result_.groups.size()));
    result_.groups.push_back(group);
  }

  // The inner copy that is kept besides this one stands for the same copies, so it is split alike.
  NodeId alike(NodeId n) const {
    const Layer l = place_[static_cast<size_t>(n)];
    if (l.repeat < 0) return kNoNode;
    const auto group = static_cast<size_t>(group_.at({l.repeat, l.copy}));
    if (result_.groups[group].weight == 1) return kNoNode;
    const int32_t last = repeats_[static_cast<size_t>(l.repeat)].count - 2;
    const auto position = static_cast<size_t>(position_.at(n));
    const NodeId t = nodes_.at(
        {l.repeat, l.copy == 1 ? last : 1})[static_cast<size_t>(graph_.node(n).phase)][position];
    return t < n ? moved_node_[static_cast<size_t>(t)] : kNoNode;
  }

  // The node that stands for one left out: it was added already, whichever way the phase goes
  // through the layers.
  NodeId twin(NodeId n) const {
    const Layer l = place_[static_cast<size_t>(n)];
    const Phase phase = graph_.node(n).phase;
    const int32_t last = repeats_[static_cast<size_t>(l.repeat)].count - 2;
    const auto position = static_cast<size_t>(position_.at(n));
    for (int32_t copy : {1, last}) {
      const NodeId t = nodes_.at({l.repeat, copy})[static_cast<size_t>(phase)][position];
      if (t < n) return t;
    }
    CLEAVE_ASSERT(false, "node {} of a layer left out has no twin before it", n);
    return kNoNode;
  }

  void add(NodeId n) {
    const Node& node = graph_.node(n);
    const Layer layer = place_[static_cast<size_t>(n)];
    if (!kept(layer)) {
      const NodeId t = twin(n);
      for (size_t o = 0; o < node.outputs.size(); ++o) {
        moved_[static_cast<size_t>(node.outputs[o])] =
            moved_[static_cast<size_t>(graph_.node(t).outputs[o])];
      }
      moved_node_[static_cast<size_t>(n)] = moved_node_[static_cast<size_t>(t)];
      return;
    }
    std::vector<Value> in, writes;
    for (Value v : node.inputs) in.push_back(moved_[static_cast<size_t>(v)]);
    for (Value v : node.writes) {
      writes.push_back(v == kNoValue ? v : moved_[static_cast<size_t>(v)]);
    }
    Graph& to = result_.graph;
    to.cursor = {.phase = node.phase,
                 .follows = node.follows == kNoNode
                                ? kNoNode
                                : moved_node_[static_cast<size_t>(node.follows)],
                 .loc = node.loc,
                 .scope = node.scope};
    const auto out =
        to.add(*node.op, std::move(in), node.signature->text(), node.attrs, std::move(writes));
    for (size_t o = 0; o < out.size(); ++o) moved_[static_cast<size_t>(node.outputs[o])] = out[o];
    moved_node_[static_cast<size_t>(n)] = static_cast<NodeId>(to.nodes().size() - 1);
    result_.origin.push_back(n);
    result_.twins.push_back(alike(n));
    // What belongs to no one layer, though its piece is one of a repeat, counts with the first.
    const int32_t piece = piece_of_[static_cast<size_t>(n)];
    result_.group_of.push_back(layer.repeat < 0 ? result_.group_of_piece[static_cast<size_t>(piece)]
                                                : group_.at({layer.repeat, layer.copy}));
  }

  using Place = std::pair<int32_t, int32_t>;  // repeat, copy

  const Graph& graph_;
  const std::vector<Repeat>& repeats_;
  const Layers& layers_;
  const std::vector<Piece>& pieces_;
  const std::vector<int32_t> piece_of_;                        // by node
  std::vector<bool> alike_;                                    // by repeat
  std::vector<Layer> place_;                                   // by node
  std::map<Place, std::array<std::vector<NodeId>, 3>> nodes_;  // by phase
  std::map<NodeId, int32_t> position_;                         // among those
  std::map<Place, int32_t> group_;                             // of copies that are kept
  std::vector<Value> moved_;
  std::vector<NodeId> moved_node_;
  FoldedGraph result_;
};

}  // namespace

double FoldedGraph::passages(size_t group) const {
  if (groups[group].inside) return 1;
  int kept = 0;
  bool stands_for_others = false;
  for (const FoldedGroup& g : groups) {
    if (g.piece < 0 || g.repeat != groups[group].repeat) continue;
    ++kept;
    stands_for_others |= g.weight > 1;
  }
  // Of four kept copies the passage in the middle is another group's.
  return stands_for_others ? 2 : std::max(1, kept - 1);
}

FoldedGraph fold(const Graph& graph, const std::vector<Repeat>& repeats, const Layers& layers,
                 const std::vector<Piece>& pieces, const std::vector<bool>& whole) {
  return Folding(graph, repeats, layers, pieces, whole).run();
}

}  // namespace cleave
