// Synchronization-free regions: the design's worked example, a transformer's layer, conflicts, and
// folding.
#include "planner/regions.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

#include "kernels/ops.h"
#include "models/trace.h"
#include "tests/support/random_graph.h"
#include "tracer/functional.h"
#include "tracer/optimizer.h"

namespace cleave {
namespace {

struct Analysed {
  Graph graph;
  Dimensions dims;
  std::vector<Region> regions;

  explicit Analysed(Graph g)
      : graph(std::move(g)), dims(find_dimensions(graph)), regions(find_regions(graph, dims)) {}

  // The class of one dimension's atom of a source.
  ClassId class_at(const std::string& source, size_t atom) const {
    const Source* s = graph.source_named(source);
    if (s == nullptr) throw std::runtime_error("no " + source);
    return dims.values[static_cast<size_t>(s->value)][atom].dimension_class;
  }
  std::vector<Region> of(ClassId c) const {
    std::vector<Region> found;
    for (const Region& r : regions) {
      if (r.dimension_class == c) found.push_back(r);
    }
    return found;
  }
  std::string op(NodeId n) const { return std::string(graph.node(n).op->name); }
  int count(const Region& r, const std::string& name, Phase phase) const {
    return static_cast<int>(std::count_if(r.nodes.begin(), r.nodes.end(), [&](NodeId n) {
      return op(n) == name && graph.node(n).phase == phase;
    }));
  }
  // "matmul reduction forward 120; ...", sorted.
  std::vector<std::string> syncs(const Region& r, bool update = false) const {
    std::vector<std::string> list;
    for (const SyncPoint& s : r.syncs) {
      if (s.phase == Phase::kUpdate && !update) continue;
      list.push_back(
          fmt::format("{} {} {} {}", op(s.node), name_of(s.kind), name_of(s.phase), s.bytes));
    }
    std::sort(list.begin(), list.end());
    return list;
  }
};

using Texts = std::vector<std::string>;
constexpr int64_t kBatch = 2, kSequence = 3, kWidth = 5, kInner = 7;

// h = gelu(x A), y = x + h B, where x depends on a parameter too.
Analysed worked_example() {
  OptimizerOptions sgd;
  sgd.kind = OptimizerOptions::Kind::kSgd;
  return Analysed(trace_training_step(
      "example",
      [] {
        const Tensor in =
            data("in", {kBatch, kSequence, kWidth}, DType::kF32, {"batch", "sequence", ""});
        const Tensor x = in * parameter("gain", {kWidth}, {Init::Kind::kNormal, 0.1});
        const Tensor a = parameter("A", {kInner, kWidth}, {Init::Kind::kNormal, 0.1});
        const Tensor b = parameter("B", {kWidth, kInner}, {Init::Kind::kNormal, 0.1});
        return mean(square(x + linear(gelu(linear(x, a)), b)));
      },
      sgd));
}

// Class f: free from x A to h B; one sum of b s d numbers there, one in the backward.
TEST(Regions, InnerClassOfTheWorkedExample) {
  const Analysed e = worked_example();
  const auto regions = e.of(e.class_at("A", 0));
  ASSERT_EQ(regions.size(), 1u);
  const Region& r = regions[0];
  EXPECT_EQ(e.count(r, "matmul", Phase::kForward), 2);
  EXPECT_EQ(e.count(r, "gelu", Phase::kForward), 1);
  EXPECT_EQ(e.count(r, "matmul", Phase::kBackward), 4);
  EXPECT_EQ(e.count(r, "gelu_backward", Phase::kBackward), 1);
  EXPECT_EQ(e.count(r, "sgd", Phase::kUpdate), 2);
  const auto bytes = 4 * kBatch * kSequence * kWidth;
  EXPECT_EQ(e.syncs(r), (Texts{fmt::format("matmul reduction backward {}", bytes),
                               fmt::format("matmul reduction forward {}", bytes)}));
  // Nearly all work of the step.
  EXPECT_GT(r.flops_share, 0.8);
  EXPECT_LE(r.flops_share, 1);
}

// Class b: free but for the sums of the parameters' gradients, and of the loss.
TEST(Regions, BatchEndsInGradients) {
  const Analysed e = worked_example();
  const auto regions = e.of(e.dims.class_with_role("batch"));
  ASSERT_EQ(regions.size(), 1u);
  const auto weight = fmt::format("matmul reduction backward {}", 4 * kWidth * kInner);
  EXPECT_EQ(e.syncs(regions[0]),
            (Texts{weight, weight, fmt::format("sum reduction backward {}", 4 * kWidth),
                   "sum reduction forward 4"}));
  for (const SyncPoint& s : regions[0].syncs) EXPECT_NE(s.phase, Phase::kUpdate);
  EXPECT_EQ(e.syncs(e.of(e.dims.class_with_role("sequence")).at(0)), e.syncs(regions[0]));
}

// Class d is reduced at once.
TEST(Regions, WidthIsReducedAtOnce) {
  const Analysed e = worked_example();
  int forward = 0;
  for (const Region& r : e.of(e.class_at("A", 1))) {
    for (const SyncPoint& s : r.syncs) {
      forward += s.phase == Phase::kForward && e.op(s.node) == "matmul";
      EXPECT_EQ(s.kind, SyncKind::kReduction);
    }
  }
  EXPECT_EQ(forward, 1);
}

// The place of an end is a line of the model.
TEST(Regions, SyncsHaveAPlace) {
  const Analysed e = worked_example();
  for (const Region& r : e.regions) {
    for (const SyncPoint& s : r.syncs) {
      EXPECT_NE(s.place.find("planner_regions_test.cc:"), std::string::npos) << s.place;
    }
  }
}

Analysed model(const char* name, int64_t layers) {
  ModelConfig config = model_named(name);
  config.layers = layers;
  config.batch = 2;
  return Analysed(trace(config));
}

// The heads: free from the QKV projection through attention to the output projection.
TEST(Regions, HeadsOfGpt) {
  const Analysed g = model("gpt2:tiny", 2);
  for (int layer = 0; layer < 2; ++layer) {
    const auto regions = g.of(g.class_at(fmt::format("h.{}.attn.qkv.weight", layer), 1));
    ASSERT_EQ(regions.size(), 1u);
    const Region& r = regions[0];
    EXPECT_EQ(g.count(r, "matmul", Phase::kForward), 2);
    EXPECT_EQ(g.count(r, "attention", Phase::kForward), 1);
    EXPECT_EQ(g.count(r, "attention_backward", Phase::kBackward), 1);
    EXPECT_EQ(g.count(r, "matmul", Phase::kBackward), 4);
    EXPECT_EQ(g.count(r, "layer_norm", Phase::kForward), 0);
    const int64_t bytes = 4 * 2 * 64 * 128;  // b s d
    EXPECT_EQ(g.syncs(r), (Texts{fmt::format("matmul reduction backward {}", bytes),
                                 fmt::format("matmul reduction forward {}", bytes)}));
  }
}

TEST(Regions, BatchOfGpt) {
  const Analysed g = model("gpt2:tiny", 2);
  const auto regions = g.of(g.dims.class_with_role("batch"));
  ASSERT_EQ(regions.size(), 1u);
  EXPECT_GT(regions[0].flops_share, 0.9);
  double bytes = 0;
  for (const SyncPoint& s : regions[0].syncs) {
    EXPECT_EQ(s.kind, SyncKind::kReduction);
    if (s.phase == Phase::kBackward) bytes += s.bytes;
    if (s.phase != Phase::kForward) continue;
    EXPECT_EQ(s.bytes, 4) << "the loss";
  }
  // Every parameter's gradient once; the tied table's twice, from the embedding and the head.
  double parameters = 0;
  for (const Source& s : g.graph.sources()) {
    if (s.kind == SourceKind::kParameter)
      parameters += 4.0 * double(numel(g.graph.type(s.value).shape));
  }
  const double table =
      4.0 * double(numel(g.graph.type(g.graph.source_named("wte.weight")->value).shape));
  EXPECT_EQ(bytes, parameters + table);
}

// Queries and keys run along one sequence, so attention meets the class twice.
TEST(Regions, SequenceConflictsInAttention) {
  const Analysed g = model("gpt2:tiny", 2);
  const ClassId sequence = g.dims.class_with_role("sequence");
  std::set<NodeId> conflicts;
  for (const Region& r : g.of(sequence)) {
    for (const SyncPoint& s : r.syncs) {
      if (s.kind == SyncKind::kConflict) conflicts.insert(s.node);
      EXPECT_NE(s.kind, SyncKind::kWhole);
      EXPECT_EQ(std::count(r.nodes.begin(), r.nodes.end(), s.node), s.kind != SyncKind::kConflict);
    }
  }
  std::multiset<std::string> ops;
  for (NodeId n : conflicts) ops.insert(g.op(n));
  EXPECT_EQ(ops, (std::multiset<std::string>{"attention", "attention", "attention_backward",
                                             "attention_backward"}));
  // The residual stream carries the class past attention: its ends are inside one region.
  EXPECT_EQ(g.of(sequence).size(), 1u);
}

// A norm needs the width whole, but says what its parts would exchange.
TEST(Regions, WholeDimensionOfANorm) {
  const Analysed g = model("gpt2:tiny", 1);
  int norms = 0;
  for (const Region& r : g.of(g.class_at("wpe.weight", 1))) {
    for (const SyncPoint& s : r.syncs) {
      if (g.op(s.node) != "layer_norm") continue;
      EXPECT_EQ(s.kind, SyncKind::kWhole);
      EXPECT_EQ(s.bytes, 2 * 4 * 2 * 64) << "the mean and the deviation of every token";
      ++norms;
    }
  }
  EXPECT_GE(norms, 3);
}

// Layers that are alike fold into one, counted.
TEST(Regions, Folding) {
  constexpr int64_t kLayers = 5;
  const Analysed g = model("gpt2:tiny", kLayers);
  const std::vector<RegionGroup> groups = fold_regions(g.graph, g.regions);
  const auto total = std::accumulate(groups.begin(), groups.end(), int64_t{0},
                                     [](int64_t n, const RegionGroup& x) { return n + x.count; });
  EXPECT_EQ(total, static_cast<int64_t>(g.regions.size()));
  for (const char* source : {"h.0.attn.qkv.weight", "h.0.mlp.fc.weight"}) {
    const ClassId c = g.class_at(source, source[4] == 'a' ? 1 : 0);
    const auto at = std::find_if(groups.begin(), groups.end(), [&](const RegionGroup& x) {
      return x.first.dimension_class == c;
    });
    ASSERT_NE(at, groups.end()) << source;
    EXPECT_EQ(at->count, kLayers) << source;
    double share = 0;
    for (const Region& r : g.regions) {
      if (r.nodes.size() == at->first.nodes.size() && r.flops == at->first.flops) {
        share += r.flops_share;
      }
    }
    EXPECT_NEAR(at->first.flops_share, share, 1e-9) << source;
  }
  // Ends of one region on one line: the gradients of the two norms' parameters, of every layer.
  const Region batch = g.of(g.dims.class_with_role("batch")).at(0);
  const std::vector<SyncGroup> syncs = fold_syncs(g.graph, batch.syncs);
  EXPECT_LT(syncs.size(), batch.syncs.size() / 3);
  int64_t ends = 0;
  for (const SyncGroup& s : syncs) ends += s.count;
  EXPECT_EQ(ends, static_cast<int64_t>(batch.syncs.size()));
}

// Of random graphs: regions of one class are disjoint and hold only nodes that have the class once;
// a node that reduces it is an end; the rest are free.
TEST(Regions, RandomGraphs) {
  int ends = 0, conflicts = 0;
  for (unsigned seed = 0; seed < 400; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937 random(seed);
    testing::RandomGraphOptions options;
    options.ops = 3 + static_cast<int>(random() % 8);
    options.training = random() % 2 == 0;
    const Analysed g(testing::random_model_graph(random, options));
    std::set<std::pair<ClassId, NodeId>> seen;
    double before = g.regions.empty() ? 0 : g.regions[0].flops;
    for (const Region& r : g.regions) {
      ASSERT_LE(r.flops, before);
      before = r.flops;
      ASSERT_TRUE(std::is_sorted(r.nodes.begin(), r.nodes.end()));
      for (NodeId n : r.nodes) {
        ASSERT_TRUE(seen.emplace(r.dimension_class, n).second) << "in two regions";
        const Node& node = g.graph.node(n);
        int factors = 0;
        bool reduced = false;
        for (size_t f = 0; f < node.extents.size(); ++f) {
          const auto& atoms = g.dims.factors[static_cast<size_t>(n)][f];
          if (std::none_of(atoms.begin(), atoms.end(),
                           [&](const Atom& a) { return a.dimension_class == r.dimension_class; })) {
            continue;
          }
          ++factors;
          ASSERT_FALSE(node.signature->factors()[f].whole);
          for (size_t o = 0; o < node.outputs.size(); ++o) {
            reduced |= node.signature->reduced_in(static_cast<int>(f), o);
          }
        }
        ASSERT_EQ(factors, 1);
        const auto is_end = [&](const SyncPoint& s) { return s.node == n; };
        ASSERT_EQ(std::count_if(r.syncs.begin(), r.syncs.end(), is_end), reduced);
        ends += reduced;
      }
      for (const SyncPoint& s : r.syncs) {
        ASSERT_GT(s.bytes, 0);
        conflicts += s.kind != SyncKind::kReduction;
      }
    }
  }
  EXPECT_GT(ends, 1000);
  EXPECT_GT(conflicts, 200);
}

}  // namespace
}  // namespace cleave
