// Each algorithm against a naive one, on random graphs.
#include "graph/algorithms.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>

#include "graph/error.h"

namespace cleave {
namespace {

Digraph random_graph(std::mt19937& random, int32_t size, int edges, bool acyclic) {
  Digraph g{size, {}};
  std::vector<int32_t> label(static_cast<size_t>(size));
  std::iota(label.begin(), label.end(), 0);
  std::shuffle(label.begin(), label.end(), random);
  for (int e = 0; e < edges; ++e) {
    int32_t a = static_cast<int32_t>(random() % static_cast<unsigned>(size));
    int32_t b = static_cast<int32_t>(random() % static_cast<unsigned>(size));
    if (acyclic && a == b) continue;
    if (acyclic && a > b) std::swap(a, b);
    g.edges.push_back({label[static_cast<size_t>(a)], label[static_cast<size_t>(b)]});
  }
  return g;
}

// reach[a][b]: there is a path of at least one edge from a to b that avoids vertex `without`.
std::vector<std::vector<bool>> reachable(const Digraph& g, int32_t without = -1) {
  const size_t n = static_cast<size_t>(g.size);
  std::vector<std::vector<bool>> reach(n, std::vector<bool>(n, false));
  for (const Edge& e : g.edges) {
    if (e.from != without && e.to != without) {
      reach[static_cast<size_t>(e.from)][static_cast<size_t>(e.to)] = true;
    }
  }
  for (size_t k = 0; k < n; ++k) {
    for (size_t a = 0; a < n; ++a) {
      for (size_t b = 0; b < n; ++b) {
        if (reach[a][k] && reach[k][b]) reach[a][b] = true;
      }
    }
  }
  return reach;
}

TEST(Algorithms, TopologicalOrderIsTheSmallestOrNone) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    const bool acyclic = round % 2 == 0;
    const Digraph g = random_graph(random, 9, 2 + round % 17, acyclic);
    const auto reach = reachable(g);
    bool cycle = false;
    for (size_t v = 0; v < 9; ++v) cycle |= reach[v][v];
    const auto order = topological_order(g);
    ASSERT_EQ(order.has_value(), !cycle);
    if (cycle) continue;
    // Naive: again and again the smallest vertex whose predecessors are all placed.
    std::vector<int32_t> expected;
    while (expected.size() < 9) {
      for (int32_t v = 0; v < 9; ++v) {
        const auto placed = [&](int32_t u) {
          return std::find(expected.begin(), expected.end(), u) != expected.end();
        };
        if (!placed(v) && std::all_of(g.edges.begin(), g.edges.end(),
                                      [&](const Edge& e) { return e.to != v || placed(e.from); })) {
          expected.push_back(v);
          break;
        }
      }
    }
    EXPECT_EQ(*order, expected);
  }
}

TEST(Algorithms, DominatorsCutAllPaths) {
  std::mt19937 random(2);
  for (int round = 0; round < 200; ++round) {
    const int32_t size = 8;
    const Digraph g = random_graph(random, size, 4 + round % 16, round % 2 == 0);
    const int32_t root = static_cast<int32_t>(random() % 8);
    const auto reach = reachable(g);
    const auto reached = [&](int32_t v) {
      return v == root || reach[static_cast<size_t>(root)][static_cast<size_t>(v)];
    };
    // strict[v]: who dominates v, v excepted. The immediate one is dominated by all the others.
    std::vector<std::vector<int32_t>> strict(static_cast<size_t>(size));
    for (int32_t d = 0; d < size; ++d) {
      const auto without = reachable(g, d);
      for (int32_t v = 0; v < size; ++v) {
        if (v == d || v == root || !reached(v)) continue;
        if (d == root || !without[static_cast<size_t>(root)][static_cast<size_t>(v)]) {
          strict[static_cast<size_t>(v)].push_back(d);
        }
      }
    }
    Digraph reversed{size, {}};
    for (const Edge& e : g.edges) reversed.edges.push_back({e.to, e.from});
    const auto found = dominators(g, root);
    EXPECT_EQ(postdominators(reversed, root), found);
    for (int32_t v = 0; v < size; ++v) {
      int32_t expected = -1;
      for (int32_t d : strict[static_cast<size_t>(v)]) {
        if (strict[static_cast<size_t>(d)].size() + 1 == strict[static_cast<size_t>(v)].size()) {
          expected = d;
        }
      }
      EXPECT_EQ(found[static_cast<size_t>(v)], expected) << "vertex " << v;
    }
  }
}

TEST(Algorithms, ComponentsAreMutualReachability) {
  std::mt19937 random(3);
  for (int round = 0; round < 100; ++round) {
    const int32_t size = 10;
    const Digraph g = random_graph(random, size, 1 + round % 20, false);
    Digraph both = g;
    for (const Edge& e : g.edges) both.edges.push_back({e.to, e.from});
    const auto directed = reachable(g);
    const auto either = reachable(both);
    const Components strong = strong_components(g), weak = weak_components(g);
    for (size_t a = 0; a < 10; ++a) {
      EXPECT_LT(strong.of[a], strong.count);
      EXPECT_LT(weak.of[a], weak.count);
      for (size_t b = 0; b < 10; ++b) {
        EXPECT_EQ(strong.of[a] == strong.of[b], a == b || (directed[a][b] && directed[b][a]));
        EXPECT_EQ(weak.of[a] == weak.of[b], a == b || either[a][b]);
      }
    }
    // Numbered by the smallest vertex: first appearances ascend by one.
    for (const Components& c : {strong, weak}) {
      int32_t next = 0;
      for (int32_t label : c.of) {
        EXPECT_LE(label, next);
        next = std::max(next, label + 1);
      }
      EXPECT_EQ(next, c.count);
    }
  }
}

