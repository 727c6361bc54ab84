// Every placement and every way between two, against sets of elements and Floyd and Warshall.
#include "planner/redistribution.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <optional>
#include <random>

#include "graph/error.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Range {
  int64_t begin = 0, end = 0;
  bool operator==(const Range&) const = default;
};

struct Case {
  Cluster cluster;
  Mesh mesh;
  std::vector<int64_t> atoms;
  std::vector<int8_t> dims;
  DType dtype = DType::kF32;
  std::vector<Reduction> partials = {Reduction::kSum};
  bool bundled = false;

  PlacementSpace space() const { return {cluster, mesh, atoms, dims, dtype, partials, bundled}; }
};

// The part of each atom that one rank has; nothing when a cut does not divide.
std::optional<std::vector<Range>> parts_of(const Case& c, const Placements& p, int64_t rank) {
  std::vector<Range> parts;
  for (int64_t size : c.atoms) parts.push_back({0, size});
  const std::vector<int64_t> at = c.mesh.coordinates(rank);
  for (size_t a = 0; a < p.size(); ++a) {
    if (!p[a].is_shard()) continue;
    Range& r = parts[static_cast<size_t>(p[a].atom)];
    const int64_t size = r.end - r.begin, n = c.mesh.axes[a].size;
    if (size % n != 0) return std::nullopt;
    r.begin += at[a] * (size / n);
    r.end = r.begin + size / n;
  }
  return parts;
}

double bytes_of(const Case& c, const Placements& p) {
  double bytes = static_cast<double>(size_of(c.dtype));
  const auto parts = parts_of(c, p, 0);
  for (const Range& r : *parts) bytes *= static_cast<double>(r.end - r.begin);
  return bytes;
}

// Whether what the ranks along one axis have under p, put together in their order along p's atom,
// is what each has when that axis is replicated.
bool gathers(const Case& c, const Placements& p, size_t axis) {
  Placements whole = p;
  whole[axis] = Placement::replicate();
  for (int64_t rank = 0; rank < c.mesh.size(); ++rank) {
    const auto target = parts_of(c, whole, rank);
    if (!target) return false;
    const size_t atom = static_cast<size_t>(p[axis].atom);
    int64_t at = (*target)[atom].begin;
    for (int64_t other : c.mesh.group(rank, axis)) {
      std::vector<Range> part = *parts_of(c, p, other);
      if (part[atom].begin != at) return false;
      at = part[atom].end;
      part[atom] = (*target)[atom];
      if (part != *target) return false;
    }
    if (at != (*target)[atom].end) return false;
  }
  return true;
}

// One step from p to q on the only axis where they differ; nothing when it takes several.
std::optional<Step> step_between(const Case& c, const Placements& p, const Placements& q) {
  size_t axis = p.size();
  for (size_t a = 0; a < p.size(); ++a) {
    if (p[a] == q[a]) continue;
    if (axis != p.size()) return std::nullopt;
    axis = a;
  }
  if (axis == p.size()) return std::nullopt;
  // Shards are exchanged as a gather and a cut, each of which must be a plain slice.
  if (p[axis].is_shard() && !gathers(c, p, axis)) return std::nullopt;
  if (q[axis].is_shard() && !gathers(c, q, axis)) return std::nullopt;
  const Placement from = p[axis], to = q[axis];
  const double n = static_cast<double>(c.mesh.axes[axis].size), local = bytes_of(c, p);
  Step s{.kind = StepKind::kSlice, .axis = static_cast<int8_t>(axis), .to = to};
  if (from.is_partial() && to.is_partial()) return std::nullopt;
  if (from.is_partial() && to.is_replicate()) {
    s.kind = StepKind::kAllReduce, s.bytes = 2 * local * (n - 1) / n;
  } else if (from.is_partial()) {
    if (from.reduction == Reduction::kLogSumExp) return std::nullopt;  // nothing scatters it
    s.kind = StepKind::kReduceScatter, s.bytes = local * (n - 1) / n;
  } else if (from.is_shard() && to.is_replicate()) {
    s.kind = StepKind::kAllGather, s.bytes = local * n * (n - 1) / n;
  } else if (from.is_shard() && to.is_shard()) {
    s.kind = StepKind::kAllToAll, s.bytes = local * (n - 1) / n;
  } else if (from.is_shard() || (to.is_partial() && to.reduction != Reduction::kSum)) {
    return std::nullopt;
  } else if (to.is_partial()) {
    s.kind = StepKind::kMask;
  }
  const AxisLinks links = axis_links(c.cluster, c.mesh, axis);
  if (s.kind == StepKind::kSlice || s.kind == StepKind::kMask) {
    s.seconds = 2 * bytes_of(c, q) / c.cluster.device.bandwidth;
    if (!c.bundled) s.seconds += c.cluster.device.op_latency;
  } else {
    s.seconds = c.bundled ? s.bytes * seconds_a_byte(s.kind, links)
                          : collective_seconds(s.kind, s.bytes, links);
  }
  return s;
}

