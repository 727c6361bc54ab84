// Dependencies against an oracle that follows every single element.
#include "graph/dependencies.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "graph/element_set.h"
#include "tests/graph_test_ops.h"

namespace cleave {

void PrintTo(const Dependency& d, std::ostream* out) {
  *out << fmt::format("{} -> {} {}", d.before, d.after, name_of(d.kind));
}

namespace {

namespace op = test_ops;

std::vector<int64_t> elements(const Geometry& g) {
  std::vector<int64_t> result = {g.offset};
  for (size_t d = 0; d < g.shape.size(); ++d) {
    std::vector<int64_t> next;
    for (int64_t e : result) {
      for (int64_t i = 0; i < g.shape[d]; ++i) next.push_back(e + i * g.strides[d]);
    }
    result = std::move(next);
  }
  return result;
}

// --- Element sets --------------------------------------------------------------------------------

Geometry random_view(std::mt19937& random, bool chain) {
  const auto pick = [&](int64_t n) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
  };
  if (chain) {  // slices of a [4, 6, 8] tensor, some dimensions joined, in any order
    Geometry g{0, {4, 6, 8}, {48, 8, 1}};
    if (pick(3) == 0) g = {0, {24, 8}, {8, 1}};
    if (pick(3) == 0) g = {0, {4, 48}, {48, 1}};
    if (pick(4) == 0) g = {0, {192}, {1}};
    for (size_t d = 0; d < g.shape.size(); ++d) {
      const int64_t start = pick(g.shape[d]), step = 1 + pick(2);
      g.offset += start * g.strides[d];
      g.shape[d] = 1 + pick((g.shape[d] - start - 1) / step + 1);
      g.strides[d] *= step;
    }
    if (g.shape.size() > 1 && pick(2) == 0) {
      std::swap(g.shape[0], g.shape[1]), std::swap(g.strides[0], g.strides[1]);
    }
    return g;
  }
  Geometry g{pick(20), {}, {}};
  for (int64_t d = pick(4); d > 0; --d) {
    g.shape.push_back(1 + pick(5));
    g.strides.push_back(pick(9));
  }
  return g;
}

std::set<int64_t> as_set(const Geometry& g) {
  const auto list = elements(g);
  return {list.begin(), list.end()};
}

TEST(ElementSet, OverlapAndSubtractAgreeWithEnumeration) {
  std::mt19937 random(1);
  int overlaps = 0, disjoint = 0, boxes = 0;
  for (int round = 0; round < 4000; ++round) {
    const bool chain = round % 2 == 0;
    std::vector<Geometry> views;
    for (int v = 0; v < 4; ++v) views.push_back(random_view(random, chain));
    const ElementGrid grid(views);
    ElementSet rest = grid.set(views[0]);
    std::set<int64_t> expected = as_set(views[0]);
    for (int v = 1; v < 4; ++v) {
      const ElementSet other = grid.set(views[static_cast<size_t>(v)]);
      ASSERT_TRUE(other.exact);
      boxes += !other.empty() && other.boxes[0].size() > 1;
      const std::set<int64_t> what = as_set(views[static_cast<size_t>(v)]);
      std::set<int64_t> left;
      for (int64_t e : expected) {
        if (!what.contains(e)) left.insert(e);
      }
      ASSERT_EQ(overlap(rest, other), left.size() < expected.size()) << "round " << round;
      ASSERT_EQ(overlap(other, rest), left.size() < expected.size());
      (left.size() < expected.size() ? overlaps : disjoint) += 1;
      subtract(rest, other);
      expected = std::move(left);
      ASSERT_EQ(rest.empty(), expected.empty()) << "round " << round;
    }
  }
  EXPECT_GT(overlaps, 1000);
  EXPECT_GT(disjoint, 1000);
  EXPECT_GT(boxes, 2000);  // not everything by runs
}

// Far beyond enumeration: every other column, of 2^40 elements.
TEST(ElementSet, LargeViewsAreBoxes) {
  const int64_t rows = int64_t{1} << 20, columns = int64_t{1} << 20;
  const Geometry even{0, {rows, columns / 2}, {columns, 2}};
  const Geometry odd{1, {rows, columns / 2}, {columns, 2}};
  const Geometry all{0, {rows, columns}, {columns, 1}};
  const ElementGrid grid(std::vector<Geometry>{even, odd, all});
  EXPECT_FALSE(overlap(grid.set(even), grid.set(odd)));
  ElementSet rest = grid.set(all);
  subtract(rest, grid.set(even));
  EXPECT_TRUE(overlap(rest, grid.set(odd)));
  EXPECT_FALSE(overlap(rest, grid.set(even)));
  subtract(rest, grid.set(odd));
  EXPECT_TRUE(rest.empty());
}

// Strides 2 and 3 have no common boxes; too many runs are one interval, and overlap is assumed.
TEST(ElementSet, InexactBeyondTheLimit) {
  const Geometry even{0, {200000}, {2}}, third{1, {200000}, {3}}, after{600001, {10}, {1}};
  const ElementGrid grid(std::vector<Geometry>{even, third, after});
  EXPECT_FALSE(grid.set(even).exact);
  EXPECT_TRUE(overlap(grid.set(even), grid.set(third)));
  EXPECT_FALSE(overlap(grid.set(third), grid.set(after)));
  ElementSet rest = grid.set(after);
  subtract(rest, grid.set(third));
  EXPECT_FALSE(rest.empty());
}

// --- Dependencies --------------------------------------------------------------------------------

// Follows every element: who wrote it as which version, and who read it since.
std::vector<Dependency> oracle(const Graph& graph, const std::vector<bool>& counts) {
  struct Element {
    std::vector<std::pair<int32_t, NodeId>> writes;  // (version, node)
    std::vector<NodeId> readers;                     // since the last write
  };
  std::map<std::pair<int32_t, int64_t>, Element> memory;
  std::map<std::pair<NodeId, NodeId>, DependencyKind> pairs;
  const auto put = [&](NodeId before, NodeId after, DependencyKind kind) {
    if (before == after) return;
    const auto [at, fresh] = pairs.emplace(std::pair{before, after}, kind);
    if (!fresh && kind < at->second) at->second = kind;
  };
  for (NodeId n = 0; n < static_cast<NodeId>(graph.nodes().size()); ++n) {
    const Node& node = graph.node(n);
    const ValueInfo& first_out = graph.value(node.outputs[0]);
    const bool view = node.op->view != nullptr && node.overwrites(0) == kNoValue &&
                      first_out.storage == graph.value(node.inputs[0]).storage;
    if (view || !counts[static_cast<size_t>(n)]) continue;
    const bool through_slice = node.op == &op::write_slice && node.overwrites(0) != kNoValue &&
                               node.overwrites(0) == node.inputs[0];
    for (size_t i = through_slice ? 1 : 0; i < node.inputs.size(); ++i) {
      const ValueInfo& v = graph.value(node.inputs[i]);
      for (int64_t e : elements(v.geometry)) {
        Element& element = memory[{v.storage, e}];
        NodeId writer = kNoNode;
        bool newer = false;
        for (const auto& [version, by] : element.writes) {
          if (version <= v.version) writer = by;
          newer |= version > v.version;
        }
        if (writer != kNoNode) put(writer, n, DependencyKind::kReadAfterWrite);
        if (!newer) element.readers.push_back(n);
      }
    }
    for (Value out : node.outputs) {
      const ValueInfo& v = graph.value(out);
      Geometry g = v.geometry;
      if (through_slice) {
        const auto in = graph.input_types(node);
        g = (*op::slice_view(Graph::call(node, in), g))[0];
      }
      const auto touched = elements(g);
      for (int64_t e : std::set<int64_t>(touched.begin(), touched.end())) {
        Element& element = memory[{v.storage, e}];
        if (!element.writes.empty()) {
          put(element.writes.back().second, n, DependencyKind::kWriteAfterWrite);
        }
        for (NodeId r : element.readers) put(r, n, DependencyKind::kWriteAfterRead);
        element.readers.clear();
        element.writes.emplace_back(v.version, n);
      }
    }
  }
  const size_t size = graph.nodes().size();
  std::vector<std::vector<bool>> reach(size, std::vector<bool>(size, false));
  for (const auto& [pair, kind] : pairs) {
    reach[static_cast<size_t>(pair.first)][static_cast<size_t>(pair.second)] = true;
  }
  for (size_t k = 0; k < size; ++k) {
    for (size_t a = 0; a < size; ++a) {
      for (size_t b = 0; b < size; ++b) {
        if (reach[a][k] && reach[k][b]) reach[a][b] = true;
      }
    }
  }
  std::vector<Dependency> result;
  for (NodeId after = 0; after < static_cast<NodeId>(size); ++after) {
    for (NodeId before = 0; before < after; ++before) {
      const auto at = pairs.find({before, after});
      bool implied = false;
      for (size_t k = 0; k < size; ++k) {
        implied |= reach[static_cast<size_t>(before)][k] && reach[k][static_cast<size_t>(after)];
      }
      if (at != pairs.end() && !implied) result.push_back({before, after, at->second});
    }
  }
  return result;
}

// A program of views, pointwise ops, in-place ops and writes through slices on two-dimensional
// values. `stale`: values are also read after their storage moved on.
Graph random_program(std::mt19937& random, int nodes, bool stale) {
  const auto pick = [&](int64_t n) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
  };
  Graph g;
  std::vector<Value> pool;
  for (int s = 0; s < 2; ++s) {
    pool.push_back(
        g.add_source(op::source(fmt::format("s{}", s), SourceKind::kState), {DType::kF32, {4, 6}}));
  }
  const auto current = [&](Value v) {
    return g.value(v).version == g.newest_version(g.value(v).storage);
  };
  const auto any = [&](bool newest) {
    while (true) {
      const Value v = pool[static_cast<size_t>(pick(static_cast<int64_t>(pool.size())))];
      if (current(v) || (!newest && stale)) return v;
    }
  };
  const auto matching = [&](Value like) {  // pool always holds `like` itself
    while (true) {
      const Value v = any(false);
      if (g.type(v) == g.type(like)) return v;
    }
  };
  while (static_cast<int>(g.nodes().size()) < nodes) {
    const int64_t what = pick(8);
    const Value x = any(what >= 4);
    const Shape shape = g.type(x).shape;
    const bool rows = pick(2) == 0;
    const int64_t size = shape[rows ? 0 : 1];
    const int64_t start = pick(size), step = 1 + pick(3);
    const int64_t length = 1 + pick((size - start - 1) / step + 1);
    const Attrs bounds = {{"start", start}, {"step", step}, {"Y", length}};
    Value out = kNoValue;
    if (what <= 1) {
      out = g.add1(op::slice, {x}, rows ? "Xc->Yc" : "aX->aY", bounds);
    } else if (what == 2) {
      out = g.add1(op::transpose, {x}, "ab->ba");
    } else if (what == 3) {
      out = g.add1(op::mul, {x, matching(x)});
    } else if (what == 4) {
      out = g.add1(op::add, {x, matching(x)}, {}, {}, {x});
    } else if (what == 5) {
      const Value from = matching(x);
      out = g.add1(op::copy, {from}, {}, {}, {x});
    } else {
      const Value part = g.add1(op::slice, {x}, rows ? "Xc->Yc" : "aX->aY", bounds);
      const Value u = g.add1(op::gelu, {part});
      const bool in_place = pick(4) != 0;
      out = g.add1(op::write_slice, {x, u}, rows ? "Xc,Yc->Xc" : "aX,aY->aX", bounds,
                   in_place ? std::vector<Value>{x} : std::vector<Value>{});
    }
    pool.push_back(out);
  }
  return g;
}

