#include "graph/algorithms.h"

#include <algorithm>
#include <boost/graph/adjacency_list.hpp>
#include <boost/graph/connected_components.hpp>
#include <boost/graph/dominator_tree.hpp>
#include <boost/graph/push_relabel_max_flow.hpp>
#include <boost/graph/strong_components.hpp>
#include <functional>
#include <queue>

#include "graph/error.h"

namespace cleave {
namespace {

using Directed = boost::adjacency_list<boost::vecS, boost::vecS, boost::bidirectionalS>;
using Undirected = boost::adjacency_list<boost::vecS, boost::vecS, boost::undirectedS>;

template <class BoostGraph>
BoostGraph convert(const Digraph& graph) {
  BoostGraph result(static_cast<size_t>(graph.size));
  for (const Edge& e : graph.edges) {
    CLEAVE_ASSERT(e.from >= 0 && e.from < graph.size && e.to >= 0 && e.to < graph.size,
                  "edge {} -> {} of a graph with {} vertices", e.from, e.to, graph.size);
    boost::add_edge(static_cast<size_t>(e.from), static_cast<size_t>(e.to), result);
  }
  return result;
}

// Renumbers components by their smallest vertex.
Components by_smallest_vertex(const std::vector<int32_t>& label, int32_t count) {
  Components result{count, std::vector<int32_t>(label.size())};
  std::vector<int32_t> number(static_cast<size_t>(count), -1);
  int32_t next = 0;
  for (size_t v = 0; v < label.size(); ++v) {
    int32_t& n = number[static_cast<size_t>(label[v])];
    if (n < 0) n = next++;
    result.of[v] = n;
  }
  return result;
}

// Edges grouped by one end: those of vertex v are at [first[v], first[v + 1]).
struct Adjacency {
  std::vector<size_t> first;
  std::vector<int32_t> other;

