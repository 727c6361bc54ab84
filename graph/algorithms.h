// Graph algorithms on plain edge lists. Boost.Graph does most of the work, seen by algorithms.cc
// only. Results depend on the edges' order in no way but where said.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace cleave {

struct Edge {
  int32_t from = 0, to = 0;
  auto operator<=>(const Edge&) const = default;
};

// Vertices are 0 .. size-1. Parallel edges are allowed; loops are where cycles are.
struct Digraph {
  int32_t size = 0;
  std::vector<Edge> edges;
};

// Every vertex after its predecessors, the smallest possible id first; nothing when there is a
// cycle.
std::optional<std::vector<int32_t>> topological_order(const Digraph& graph);

// For each vertex the last one, other than itself, that all paths from the root pass; -1 for the
// root and for vertices that it does not reach.
std::vector<int32_t> dominators(const Digraph& graph, int32_t root);
// For each vertex the first one, other than itself, that all paths to the exit pass; -1 for the
// exit and for vertices that do not reach it.
std::vector<int32_t> postdominators(const Digraph& graph, int32_t exit);

// Components are numbered by their smallest vertex.
struct Components {
  int32_t count = 0;
  std::vector<int32_t> of;  // by vertex
};
Components weak_components(const Digraph& graph);
Components strong_components(const Digraph& graph);

// The fewest edges with the same paths, sorted, without parallels. InternalError on a cycle.
std::vector<Edge> transitive_reduction(const Digraph& graph);

// The path whose vertices weigh most (weights >= 0), ties broken by smaller ids from the end.
// InternalError on a cycle.
struct LongestPath {
  double weight = 0;
  std::vector<int32_t> vertices;  // in order; empty when the graph is
};
LongestPath longest_path(const Digraph& graph, std::span<const double> weights);

// The cheapest set of edges whose removal leaves no path from source to sink; of several, the one
// nearest to the source. `capacities`: one an edge, >= 0. source != sink.
struct MinCut {
  int64_t capacity = 0;
  std::vector<bool> source_side;  // by vertex; the cut edges lead from true to false
};
MinCut min_cut(const Digraph& graph, std::span<const int64_t> capacities, int32_t source,
               int32_t sink);

}  // namespace cleave
