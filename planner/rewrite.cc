#include "planner/rewrite.h"

#include "graph/error.h"
#include "planner/cut.h"
#include "planner/remake.h"

namespace cleave {

RewrittenGraph rewritten(const Graph& traced, const Rewrite& rewrite) {
  RewrittenGraph result;
  if (rewrite.cuts.empty()) {
    result.graph = traced;
    for (size_t n = 0; n < traced.nodes().size(); ++n)
      result.origin.push_back(static_cast<NodeId>(n));
  } else {
    result = cut(traced, rewrite.cuts);
  }
  if (rewrite.remade.empty()) return result;
  // The nodes of the traced graph, where the cut one has them.
  std::vector<NodeId> now(traced.nodes().size(), kNoNode), nodes;
  for (size_t n = 0; n < result.origin.size(); ++n) {
    if (result.origin[n] != kNoNode)
      now[static_cast<size_t>(result.origin[n])] = static_cast<NodeId>(n);
  }
  for (NodeId n : rewrite.remade) {
    CLEAVE_ASSERT(n >= 0 && static_cast<size_t>(n) < now.size(), "there is no node {} to remake",
                  n);
    // A sum over chunks that only the update reads is made there, if it is one node at all: the
    // backward finds nothing of it that could be made again.
    const NodeId here = now[static_cast<size_t>(n)];
    const bool moved = here == kNoNode || result.graph.node(here).phase == Phase::kUpdate;
    if (traced.node(n).phase == Phase::kForward && traced.node(n).op->sums && moved) continue;
    nodes.push_back(here);
  }
  return remade(result, nodes);
}

}  // namespace cleave
