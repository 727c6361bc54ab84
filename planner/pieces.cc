#include "planner/pieces.h"

#include <algorithm>

namespace cleave {
namespace {

// By value: whether it depends on the step's data.
std::vector<bool> made_of_data(const Graph& graph) {
  std::vector<bool> data(graph.values().size(), false);
  for (const Source& s : graph.sources()) {
    data[static_cast<size_t>(s.value)] = s.kind == SourceKind::kData;
  }
  for (const Node& node : graph.nodes()) {
    const bool any = std::any_of(node.inputs.begin(), node.inputs.end(),
                                 [&](Value v) { return data[static_cast<size_t>(v)]; });
    for (Value v : node.outputs) data[static_cast<size_t>(v)] = any;
  }
  return data;
}

// By node of the forward: how many values made of data pass from before it to it or beyond.
std::vector<int32_t> passing_before(const Graph& graph) {
  const std::vector<bool> data = made_of_data(graph);
  std::vector<NodeId> last_reader(graph.values().size(), kNoNode);
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    if (graph.nodes()[n].phase != Phase::kForward) continue;
    for (Value v : graph.nodes()[n].inputs) {
      last_reader[static_cast<size_t>(v)] = static_cast<NodeId>(n);
    }
  }
  std::vector<int32_t> change(graph.nodes().size() + 1, 0);
  for (size_t v = 0; v < last_reader.size(); ++v) {
    const NodeId producer = graph.values()[v].producer;
    if (producer == kNoNode || !data[v] || last_reader[v] <= producer) continue;
    ++change[static_cast<size_t>(producer) + 1];
    --change[static_cast<size_t>(last_reader[v]) + 1];
  }
  for (size_t n = 1; n < change.size(); ++n) change[n] += change[n - 1];
  return change;
}

}  // namespace

std::vector<Piece> pieces_of(const Graph& graph, const std::vector<Repeat>& repeats) {
  const std::vector<int32_t> passing = passing_before(graph);
  std::vector<Piece> pieces;
  int32_t kinds = 0;
  size_t repeat = 0;
  std::vector<int32_t> kind_of_repeat;
  for (size_t r = 0; r < repeats.size(); ++r) kind_of_repeat.push_back(-1);
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const auto id = static_cast<NodeId>(n);
    if (graph.nodes()[n].phase != Phase::kForward) continue;
    while (repeat < repeats.size() && id >= repeats[repeat].end()) ++repeat;
    const bool inside = repeat < repeats.size() && id >= repeats[repeat].first;
    if (inside) {
      const Repeat& r = repeats[repeat];
      if ((id - r.first) % r.period != 0) continue;
      if (kind_of_repeat[repeat] < 0) kind_of_repeat[repeat] = kinds++;
      pieces.push_back(
          {id, static_cast<int32_t>(repeat), (id - r.first) / r.period, kind_of_repeat[repeat]});
    } else if (pieces.empty() || pieces.back().repeat >= 0 || passing[n] <= 1) {
      pieces.push_back({id, -1, -1, kinds++});
    }
  }
  if (pieces.empty()) pieces.push_back({0, -1, -1, 0});  // a step without a forward
  return pieces;
}

std::vector<int32_t> pieces_of_nodes(const Graph& graph, const std::vector<Piece>& pieces) {
  std::vector<int32_t> of(graph.nodes().size(), 0);
  std::vector<int32_t> of_source(graph.sources().size(), -1);
  size_t piece = 0;
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.phase == Phase::kForward) {
      while (piece + 1 < pieces.size() && pieces[piece + 1].first <= static_cast<NodeId>(n)) {
        ++piece;
      }
      of[n] = static_cast<int32_t>(piece);
    } else if (node.follows != kNoNode) {
      of[n] = of[static_cast<size_t>(node.follows)];
    } else {
      NodeId last = kNoNode;
      int32_t source = -1;
      for (Value v : node.inputs) {
        const ValueInfo& info = graph.value(v);
        last = std::max(last, info.producer);
        if (source < 0 && info.source >= 0) source = of_source[static_cast<size_t>(info.source)];
      }
      of[n] = source >= 0 ? source : last != kNoNode ? of[static_cast<size_t>(last)] : 0;
    }
    for (Value v : node.inputs) {
      const int32_t s = graph.value(v).source;
      if (s >= 0 && of_source[static_cast<size_t>(s)] < 0)
        of_source[static_cast<size_t>(s)] = of[n];
    }
  }
  return of;
}

}  // namespace cleave
