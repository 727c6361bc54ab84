#include "planner/remake_menu.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "graph/algorithms.h"
#include "graph/error.h"
#include "planner/remake.h"

namespace cleave {
namespace {

constexpr double kTicks = 1e13;  // capacities are whole numbers: tenths of a picosecond
constexpr int64_t kEndless = std::numeric_limits<int64_t>::max() / 4096;

// The network: of each node of the forward a vertex, and of each of its results one; those on the
// sink's side are computed again, and must be there in the backward.
class Network {
 public:
  Network(const Graph& graph, const std::vector<int32_t>& piece_of, const Plan& plan)
      : graph_(graph), plan_(plan), piece_of_(piece_of), may_(can_be_remade(graph)) {
    vertex_of_node_.assign(graph.nodes().size(), -1);
    vertex_of_value_.assign(graph.values().size(), -1);
    for (size_t n = 0; n < graph.nodes().size(); ++n) {
      const Node& node = graph.nodes()[n];
      if (node.phase != Phase::kForward) continue;
      vertex_of_node_[n] = size_++;
      for (Value v : node.outputs) vertex_of_value_[static_cast<size_t>(v)] = size_++;
    }
    add_nodes();
    for (size_t n = 0; n < graph.nodes().size(); ++n) add_reads(static_cast<NodeId>(n));
  }

  // The nodes that are computed again at this price of a byte.
  std::vector<NodeId> cut(double price) const {
    std::vector<int64_t> capacities = capacity_;
    for (const Kept& k : kept_) {
      capacities[k.edge] = ticks(price * k.bytes);
    }
    const MinCut cut = min_cut({size_, edges_}, capacities, kSource, kSink);
    std::vector<NodeId> remade;
    for (size_t n = 0; n < vertex_of_node_.size(); ++n) {
      const int32_t at = vertex_of_node_[n];
      if (at >= 0 && !cut.source_side[static_cast<size_t>(at)]) {
        remade.push_back(static_cast<NodeId>(n));
      }
    }
    return remade;
  }

  double kept_bytes() const {
    double bytes = 0;
    for (const Kept& k : kept_) bytes += k.bytes;
    return bytes;
  }
  double seconds() const { return seconds_; }

 private:
  struct Kept {
    size_t edge = 0;
    double bytes = 0;
  };

  static int64_t ticks(double seconds) {
    return std::min(static_cast<int64_t>(std::min(seconds * kTicks, 1e15)), kEndless / 8);
  }

  void add(int32_t from, int32_t to, int64_t capacity) {
    edges_.push_back({from, to});
    capacity_.push_back(capacity);
  }

  void add_nodes() {
    for (size_t n = 0; n < vertex_of_node_.size(); ++n) {
      if (vertex_of_node_[n] < 0) continue;
      const Node& node = graph_.nodes()[n];
      const double seconds = plan_.nodes[n].seconds;
      seconds_ += seconds;
      add(kSource, vertex_of_node_[n], may_[n] ? ticks(seconds) + 1 : kEndless);
      for (Value v : node.outputs) {
        // A view costs nothing to keep or to make again; what it looks at does.
        const bool view =
            !node.inputs.empty() && graph_.value(v).storage == graph_.value(node.inputs[0]).storage;
        const Layout layout = plan_.layout(v, 0);
        const double bytes = view ? 0
                                  : static_cast<double>(numel(layout.local_shape(plan_.mesh)) *
                                                        size_of(graph_.type(v).dtype));
        kept_.push_back({edges_.size(), bytes});
        add(vertex_of_node_[n], vertex_of_value_[static_cast<size_t>(v)], 0);
      }
    }
  }

  void add_reads(NodeId n) {
    const Node& node = graph_.node(n);
    for (Value v : node.inputs) {
      const int32_t value = vertex_of_value_[static_cast<size_t>(v)];
      if (value < 0) continue;
      const NodeId producer = graph_.value(v).producer;
      const int32_t maker = vertex_of_node_[static_cast<size_t>(producer)];
      if (node.phase != Phase::kForward) {
        add(value, kSink, kEndless);
      } else {
        add(value, vertex_of_node_[static_cast<size_t>(n)], kEndless);
        // What passes to another piece is kept: else one piece's backward would begin with
        // another's forward.
        if (piece_of_[static_cast<size_t>(n)] != piece_of_[static_cast<size_t>(producer)]) {
          add(kSource, maker, kEndless);
        }
      }
    }
  }

  static constexpr int32_t kSource = 0, kSink = 1;

