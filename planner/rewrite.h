// Changes to a traced graph that leave what it computes alone: what the backward computes again
// instead of keeping it, and where the model is cut into pipeline chunks. The planner chooses them;
// the rewritten graph is then placed, lowered and run like any other.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "graph/graph.h"

namespace cleave {

struct Rewrite {
  // Nodes of the forward (of the traced graph) that the backward computes again. Ascending.
  std::vector<NodeId> remade;
  // The first node of the forward of every chunk but the first. Ascending; empty: one chunk.
  std::vector<NodeId> cuts;

  bool empty() const { return remade.empty() && cuts.empty(); }
  bool operator==(const Rewrite&) const = default;
};

struct RewrittenGraph {
  Graph graph;
  // By node of the new graph: the chunk that runs it. A transfer (OpDef::transfer) belongs to the
  // chunk that receives.
  std::vector<int32_t> chunk_of;
  // By node of the new graph: the node of the traced one that it is or repeats; kNoNode: added.
  std::vector<NodeId> origin;
};

// Throws InternalError when a remade node is not of the forward, or a cut is not.
RewrittenGraph rewritten(const Graph& traced, const Rewrite& rewrite);

}  // namespace cleave
