#include "planner/made_once.h"

#include <algorithm>
#include <set>

#include "planner/cut.h"

namespace cleave {

std::vector<bool> made_once(const Graph& graph) {
  std::vector<bool> next(graph.values().size(), false);  // of a source
  for (const Source& s : graph.sources()) {
    if (s.final != s.value) next[static_cast<size_t>(s.final)] = true;
  }
  std::vector<bool> result(graph.nodes().size(), false);
  const auto lasts = [&](Value v) {
    const NodeId producer = graph.value(v).producer;
    if (producer != kNoNode) return static_cast<bool>(result[static_cast<size_t>(producer)]);
    const Source* s = graph.source_of(v);
    if (s == nullptr || s->kind != SourceKind::kParameter) return false;
    const NodeId writer = graph.value(s->final).producer;
    return writer == kNoNode || graph.node(writer).phase == Phase::kUpdate;
  };
  for (size_t n = 0; n < result.size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.op->transfer) {
      const NodeId maker = graph.value(node.inputs[0]).producer;
      result[n] = sent_once(graph, node) || (node.phase == Phase::kForward && maker != kNoNode &&
                                             result[static_cast<size_t>(maker)]);
      continue;
    }
    if (graph.micro_batches <= 1 || node.phase != Phase::kForward || node.op->view != nullptr) {
      continue;
    }
    const bool ends = std::any_of(node.outputs.begin(), node.outputs.end(),
                                  [&](Value v) { return next[static_cast<size_t>(v)]; });
    const bool writes =
        std::any_of(node.writes.begin(), node.writes.end(), [](Value v) { return v != kNoValue; });
    result[n] = !ends && !writes && !node.inputs.empty() &&
                std::all_of(node.inputs.begin(), node.inputs.end(), lasts);
  }
  return result;
}

std::vector<std::vector<Value>> copies_made_once(const Graph& graph) {
  const std::vector<bool> once = made_once(graph);
  std::vector<std::set<int32_t>> made_of(graph.values().size());  // by value: parameters
  std::vector<std::vector<Value>> copies(graph.sources().size());
  std::vector<bool> otherwise(graph.sources().size(), false);  // read as it is
  std::vector<bool> listed(graph.values().size(), false);
  for (size_t s = 0; s < graph.sources().size(); ++s) {
    if (graph.sources()[s].kind != SourceKind::kParameter) continue;
    made_of[static_cast<size_t>(graph.sources()[s].value)].insert(static_cast<int32_t>(s));
  }
  for (size_t n = 0; n < once.size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.phase == Phase::kUpdate) continue;
    for (Value v : node.inputs) {
      const auto i = static_cast<size_t>(v);
      for (int32_t s : made_of[i]) {
        if (once[n]) {
          for (Value out : node.outputs) made_of[static_cast<size_t>(out)].insert(s);
        } else if (graph.value(v).source >= 0) {
          otherwise[static_cast<size_t>(s)] = true;
        } else if (!listed[i]) {
          copies[static_cast<size_t>(s)].push_back(v);
        }
      }
      listed[i] = listed[i] || !once[n];
    }
  }
  for (size_t s = 0; s < copies.size(); ++s) {
    if (otherwise[s]) copies[s].clear();
  }
  return copies;
}

std::vector<Adding> addings(const Graph& graph) {
  std::vector<Adding> result(graph.nodes().size(), Adding::kNone);
  std::vector<int32_t> readers(graph.values().size(), 0);
  for (const Node& node : graph.nodes()) {
    for (Value v : node.inputs) ++readers[static_cast<size_t>(v)];
  }
  for (const Source& s : graph.sources()) {
    const NodeId adder = graph.value(s.final).producer;
    if (s.kind != SourceKind::kAccumulator || adder == kNoNode) continue;
    const Node& add = graph.node(adder);
    if (add.inputs.size() != 2 || add.inputs[0] != s.value) continue;
    const NodeId widener = graph.value(add.inputs[1]).producer;
    if (widener == kNoNode || readers[static_cast<size_t>(add.inputs[1])] != 1) continue;
    const Node& widen = graph.node(widener);
    if (widen.inputs.size() != 1 || widen.outputs.size() != 1 || widen.op->view != nullptr ||
        widen.op->transfer || widen.phase != Phase::kBackward) {
      continue;
    }
    const TensorType &from = graph.type(widen.inputs[0]), &to = graph.type(widen.outputs[0]);
    if (from.shape != to.shape || size_of(from.dtype) >= size_of(to.dtype)) continue;
    result[static_cast<size_t>(adder)] = Adding::kAdds;
    result[static_cast<size_t>(widener)] = Adding::kWidens;
  }
  return result;
}

}  // namespace cleave
