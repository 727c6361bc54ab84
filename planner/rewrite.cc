#include "planner/rewrite.h"

#include "graph/error.h"

namespace cleave {

RewrittenGraph rewritten(const Graph& traced, const Rewrite& rewrite) {
  CLEAVE_ASSERT(rewrite.empty(), "not built yet");
  RewrittenGraph result{traced, {}, {}};
  for (size_t n = 0; n < traced.nodes().size(); ++n)
    result.origin.push_back(static_cast<NodeId>(n));
  return result;
}

}  // namespace cleave