  std::span<const int32_t> operator[](int32_t v) const {
    const size_t begin = first[static_cast<size_t>(v)];
    return std::span(other).subspan(begin, first[static_cast<size_t>(v) + 1] - begin);
  }
};

Adjacency group(const Digraph& graph, int32_t Edge::*by, int32_t Edge::*other) {
  Adjacency result{std::vector<size_t>(static_cast<size_t>(graph.size) + 1),
                   std::vector<int32_t>(graph.edges.size())};
  for (const Edge& e : graph.edges) ++result.first[static_cast<size_t>(e.*by) + 1];
  for (size_t v = 1; v < result.first.size(); ++v) result.first[v] += result.first[v - 1];
  std::vector<size_t> next(result.first.begin(), result.first.end() - 1);
  for (const Edge& e : graph.edges) result.other[next[static_cast<size_t>(e.*by)]++] = e.*other;
  return result;
}

std::vector<bool> reachable(const Digraph& graph, int32_t root) {
  const Adjacency successors = group(graph, &Edge::from, &Edge::to);
  std::vector<bool> reached(static_cast<size_t>(graph.size), false);
  reached[static_cast<size_t>(root)] = true;
  for (std::vector<int32_t> open = {root}; !open.empty();) {
    const int32_t v = open.back();
    open.pop_back();
    for (int32_t s : successors[v]) {
      if (reached[static_cast<size_t>(s)]) continue;
      reached[static_cast<size_t>(s)] = true;
      open.push_back(s);
    }
  }
  return reached;
}

Digraph reversed(const Digraph& graph) {
  Digraph result{graph.size, {}};
  result.edges.reserve(graph.edges.size());
  for (const Edge& e : graph.edges) result.edges.push_back({e.to, e.from});
  return result;
}

std::vector<int32_t> order_or_assert(const Digraph& graph) {
  auto order = topological_order(graph);
  CLEAVE_ASSERT(order.has_value(), "the graph has a cycle");
  return *std::move(order);
}

}  // namespace

// Boost's sort is not stable in the vertices' ids, which the traced order needs; hence our own.
std::optional<std::vector<int32_t>> topological_order(const Digraph& graph) {
  const Adjacency successors = group(graph, &Edge::from, &Edge::to);
  std::vector<int32_t> missing(static_cast<size_t>(graph.size), 0);
  for (const Edge& e : graph.edges) ++missing[static_cast<size_t>(e.to)];
  std::priority_queue<int32_t, std::vector<int32_t>, std::greater<>> ready;
  for (int32_t v = 0; v < graph.size; ++v) {
    if (missing[static_cast<size_t>(v)] == 0) ready.push(v);
  }
  std::vector<int32_t> order;
  order.reserve(static_cast<size_t>(graph.size));
  while (!ready.empty()) {
    const int32_t v = ready.top();
    ready.pop();
    order.push_back(v);
    for (int32_t s : successors[v]) {
      if (--missing[static_cast<size_t>(s)] == 0) ready.push(s);
    }
  }
  if (order.size() < missing.size()) return std::nullopt;
  return order;
}

std::vector<int32_t> dominators(const Digraph& graph, int32_t root) {
  // Boost's algorithm is wrong when a vertex has predecessors that the root does not reach.
  const std::vector<bool> reached = reachable(graph, root);
  Digraph part{graph.size, {}};
  for (const Edge& e : graph.edges) {
    if (reached[static_cast<size_t>(e.from)]) part.edges.push_back(e);
  }
  const auto g = convert<Directed>(part);
  constexpr size_t kNone = static_cast<size_t>(-1);
  std::vector<size_t> parent(static_cast<size_t>(graph.size), kNone);
  boost::lengauer_tarjan_dominator_tree(
      g, static_cast<size_t>(root),
      boost::make_iterator_property_map(parent.begin(), boost::get(boost::vertex_index, g)));
  std::vector<int32_t> result(parent.size(), -1);
  for (size_t v = 0; v < parent.size(); ++v) {
    if (parent[v] != kNone) result[v] = static_cast<int32_t>(parent[v]);
  }
  return result;
}

std::vector<int32_t> postdominators(const Digraph& graph, int32_t exit) {
  return dominators(reversed(graph), exit);
}

Components weak_components(const Digraph& graph) {
  const auto g = convert<Undirected>(graph);
  std::vector<int32_t> label(static_cast<size_t>(graph.size));
  if (label.empty()) return {};
  return by_smallest_vertex(label, boost::connected_components(g, label.data()));
}

Components strong_components(const Digraph& graph) {
  const auto g = convert<Directed>(graph);
  std::vector<int32_t> label(static_cast<size_t>(graph.size));
  if (label.empty()) return {};
  const int32_t count = boost::strong_components(
      g, boost::make_iterator_property_map(label.begin(), boost::get(boost::vertex_index, g)));
  return by_smallest_vertex(label, count);
}

// An edge u -> v is implied when another predecessor of v can be reached from u. Which of a block
// of vertices reach a vertex is a bit set; blocks bound the memory. (Boost's version walks all
// pairs of vertices: a minute for a model of 96 layers.)
std::vector<Edge> transitive_reduction(const Digraph& graph) {
  const std::vector<int32_t> order = order_or_assert(graph);
  std::vector<int32_t> rank(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    rank[static_cast<size_t>(order[i])] = static_cast<int32_t>(i);
  }
  Digraph ranked{graph.size, {}};
  for (const Edge& e : graph.edges) {
    ranked.edges.push_back({rank[static_cast<size_t>(e.from)], rank[static_cast<size_t>(e.to)]});
  }
  std::sort(ranked.edges.begin(), ranked.edges.end());
  const auto parallel = std::unique(ranked.edges.begin(), ranked.edges.end());
  ranked.edges.erase(parallel, ranked.edges.end());
  const Adjacency before = group(ranked, &Edge::to, &Edge::from);

  constexpr int32_t kBlock = 4096;
  constexpr size_t kWords = kBlock / 64;
  std::vector<Edge> kept;
  std::vector<uint64_t> reach(static_cast<size_t>(graph.size) * kWords);
  for (int32_t low = 0; low < graph.size; low += kBlock) {
    const int32_t high = std::min(graph.size, low + kBlock);
    const auto bits = [&](int32_t v) { return &reach[static_cast<size_t>(v) * kWords]; };
    const auto mask = [&](int32_t u) { return uint64_t{1} << ((u - low) % 64); };
    for (int32_t v = low; v < graph.size; ++v) {
      uint64_t* mine = bits(v);
      std::fill(mine, mine + kWords, 0);
      for (int32_t u : before[v]) {
        if (u < low) continue;
        for (size_t w = 0; w < kWords; ++w) mine[w] |= bits(u)[w];
      }
      // So far `mine` holds the vertices with a path to v of two edges or more.
      for (int32_t u : before[v]) {
        if (u < low || u >= high) continue;
        uint64_t& word = mine[(u - low) / 64];
        if ((word & mask(u)) == 0) {
          kept.push_back({order[static_cast<size_t>(u)], order[static_cast<size_t>(v)]});
        }
      }
      for (int32_t u : before[v]) {
        if (u >= low && u < high) mine[(u - low) / 64] |= mask(u);
      }
    }
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

LongestPath longest_path(const Digraph& graph, std::span<const double> weights) {
  CLEAVE_ASSERT(weights.size() == static_cast<size_t>(graph.size), "one weight a vertex");
  const std::vector<int32_t> order = order_or_assert(graph);
  const Adjacency before = group(graph, &Edge::to, &Edge::from);
  std::vector<double> best(weights.begin(), weights.end());
  std::vector<int32_t> from(weights.size(), -1);
  for (int32_t v : order) {
    double top = 0;
    int32_t& f = from[static_cast<size_t>(v)];
    for (int32_t u : before[v]) {
      const double b = best[static_cast<size_t>(u)];
      if (f < 0 || b > top || (b == top && u < f)) top = b, f = u;
    }
    best[static_cast<size_t>(v)] += top;
  }
  LongestPath result;
  if (best.empty()) return result;
  const auto last = std::max_element(best.begin(), best.end());
  result.weight = *last;
  for (int32_t v = static_cast<int32_t>(last - best.begin()); v >= 0;
       v = from[static_cast<size_t>(v)]) {
    result.vertices.push_back(v);
  }
  std::reverse(result.vertices.begin(), result.vertices.end());
  return result;
}

MinCut min_cut(const Digraph& graph, std::span<const int64_t> capacities, int32_t source,
               int32_t sink) {
  CLEAVE_ASSERT(capacities.size() == graph.edges.size(), "one capacity an edge");
  CLEAVE_ASSERT(source != sink, "source and sink are both {}", source);
  using Traits = boost::adjacency_list_traits<boost::vecS, boost::vecS, boost::directedS>;
  struct Arc {
    int64_t capacity = 0, residual = 0;
    Traits::edge_descriptor reverse;
  };
  using Network =
      boost::adjacency_list<boost::vecS, boost::vecS, boost::directedS, boost::no_property, Arc>;
  const size_t size = static_cast<size_t>(graph.size);
  Network net(size);
  for (size_t e = 0; e < graph.edges.size(); ++e) {
    const auto [from, to] = graph.edges[e];
    if (from == to) continue;
    const auto there =
        boost::add_edge(static_cast<size_t>(from), static_cast<size_t>(to), net).first;
    const auto back =
        boost::add_edge(static_cast<size_t>(to), static_cast<size_t>(from), net).first;
    net[there].capacity = capacities[e];
    net[there].reverse = back;
    net[back].reverse = there;
  }
  MinCut result;
  result.capacity = boost::push_relabel_max_flow(
      net, static_cast<size_t>(source), static_cast<size_t>(sink), boost::get(&Arc::capacity, net),
      boost::get(&Arc::residual, net), boost::get(&Arc::reverse, net),
      boost::get(boost::vertex_index, net));
  // What the residual network still reaches from the source is the smallest source side.
  result.source_side.assign(size, false);
  result.source_side[static_cast<size_t>(source)] = true;
  for (std::vector<size_t> open = {static_cast<size_t>(source)}; !open.empty();) {
    const size_t v = open.back();
    open.pop_back();
    for (auto [e, end] = boost::out_edges(v, net); e != end; ++e) {
      const size_t to = boost::target(*e, net);
      if (net[*e].residual == 0 || result.source_side[to]) continue;
      result.source_side[to] = true;
      open.push_back(to);
    }
  }
  return result;
}

}  // namespace cleave