// All combinations that divide, without two kinds of partial result in one value.
std::vector<Placements> all_placements(const Case& c) {
  std::vector<Placements> all = {{}};
  for (size_t a = 0; a < c.mesh.axes.size(); ++a) {
    std::vector<Placements> longer;
    for (const Placements& p : all) {
      std::vector<Placement> next = {Placement::replicate()};
      for (size_t i = 0; i < c.atoms.size(); ++i) {
        if (c.atoms[i] > 1) next.push_back(Placement::shard(static_cast<int>(i)));
      }
      for (Reduction r : c.partials) {
        bool mixed = !is_float(c.dtype);
        for (const Placement& q : p) mixed |= q.is_partial() && q.reduction != r;
        if (!mixed) next.push_back(Placement::partial(r));
      }
      for (const Placement& q : next) {
        longer.push_back(p);
        longer.back().push_back(q);
      }
    }
    all = std::move(longer);
  }
  std::erase_if(all, [&](const Placements& p) { return !parts_of(c, p, 0).has_value(); });
  return all;
}

Case random_case(std::mt19937& random) {
  const auto pick = [&](auto list) { return *(list.begin() + random() % list.size()); };
  Case c;
  struct Shape {
    const char* cluster;
    std::vector<int64_t> mesh;
  };
  static const std::vector<Shape> shapes = {
      {"cpu:2", {2}},       {"cpu:3", {3}},      {"8xh100", {8}},        {"cpu:4", {2, 2}},
      {"2x3xa100", {2, 3}}, {"2x4xcpu", {4, 2}}, {"2x4xv100", {2, 2, 2}}};
  const Shape& shape = shapes[random() % shapes.size()];
  c.cluster = parse_cluster(shape.cluster);
  for (int64_t n : shape.mesh) c.mesh.axes.push_back({"a", n});
  const size_t rank = 1 + random() % (shape.mesh.size() > 2 ? 2 : 3);
  for (size_t i = 0; i < rank; ++i) {
    c.atoms.push_back(pick(std::vector<int64_t>{1, 2, 3, 4, 6, 8, 12, 24, 4096}));
    c.dims.push_back(static_cast<int8_t>(i == 0 ? 0 : c.dims.back() + random() % 2));
  }
  c.dtype = pick(std::vector{DType::kF32, DType::kBF16, DType::kI32});
  if (random() % 3 == 0) c.partials.push_back(Reduction::kMax);
  if (random() % 5 == 0) c.partials.push_back(Reduction::kLogSumExp);
  c.bundled = random() % 2 == 0;
  // Slow devices make local cuts count, slow links collectives.
  c.cluster.device.bandwidth *= std::exp2(-static_cast<double>(random() % 10));
  return c;
}

TEST(PlacementSpace, AllWaysBetweenAllPlacements) {
  size_t ways = 0, most = 0;
  for (unsigned seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937 random(seed);
    const Case c = random_case(random);
    const PlacementSpace space = c.space();
    const std::vector<Placements> all = all_placements(c);
    const size_t n = all.size();
    ASSERT_EQ(space.size(), n);
    std::vector<size_t> at;
    for (const Placements& p : all) {
      ASSERT_GE(space.index_of(p), 0);
      at.push_back(static_cast<size_t>(space.index_of(p)));
      EXPECT_EQ(space.at(at.back()), p);
      EXPECT_EQ(space.local_bytes(at.back()), bytes_of(c, p));
      bool partial = false, replicated = true;
      for (const Placement& q : p) partial |= q.is_partial(), replicated &= q.is_replicate();
      EXPECT_EQ(space.has_partial(at.back()), partial);
      EXPECT_EQ(static_cast<size_t>(space.replicated()) == at.back(), replicated);
    }
    std::vector<double> cost(n * n, kInfinity);
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j < n; ++j) {
        if (const auto s = step_between(c, all[i], all[j])) cost[i * n + j] = s->seconds;
      }
      cost[i * n + i] = 0;
    }
    for (size_t k = 0; k < n; ++k) {
      for (size_t i = 0; i < n; ++i) {
        for (size_t j = 0; j < n; ++j) {
          cost[i * n + j] = std::min(cost[i * n + j], cost[i * n + k] + cost[k * n + j]);
        }
      }
    }
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j < n; ++j) {
        const double found = space.seconds(at[i], at[j]);
        if (cost[i * n + j] == kInfinity) {
          ASSERT_EQ(found, kInfinity);
          continue;
        }
        ASSERT_NEAR(found, cost[i * n + j], 1e-12 * cost[i * n + j]);
        // The steps lead there, one axis at a time, for that price.
        double sum = 0;
        Placements p = all[i];
        for (const Step& s : space.steps(at[i], at[j])) {
          Placements q = p;
          q[static_cast<size_t>(s.axis)] = s.to;
          const auto expected = step_between(c, p, q);
          ASSERT_TRUE(expected.has_value());
          ASSERT_EQ(s.kind, expected->kind);
          ASSERT_DOUBLE_EQ(s.bytes, expected->bytes);
          ASSERT_DOUBLE_EQ(s.seconds, expected->seconds);
          sum += s.seconds;
          p = q;
        }
        ASSERT_EQ(p, all[j]);
        ASSERT_NEAR(sum, found, 1e-12 * found);
        ++ways;
        most = std::max(most, space.steps(at[i], at[j]).size());
      }
    }
  }
  EXPECT_GT(ways, 20000u);
  EXPECT_GE(most, 4u) << "no way is long enough to be a test";
}

