#include "planner/outline.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <tuple>
#include <unordered_map>

#include "graph/error.h"
#include "planner/rewrite.h"

namespace cleave {
namespace {

// The classes of the values that pass from one repeated layer of the forward to the next.
std::vector<ClassId> width_classes(const Graph& graph, const Dimensions& dims) {
  std::vector<ClassId> width;
  for (const Repeat& r : repeats(graph)) {
    for (NodeId n = r.first + r.period; n < r.end(); ++n) {
      for (Value v : graph.node(n).inputs) {
        const NodeId producer = graph.value(v).producer;
        if (producer < r.first || (producer - r.first) / r.period + 1 != (n - r.first) / r.period) {
          continue;
        }
        for (const ValueAtom& a : dims.values[static_cast<size_t>(v)]) {
          if (dims.classes[static_cast<size_t>(a.dimension_class)].role.empty()) {
            width.push_back(a.dimension_class);
          }
        }
      }
    }
  }
  std::sort(width.begin(), width.end());
  width.erase(std::unique(width.begin(), width.end()), width.end());
  return width;
}

std::vector<ClassId> indexed_classes(const Graph& graph, const Dimensions& dims) {
  std::vector<ClassId> indexed;
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    // Updates may be told where in a parameter they are; that makes none of its dimensions one that
    // the model looks things up along.
    if (node.phase == Phase::kUpdate) continue;
    for (size_t f = 0; f < node.extents.size(); ++f) {
      if (!node.signature->factors()[f].indexed) continue;
      for (const Atom& a : dims.factors[n][f]) indexed.push_back(a.dimension_class);
    }
  }
  std::sort(indexed.begin(), indexed.end());
  indexed.erase(std::unique(indexed.begin(), indexed.end()), indexed.end());
  return indexed;
}

// By repeat: whether placement pins say of one inner copy what they do not say of another.
std::vector<bool> pinned_unlike(const Graph& graph, const std::vector<Repeat>& runs,
                                const Layers& layers, const Pins& pins) {
  std::vector<bool> unlike(runs.size(), false);
  if (pins.placements.empty()) return unlike;
  // The place of a source among those of its copy.
  std::vector<int32_t> place(graph.sources().size(), 0);
  std::map<std::pair<int32_t, int32_t>, int32_t> count;
  for (size_t s = 0; s < place.size(); ++s) {
    const Layer& l = layers.sources[s];
    place[s] = count[{l.repeat, l.copy}]++;
  }
  using Said = std::tuple<const PlacementPin*, bool, int32_t>;  // of a source, and its place
  std::map<std::pair<int32_t, int32_t>, std::set<Said>> said;   // by repeat, copy
  for (const ValuePin& p : value_pins(pins, graph)) {
    const ValueInfo& info = graph.value(p.value);
    const bool source = info.source >= 0;
    const Layer& l = source ? layers.sources[static_cast<size_t>(info.source)]
                            : layers.nodes[static_cast<size_t>(info.producer)];
    if (l.repeat < 0) continue;
    const Repeat& r = runs[static_cast<size_t>(l.repeat)];
    said[{l.repeat, l.copy}].emplace(
        p.pin, source,
        source ? place[static_cast<size_t>(info.source)] : (info.producer - r.first) % r.period);
  }
  for (size_t r = 0; r < runs.size(); ++r) {
    const auto of = [&](int32_t copy) { return said[{static_cast<int32_t>(r), copy}]; };
    for (int32_t c = 2; c + 1 < runs[r].count; ++c) {
      if (of(c) != of(1)) unlike[r] = true;
    }
  }
  return unlike;
}

}  // namespace

Restrictions restrictions_of(const Graph& graph, const Dimensions& dims) {
  Restrictions r;
  r.batch = dims.class_with_role("batch");
  r.sequence = dims.class_with_role("sequence");
  r.width = width_classes(graph, dims);
  r.indexed = indexed_classes(graph, dims);
  std::erase_if(r.indexed, [&](ClassId c) {
    return c == r.batch || c == r.sequence ||
           std::find(r.width.begin(), r.width.end(), c) != r.width.end();
  });
  return r;
}

bool looks_up_in_layers(const Outline& outline, const PreparedGraph& prepared) {
  const std::vector<ClassId>& indexed = prepared.restrictions.indexed;
  for (size_t n = 0; n < prepared.graph->nodes().size(); ++n) {
    if (outline.pieces[static_cast<size_t>(prepared.piece_of[n])].repeat < 0) continue;
    for (const auto& factor : prepared.dimensions->factors[n]) {
      for (const Atom& a : factor) {
        if (std::find(indexed.begin(), indexed.end(), a.dimension_class) != indexed.end()) {
          return true;
        }
      }
    }
  }
  return false;
}