  const Graph& graph_;
  const Plan& plan_;
  const std::vector<int32_t>& piece_of_;
  const std::vector<bool> may_;
  int32_t size_ = 2;
  std::vector<int32_t> vertex_of_node_, vertex_of_value_;
  std::vector<Edge> edges_;
  std::vector<int64_t> capacity_;
  std::vector<Kept> kept_;
  double seconds_ = 0;
};

// Nodes of the whole graph as places in the kinds of pieces; where copies differ, what the first
// inner one does.
RemakeMode mode_of(const Outline& outline, const std::vector<NodeId>& remade) {
  RemakeMode mode;
  int32_t kinds = 0;
  for (const Piece& p : outline.pieces) kinds = std::max(kinds, p.like + 1);
  mode.places.resize(static_cast<size_t>(kinds));
  std::vector<int32_t> taken(static_cast<size_t>(kinds), -1);  // by kind: the piece looked at
  for (size_t p = 0; p < outline.pieces.size(); ++p) {
    int32_t& t = taken[static_cast<size_t>(outline.pieces[p].like)];
    if (t < 0 || outline.pieces[p].copy == 1) t = static_cast<int32_t>(p);
  }
  for (NodeId whole : remade) {
    const int32_t p = outline.piece_of[static_cast<size_t>(whole)];
    const Piece& piece = outline.pieces[static_cast<size_t>(p)];
    if (taken[static_cast<size_t>(piece.like)] != p) continue;
    mode.places[static_cast<size_t>(piece.like)].push_back(whole - piece.first);
  }
  const bool nothing = std::all_of(mode.places.begin(), mode.places.end(),
                                   [](const auto& list) { return list.empty(); });
  return nothing ? RemakeMode{} : mode;
}

}  // namespace

std::vector<RemakeMode> remake_menu(const Outline& outline, const PreparedGraph& folded,
                                    const Plan& plan, size_t most) {
  const Network network(*folded.graph, folded.piece_of, plan);
  std::vector<RemakeMode> menu = {{}};
  if (network.kept_bytes() <= 0) return menu;
  // From a price at which keeping costs little beside computing to one at which computing does.
  const double base = network.seconds() / network.kept_bytes();
  std::vector<RemakeMode> found;
  for (int power = -7; power <= 9; ++power) {
    std::vector<NodeId> nodes;
    for (NodeId n : network.cut(base * std::pow(2.0, power))) {
      nodes.push_back(outline.folded.origin[static_cast<size_t>(n)]);
    }
    RemakeMode mode = mode_of(outline, nodes);
    if (mode.empty() || (!found.empty() && found.back() == mode)) continue;
    found.push_back(std::move(mode));
  }
  // The last, which keeps least, and others spread evenly.
  const size_t take = std::min(found.size(), most > 0 ? most - 1 : 0);
  for (size_t i = 0; i < take; ++i) {
    menu.push_back(found[(i + 1) * found.size() / take - 1]);
  }
  return menu;
}

RemakeMode full_mode(const Outline& outline) {
  const Graph& graph = *outline.graph;
  std::vector<bool> may = can_be_remade(graph);
  for (size_t n = 0; n < may.size(); ++n) {
    for (Value v : graph.nodes()[n].inputs) {
      const NodeId producer = graph.value(v).producer;
      if (producer == kNoNode || graph.nodes()[n].phase != Phase::kForward) continue;
      if (outline.piece_of[static_cast<size_t>(producer)] != outline.piece_of[n]) {
        may[static_cast<size_t>(producer)] = false;
      }
    }
  }
  std::vector<NodeId> nodes;
  for (size_t n = 0; n < may.size(); ++n) {
    const Piece& piece = outline.pieces[static_cast<size_t>(outline.piece_of[n])];
    if (may[n] && piece.repeat >= 0) nodes.push_back(static_cast<NodeId>(n));
  }
  return mode_of(outline, nodes);
}

RemakeMode selective_mode(const Outline& outline) {
  const Graph& graph = *outline.graph;
  const std::vector<bool> may = can_be_remade(graph);
  const size_t size = graph.nodes().size();
  std::vector<bool> data(graph.values().size(), false), contracts(size, false);
  for (const Source& s : graph.sources()) {
    data[static_cast<size_t>(s.value)] = s.kind == SourceKind::kData;
  }
  for (size_t n = 0; n < size; ++n) {
    const Node& node = graph.nodes()[n];
    if (node.phase != Phase::kForward) continue;
    int operands = 0;
    for (Value v : node.inputs) {
      operands += data[static_cast<size_t>(v)] && is_float(graph.type(v).dtype);
    }
    for (Value v : node.outputs) {
      data[static_cast<size_t>(v)] =
          std::any_of(node.inputs.begin(), node.inputs.end(),
                      [&](Value in) { return data[static_cast<size_t>(in)]; });
    }
    bool reduces = false;
    for (size_t f = 0; f < node.extents.size(); ++f) {
      reduces |= node.signature->reduced_in(static_cast<int>(f), 0);
    }
    contracts[n] = operands > 1 && reduces && may[n];
  }
  // By node: after a contraction of its own piece, before one.
  std::vector<bool> after = contracts, before = contracts;
  const auto same_piece = [&](NodeId a, size_t b) {
    return a != kNoNode && outline.piece_of[static_cast<size_t>(a)] == outline.piece_of[b];
  };
  for (size_t n = 0; n < size; ++n) {
    for (Value v : graph.nodes()[n].inputs) {
      const NodeId producer = graph.value(v).producer;
      if (same_piece(producer, n) && after[static_cast<size_t>(producer)]) after[n] = true;
    }
  }
  for (size_t n = size; n-- > 0;) {
    for (Value v : graph.nodes()[n].inputs) {
      const NodeId producer = graph.value(v).producer;
      if (same_piece(producer, n) && before[n]) before[static_cast<size_t>(producer)] = true;
    }
  }
  std::vector<NodeId> nodes;
  for (size_t n = 0; n < size; ++n) {
    if (graph.nodes()[n].phase == Phase::kForward && may[n] && after[n] && before[n]) {
      nodes.push_back(static_cast<NodeId>(n));
    }
  }
  return mode_of(outline, nodes);
}

}  // namespace cleave