// Two axes on one atom: the earlier cuts first, so it alone cannot change.
TEST(PlacementSpace, TwoAxesOnOneAtom) {
  Case c;
  c.cluster = parse_cluster("cpu:4");
  c.mesh.axes = {{"a", 2}, {"b", 2}};
  c.atoms = {8}, c.dims = {0};
  const PlacementSpace space = c.space();
  const Placement s = Placement::shard(0), r = Placement::replicate();
  const auto kinds = [&](Placements from, Placements to) {
    std::string text;
    for (const Step& step : space.steps(static_cast<size_t>(space.index_of(from)),
                                        static_cast<size_t>(space.index_of(to)))) {
      text += fmt::format("{} on {}; ", name_of(step.kind), c.mesh.axes[size_t(step.axis)].name);
    }
    return text;
  };
  EXPECT_EQ(kinds({s, s}, {s, r}), "all-gather on b; ");
  EXPECT_EQ(kinds({s, s}, {r, s}), "all-gather on b; all-gather on a; local slice on b; ");
  EXPECT_EQ(kinds({s, s}, {r, r}), "all-gather on b; all-gather on a; ");
  EXPECT_EQ(kinds({r, s}, {s, s}), "all-gather on b; local slice on a; local slice on b; ");
}

// What no way leads to: sums cannot become maxima, nor can a whole value be a partial maximum.
TEST(PlacementSpace, NoWayToPartialMaxima) {
  Case c;
  c.cluster = parse_cluster("cpu:2");
  c.mesh.axes = {{"a", 2}};
  c.atoms = {4}, c.dims = {0};
  c.partials = {Reduction::kSum, Reduction::kMax};
  const PlacementSpace space = c.space();
  const auto at = [&](Placement p) { return static_cast<size_t>(space.index_of({p})); };
  const Placement max = Placement::partial(Reduction::kMax), sum = Placement::partial();
  EXPECT_EQ(space.seconds(at(sum), at(max)), kInfinity);
  EXPECT_EQ(space.seconds(at(Placement::replicate()), at(max)), kInfinity);
  EXPECT_LT(space.seconds(at(max), at(sum)), kInfinity);  // all-reduce, then mask
  EXPECT_THROW(space.steps(at(sum), at(max)), InternalError);
  EXPECT_EQ(space.index_of({Placement::shard(1)}), -1);
}

// The formulas of docs/planner.md on round numbers.
TEST(PlacementSpace, RingFormulas) {
  Case c;
  c.cluster = parse_cluster("cpu:4");
  c.mesh.axes = {{"a", 4}};
  c.atoms = {4, 250'000}, c.dims = {0, 1};  // 4 MB
  const PlacementSpace space = c.space();
  const auto only = [&](Placement from, Placement to) {
    const auto steps = space.steps(static_cast<size_t>(space.index_of({from})),
                                   static_cast<size_t>(space.index_of({to})));
    EXPECT_EQ(steps.size(), 1u);
    return steps[0];
  };
  const Link& link = c.cluster.tiers[0].link;
  const Placement p = Placement::partial(), r = Placement::replicate(), s = Placement::shard(0);
  EXPECT_DOUBLE_EQ(only(p, r).bytes, 2 * 4e6 * 0.75);
  EXPECT_DOUBLE_EQ(only(p, r).seconds, link.start + 6 * link.latency + 6e6 / link.bandwidth);
  EXPECT_DOUBLE_EQ(only(p, s).bytes, 4e6 * 0.75);
  EXPECT_DOUBLE_EQ(only(s, r).bytes, 4e6 * 0.75);
  EXPECT_DOUBLE_EQ(only(s, r).seconds, link.start + 3 * link.latency + 3e6 / link.bandwidth);
  EXPECT_EQ(only(r, s).bytes, 0);
}

}  // namespace
}  // namespace cleave