Outline outline_of(std::shared_ptr<const Graph> graph, const Pins& pins) {
  Outline outline;
  const std::vector<Repeat> runs = repeats(*graph);
  const Layers layers = layers_of(*graph, runs);
  outline.pieces = pieces_of(*graph, runs);
  outline.piece_of = pieces_of_nodes(*graph, outline.pieces);
  outline.folded =
      fold(*graph, runs, layers, outline.pieces, pinned_unlike(*graph, runs, layers, pins));
  outline.graph = std::move(graph);
  return outline;
}

std::vector<NodeId> Outline::nodes_of(const RemakeMode& mode,
                                      const std::vector<bool>& chosen) const {
  std::vector<NodeId> nodes;
  for (size_t p = 0; p < pieces.size() && !mode.empty(); ++p) {
    if (!chosen[p]) continue;
    for (int32_t place : mode.places[static_cast<size_t>(pieces[p].like)]) {
      nodes.push_back(pieces[p].first + place);
    }
  }
  return nodes;
}

std::vector<NodeId> Outline::nodes_of(const RemakeMode& mode) const {
  return nodes_of(mode, std::vector<bool>(pieces.size(), true));
}

PreparedGraph prepare_folded(const Outline& outline, const RemakeMode& mode) {
  const FoldedGraph& folded = outline.folded;
  std::unordered_map<NodeId, NodeId> folded_node;
  for (size_t n = 0; n < folded.origin.size(); ++n) {
    folded_node[folded.origin[n]] = static_cast<NodeId>(n);
  }
  Rewrite rewrite;
  for (NodeId n : outline.nodes_of(mode)) {
    if (const auto at = folded_node.find(n); at != folded_node.end()) {
      rewrite.remade.push_back(at->second);
    }
  }
  std::sort(rewrite.remade.begin(), rewrite.remade.end());
  RewrittenGraph made = rewritten(folded.graph, rewrite);
  PreparedGraph result;
  std::vector<NodeId> moved(folded.origin.size(), kNoNode);  // of the folded graph, but copies
  for (size_t n = 0; n < made.origin.size(); ++n) {
    const NodeId from = made.origin[n];
    CLEAVE_ASSERT(from != kNoNode, "recomputation adds copies only");
    result.group_of.push_back(folded.group_of[static_cast<size_t>(from)]);
    result.piece_of.push_back(
        outline.piece_of[static_cast<size_t>(folded.origin[static_cast<size_t>(from)])]);
    const bool copy = made.graph.nodes()[n].phase != folded.graph.node(from).phase;
    const NodeId twin = copy ? kNoNode : folded.twins[static_cast<size_t>(from)];
    if (!copy) moved[static_cast<size_t>(from)] = static_cast<NodeId>(n);
    result.twins.push_back(twin == kNoNode ? kNoNode : moved[static_cast<size_t>(twin)]);
  }
  for (const ValueInfo& info : made.graph.values()) {
    if (info.producer == kNoNode) {
      const std::string& name = made.graph.sources()[static_cast<size_t>(info.source)].name;
      const Value old = folded.graph.source_named(name)->value;
      result.group_of_value.push_back(folded.group_of_value[static_cast<size_t>(old)]);
      continue;
    }
    const NodeId from = made.origin[static_cast<size_t>(info.producer)];
    const bool copy = made.graph.node(info.producer).phase != folded.graph.node(from).phase;
    const Value old = folded.graph.node(from).outputs[static_cast<size_t>(info.output)];
    result.group_of_value.push_back(copy ? folded.group_of[static_cast<size_t>(from)]
                                         : folded.group_of_value[static_cast<size_t>(old)]);
  }
  result.graph = std::make_shared<const Graph>(std::move(made.graph));
  result.dimensions = std::make_shared<const Dimensions>(find_dimensions(*result.graph));
  result.restrictions = restrictions_of(*result.graph, *result.dimensions);
  return result;
}

PreparedGraph prepare(const Outline& outline, std::shared_ptr<const Graph> graph,
                      const std::vector<NodeId>& origin) {
  PreparedGraph result;
  for (size_t n = 0; n < origin.size(); ++n) {
    // What was added (a transfer, a sum) belongs where its first operand is made.
    int32_t piece = 0;
    if (origin[n] != kNoNode) {
      piece = outline.piece_of[static_cast<size_t>(origin[n])];
    } else if (!graph->nodes()[n].inputs.empty()) {
      const NodeId producer = graph->value(graph->nodes()[n].inputs[0]).producer;
      if (producer != kNoNode) piece = result.piece_of[static_cast<size_t>(producer)];
    }
    result.piece_of.push_back(piece);
  }
  result.dimensions = std::make_shared<const Dimensions>(find_dimensions(*graph));
  result.restrictions = restrictions_of(*graph, *result.dimensions);
  result.graph = std::move(graph);
  return result;
}

PreparedGraph prepare(const Outline& outline) {
  std::vector<NodeId> origin(outline.graph->nodes().size());
  std::iota(origin.begin(), origin.end(), NodeId{0});
  return prepare(outline, outline.graph, origin);
}

}  // namespace cleave
