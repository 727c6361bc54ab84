// What there is to show beside a graph itself: where regions are, how values lie on the mesh, and
// where devices must meet. From a plan, or, without one, from the regions that are worth splitting.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"
#include "planner/plan.h"
#include "viz/picture.h"

namespace cleave {

namespace colours {
inline constexpr const char* kSharded = "#b3d4f0";
inline constexpr const char* kPartial = "#fcd58a";
inline constexpr const char* kReplicated = "#dfe2e6";
inline constexpr const char* kPlain = "#f1f4f7";
inline constexpr const char* kAllReduce = "#c0392b";
inline constexpr const char* kAllGather = "#2e7d32";
inline constexpr const char* kReduceScatter = "#7b3fa0";
inline constexpr const char* kAllToAll = "#00707a";
}  // namespace colours

// A place where devices meet. Marks with the same identity are one and the same.
struct Mark {
  std::string identity;
  std::string text;  // "all-reduce tp"
  std::string colour;
  double bytes = 0;
  Phase phase = Phase::kForward;
  bool bundled = false;  // joined with all others of its text
};

struct Annotations {
  std::vector<std::string> region_of_node;               // what is split there; empty: nothing
  std::vector<std::vector<std::string>> fills_of_value;  // colours, one a mesh axis
  std::vector<std::vector<std::vector<Mark>>> on_input;  // by node, input: on the way there
  std::vector<std::vector<Mark>> inside;                 // by node
  std::vector<std::vector<Mark>> on_output;              // by graph output
  std::vector<std::vector<Mark>> on_final;  // by source: on the way to what the next step reads
  std::vector<LegendEntry> legend;
  std::string title;
  std::vector<std::string> subtitle;
};

Annotations annotate(const Graph& graph);
Annotations annotate(const Graph& graph, const Plan& plan);

}  // namespace cleave