TEST(Dependencies, RandomProgramsAgreeWithEveryElement) {
  std::mt19937 random(2);
  std::map<DependencyKind, int> kinds;
  for (int round = 0; round < 600; ++round) {
    Graph g = random_program(random, 3 + round % 20, round % 3 == 0);
    if (round % 4 == 0) g.add_output("y", g.nodes().back().outputs[0]);
    const auto live = round % 4 == 0 ? live_nodes(g) : std::vector<bool>(g.nodes().size(), true);
    const auto found = dependencies(g);
    ASSERT_EQ(found, oracle(g, live)) << "round " << round;
    for (const Dependency& d : found) ++kinds[d.kind];
  }
  for (const auto& [kind, count] : kinds) EXPECT_GT(count, 50) << name_of(kind);
  EXPECT_EQ(kinds.size(), 3u);
}

TEST(Dependencies, ViewsOrderNothingAndDisjointPartsAreFree) {
  Graph g;
  const Value x = g.add_source(op::source("x"), {DType::kF32, {8, 4}});
  const Value h = g.add1(op::gelu, {x});                                                      // 0
  const Value top = g.add1(op::slice, {h}, "Xc->Yc", {{"start", 0}, {"step", 1}, {"Y", 4}});  // 1
  const Value low = g.add1(op::slice, {h}, "Xc->Yc", {{"start", 4}, {"step", 1}, {"Y", 4}});  // 2
  g.add1(op::gelu, {low});                                                                    // 3
  const Value one = g.add1(op::gelu, {top}, {}, {}, {top});                                   // 4
  g.add1(op::gelu, {low});                                                                    // 5
  g.add1(op::add, {one, low});                                                                // 6
  g.add1(op::copy, {one}, {}, {}, {one});                                                     // 7
  using enum DependencyKind;
  const std::vector<Dependency> expected = {{0, 3, kReadAfterWrite},
                                            {0, 4, kReadAfterWrite},
                                            {0, 5, kReadAfterWrite},
                                            {4, 6, kReadAfterWrite},
                                            {6, 7, kWriteAfterRead}};
  EXPECT_EQ(dependencies(g), expected);
}

TEST(Dependencies, DeadWritesOrderNothingOnceOutputsAreDeclared) {
  Graph g;
  const Value x = g.add_source(op::source("x"), {DType::kF32, {8}});
  const Value h = g.add1(op::gelu, {x});                  // 0
  const Value dead = g.add1(op::gelu, {x}, {}, {}, {h});  // 1: overwritten unread
  const Value y = g.add1(op::gelu, {x}, {}, {}, {dead});  // 2
  using enum DependencyKind;
  const std::vector<Dependency> all = {{0, 1, kWriteAfterWrite}, {1, 2, kWriteAfterWrite}};
  EXPECT_EQ(dependencies(g), all);
  g.add_output("y", y);
  EXPECT_TRUE(dependencies(g).empty());
}

}  // namespace
}  // namespace cleave
