#include "planner/offload.h"

#include <algorithm>

#include "planner/cost.h"

namespace cleave {
namespace {

// Fewer elements are not worth a copy: counters, scales.
constexpr int64_t kFewestElements = 1024;

}  // namespace

bool can_be_offloaded(const Graph& graph, const Source& source) {
  if (source.kind != SourceKind::kState || source.final == source.value ||
      numel(graph.type(source.value).shape) < kFewestElements) {
    return false;
  }
  const auto is_output = [&](const Output& o) {
    return o.value == source.value || o.value == source.final;
  };
  if (std::any_of(graph.outputs().begin(), graph.outputs().end(), is_output)) return false;
  const auto ends_here = [&](const Source& s) { return &s != &source && s.final == source.value; };
  if (std::any_of(graph.sources().begin(), graph.sources().end(), ends_here)) return false;
  const NodeId producer = graph.value(source.final).producer;
  if (producer == kNoNode || graph.node(producer).phase != Phase::kUpdate) return false;
  return std::all_of(graph.nodes().begin(), graph.nodes().end(), [&](const Node& n) {
    return n.phase == Phase::kUpdate ||
           std::find(n.inputs.begin(), n.inputs.end(), source.value) == n.inputs.end();
  });
}

double offload_seconds(const Cluster& cluster, double bytes) {
  return 2 * host_copy_seconds(cluster, bytes);
}

}  // namespace cleave