TEST(Algorithms, TransitiveReductionIsTheLeastWithTheSamePaths) {
  std::mt19937 random(4);
  for (int round = 0; round < 200; ++round) {
    const Digraph g = random_graph(random, 10, round % 40, true);
    const auto reach = reachable(g);
    std::vector<Edge> expected;
    for (int32_t a = 0; a < 10; ++a) {
      for (int32_t b = 0; b < 10; ++b) {
        bool longer = false;
        for (size_t k = 0; k < 10; ++k) {
          longer |= reach[static_cast<size_t>(a)][k] && reach[k][static_cast<size_t>(b)];
        }
        if (reach[static_cast<size_t>(a)][static_cast<size_t>(b)] && !longer) {
          expected.push_back({a, b});
        }
      }
    }
    EXPECT_EQ(transitive_reduction(g), expected);
  }
  EXPECT_THROW(transitive_reduction({2, {{0, 1}, {1, 0}}}), InternalError);
}

// Several blocks of the bit sets, and deep graphs.
TEST(Algorithms, LargeGraphs) {
  constexpr int32_t kSize = 20000;
  Digraph g{kSize, {}};
  std::vector<Edge> chain;
  for (int32_t v = 0; v + 1 < kSize; ++v) chain.push_back({v, v + 1});
  g.edges = chain;
  std::mt19937 random(5);
  for (int i = 0; i < 50000; ++i) {
    int32_t a = static_cast<int32_t>(random() % kSize), b = static_cast<int32_t>(random() % kSize);
    if (a != b) g.edges.push_back({std::min(a, b), std::max(a, b)});
  }
  EXPECT_EQ(transitive_reduction(g), chain);
  const auto idom = dominators({kSize, chain}, 0);
  EXPECT_EQ(idom[kSize - 1], kSize - 2);
  EXPECT_EQ(strong_components(g).count, kSize);
  EXPECT_EQ(longest_path(g, std::vector<double>(kSize, 1)).weight, kSize);
}

TEST(Algorithms, LongestPathAmongAllPaths) {
  std::mt19937 random(6);
  for (int round = 0; round < 100; ++round) {
    const Digraph g = random_graph(random, 9, round % 25, true);
    std::vector<double> weights(9);
    for (double& w : weights) w = static_cast<double>(random() % 10);
    double expected = 0;
    const std::function<void(int32_t, double)> walk = [&](int32_t v, double sum) {
      sum += weights[static_cast<size_t>(v)];
      expected = std::max(expected, sum);
      for (const Edge& e : g.edges) {
        if (e.from == v) walk(e.to, sum);
      }
    };
    for (int32_t v = 0; v < 9; ++v) walk(v, 0);
    const LongestPath path = longest_path(g, weights);
    EXPECT_EQ(path.weight, expected);
    double sum = 0;
    for (size_t i = 0; i < path.vertices.size(); ++i) {
      sum += weights[static_cast<size_t>(path.vertices[i])];
      if (i == 0) continue;
      const Edge step{path.vertices[i - 1], path.vertices[i]};
      EXPECT_NE(std::find(g.edges.begin(), g.edges.end(), step), g.edges.end());
    }
    EXPECT_EQ(sum, expected);
  }
  EXPECT_TRUE(longest_path({}, {}).vertices.empty());
}

TEST(Algorithms, MinCutAmongAllCuts) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    const Digraph g = random_graph(random, 7, 3 + round % 20, round % 2 == 0);
    std::vector<int64_t> capacities(g.edges.size());
    for (int64_t& c : capacities) c = random() % 8;
    const auto price = [&](unsigned side) {
      int64_t sum = 0;
      for (size_t e = 0; e < g.edges.size(); ++e) {
        const bool from = (side >> g.edges[e].from) & 1, to = (side >> g.edges[e].to) & 1;
        if (from && !to) sum += capacities[e];
      }
      return sum;
    };
    int64_t expected = std::numeric_limits<int64_t>::max();
    unsigned smallest = 0;
    for (unsigned side = 0; side < 128; ++side) {
      if ((side & 1) == 0 || (side & 64) != 0 || price(side) > expected) continue;
      // Least sides are closed under intersection.
      smallest = price(side) < expected ? side : smallest & side;
      expected = price(side);
    }
    const MinCut cut = min_cut(g, capacities, 0, 6);
    unsigned side = 0;
    for (size_t v = 0; v < 7; ++v) side |= static_cast<unsigned>(cut.source_side[v]) << v;
    EXPECT_EQ(cut.capacity, expected);
    EXPECT_EQ(side, smallest);
  }
  EXPECT_THROW(min_cut({2, {}}, {}, 1, 1), InternalError);
}

}  // namespace
}  // namespace cleave
