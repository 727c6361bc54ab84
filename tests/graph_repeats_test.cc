// Repeated layers, in synthetic stacks with every irregularity, and in the built-in models.
#include "graph/repeats.h"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cmath>
#include <map>

#include "graph/text.h"
#include "models/trace.h"
#include "tests/graph_random.h"
#include "tests/support/sanitized.h"

namespace cleave {

void PrintTo(const Repeat& r, std::ostream* out) {
  *out << fmt::format("{{first {}, period {}, count {}}}", r.first, r.period, r.count);
}
void PrintTo(const Layer& l, std::ostream* out) { *out << fmt::format("{}.{}", l.repeat, l.copy); }

namespace {

namespace op = test_ops;

const TensorType kSquare{DType::kF32, {8, 8}};

Value parameter(Graph& g) {
  return g.add_source(op::source(fmt::format("p{}", g.sources().size()), SourceKind::kParameter),
                      kSquare);
}

// gelu(x W) W' + x: four nodes.
Value block(Graph& g, Value x) {
  const Value h = g.add1(op::gelu, {g.add1(op::matmul, {x, parameter(g)})});
  return g.add1(op::add, {x, g.add1(op::matmul, {h, parameter(g)})});
}

TEST(Repeats, AStackThatBeginsAtASource) {
  Graph g;
  Value x = g.add_source(op::source("x"), kSquare);
  for (int i = 0; i < 5; ++i) x = block(g, x);
  EXPECT_EQ(repeats(g), (std::vector<Repeat>{{0, 4, 5}}));
}

// What comes before looks like the end of a layer, what comes after like the beginning of one.
TEST(Repeats, CopiesBeginWhereLeastPasses) {
  Graph g;
  Value x = g.add_source(op::source("x"), kSquare);
  x = g.add1(op::add, {x, g.add_source(op::source("y"), kSquare)});
  for (int i = 0; i < 6; ++i) x = block(g, x);
  g.add1(op::matmul, {x, parameter(g)});
  EXPECT_EQ(repeats(g), (std::vector<Repeat>{{1, 4, 6}}));
}

// A value made once and read by every copy; one copied from far away; a start made much earlier.
TEST(Repeats, SharedValuesAndADistantStart) {
  Graph g;
  Value x = g.add_source(op::source("x"), kSquare);
  Value start = g.add1(op::mul, {x, x});
  const Value shared = g.add1(op::gelu, {x});
  g.add1(op::copy, {x});
  const Value table = parameter(g);
  x = start;
  for (int i = 0; i < 4; ++i) x = g.add1(op::mul, {g.add1(op::add, {block(g, x), shared}), table});
  EXPECT_EQ(repeats(g), (std::vector<Repeat>{{3, 6, 4}}));
}

TEST(Repeats, DifferentLayersEndARun) {
  for (int odd = 0; odd < 4; ++odd) {
    Graph g;
    Value x = g.add_source(op::source("x"), kSquare);
    const Value w = parameter(g);
    for (int i = 0; i < 9; ++i) {
      x = block(g, x);
      if (i != 4) continue;
      switch (odd) {
        case 0: x = g.add1(op::mul, {x, x}); break;  // one node more
        case 1:
          g.add1(op::gelu, {x});
          break;  // that nobody reads
        // A weight that the layer before has used, and one of another kind of source.
        case 2:
          x = g.add1(op::add,
                     {g.add1(op::matmul, {g.add1(op::gelu, {g.add1(op::matmul, {x, w})}), w}), x});
          break;
        case 3:
          x = g.add1(op::add,
                     {x, g.add1(op::matmul,
                                {g.add1(op::gelu, {g.add1(op::matmul, {x, parameter(g)})}), 0})});
          break;
      }
    }
    const std::vector<Repeat> found = repeats(g);
    ASSERT_EQ(found.size(), 2u) << odd;
    EXPECT_EQ(found[0].period, 4) << odd;
    EXPECT_EQ(found[0].first, 0) << odd;
    EXPECT_EQ(found[0].count, 5) << odd;
    EXPECT_EQ(found[1].period, 4) << odd;
    EXPECT_EQ(found[1].count, 4) << odd;
  }
}

TEST(Repeats, AWeightSharedByTwoLayersIsNotPrivate) {
  Graph g;
  Value x = g.add_source(op::source("x"), kSquare);
  const Value w0 = parameter(g), w1 = parameter(g);
  for (int i = 0; i < 4; ++i) {  // w0, w1, w0, w1: copies of two
    x = g.add1(op::gelu, {g.add1(op::matmul, {x, i % 2 == 0 ? w0 : w1})});
  }
  EXPECT_EQ(repeats(g), (std::vector<Repeat>{{0, 4, 2}}));
}

TEST(Repeats, AlternatingLayersRepeatInPairs) {
  Graph g;
  Value x = g.add_source(op::source("x"), kSquare);
  for (int i = 0; i < 8; ++i) x = i % 2 == 0 ? block(g, x) : g.add1(op::mul, {x, x});
  EXPECT_EQ(repeats(g), (std::vector<Repeat>{{0, 5, 4}}));
}

TEST(Repeats, TwoStacks) {
  Graph g;
  Value x = g.add_source(op::source("x"), kSquare);
  for (int i = 0; i < 3; ++i) x = block(g, x);
  x = g.add1(op::copy, {x});
  for (int i = 0; i < 7; ++i) x = g.add1(op::mul, {block(g, x), x});
  EXPECT_EQ(repeats(g), (std::vector<Repeat>{{0, 4, 3}, {13, 5, 7}}));
}

TEST(Repeats, NothingRepeats) {
  Graph g;
  EXPECT_TRUE(repeats(g).empty());
  Value x = g.add_source(op::source("x"), kSquare);
  block(g, x);
  EXPECT_TRUE(repeats(g).empty());
}

TEST(Repeats, HashesSeeEverythingButNames) {
  Graph g;
  const Value x = g.add_source(op::source("x"), kSquare);
  const Value wide = g.add_source(op::source("wide"), {DType::kF32, {8, 16}});
  const Value exact = g.add_source(op::source("exact"), {DType::kF64, {8, 8}});
  const auto hash = [&](const OpDef& o, std::vector<Value> in, std::string_view factors, Attrs a,
                        std::vector<Value> writes = {}) {
    g.add(o, std::move(in), factors, std::move(a), std::move(writes));
    return node_hash(g, static_cast<NodeId>(g.nodes().size() - 1));
  };
  const uint64_t base = hash(op::gelu, {x}, "ab->ab", {{"p", 0.5}, {"name", "one"}});
  EXPECT_EQ(hash(op::gelu, {x}, "ab->ab", {{"p", 0.5}, {"name", "two"}}), base);
  const std::vector<uint64_t> others = {
      hash(op::copy, {x}, "ab->ab", {{"p", 0.5}}),
      hash(op::gelu, {x}, "ab->ab", {{"p", 0.25}}),
      hash(op::gelu, {x}, "ab->ab", {{"p", int64_t{1}}}),
      hash(op::gelu, {x}, "ab->ab", {{"p", "0.5"}}),
      hash(op::gelu, {x}, "ab->ab", {{"q", 0.5}}),
      hash(op::gelu, {x}, "ab->ab", {}),
      hash(op::gelu, {x}, "xy->xy", {{"p", 0.5}}),
      hash(op::gelu, {wide}, "ab->ab", {{"p", 0.5}}),
      hash(op::gelu, {exact}, "ab->ab", {{"p", 0.5}}),
      hash(op::gelu, {x}, "ab->ab", {{"p", 0.5}}, {x}),
      [&] {
        g.cursor.phase = Phase::kBackward;
        return hash(op::gelu, {x}, "ab->ab", {{"p", 0.5}});
      }(),
  };
  std::vector<uint64_t> all = others;
  all.push_back(base);
  std::sort(all.begin(), all.end());
  EXPECT_EQ(std::unique(all.begin(), all.end()), all.end());
}

TEST(Repeats, DeepStacksTakeMilliseconds) {
  Graph g;
  Value x = g.add_source(op::source("x"), kSquare);
  for (int layer = 0; layer < 96; ++layer) {
    for (int i = 0; i < 20; ++i) x = block(g, x);
    if (layer % 2 == 0) x = g.add1(op::mul, {x, x});  // the period is 2 * 80 + 1
  }
  double least = HUGE_VAL;  // milliseconds; the best of a few, as the machine has other work
  std::vector<Repeat> found;
  for (int i = 0; i < 5; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    found = repeats(g);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    least = std::min(least, took.count());
  }
  EXPECT_EQ(found, (std::vector<Repeat>{{0, 161, 48}}));
#ifndef CLEAVE_SANITIZED
  EXPECT_LT(least, 50);
#endif
}

// --- Against all runs there are
// -------------------------------------------------------------------

// The contract, word by word.
bool is_repeat(const Graph& g, const Repeat& r) {
  std::map<Value, Value> start;
  for (NodeId n = r.first; n + r.period < r.end(); ++n) {
    if (node_hash(g, n) != node_hash(g, n + r.period)) return false;
    const Node &a = g.node(n), &b = g.node(n + r.period);
    for (size_t i = 0; i < a.inputs.size(); ++i) {
      const Value u = a.inputs[i], v = b.inputs[i];
      const ValueInfo &x = g.value(u), &y = g.value(v);
      const bool inside = x.producer >= r.first;
      if (u == v) {
        if (inside) return false;
      } else if (x.source >= 0 && y.source >= 0) {
        for (NodeId reader = 0; reader < static_cast<NodeId>(g.nodes().size()); ++reader) {
          const auto& in = g.node(reader).inputs;
          for (size_t k = 0; k < in.size(); ++k) {
            // Read by one copy alone, and at the same places as the other.
            const NodeId shift = in[k] == u ? r.period : in[k] == v ? -r.period : 0;
            if (shift == 0) continue;
            if (reader + shift < 0 || reader + shift >= static_cast<NodeId>(g.nodes().size())) {
              return false;
            }
            if (g.node(reader + shift).inputs.size() <= k) return false;
            if (g.node(reader + shift).inputs[k] != (in[k] == u ? v : u)) return false;
            const NodeId copy = (n - r.first) / r.period + (in[k] == u ? 0 : 1);
            if (reader < r.first || (reader - r.first) / r.period != copy) return false;
          }
        }
      } else if (!inside && n < r.first + r.period && y.producer >= r.first &&
                 y.producer < r.first + r.period) {
        if (!start.emplace(v, u).second && start[v] != u) return false;
      } else if (x.producer < 0 || y.producer - x.producer != r.period || x.output != y.output) {
        return false;
      }
    }
  }
  return true;
}

TEST(Repeats, NoRunCoversMore) {
  std::mt19937 random(1);
  int runs = 0, most = 0;
  for (int round = 0; round < 1500; ++round) {
    // A random chain of a few ops, mostly reading what was made last, in part copied.
    Graph g;
    std::vector<Value> values = {g.add_source(op::source("x"), kSquare), parameter(g)};
    std::vector<std::array<unsigned, 3>> recipe(3 + random() % 5);
    for (auto& line : recipe) line = {unsigned(random() % 4), unsigned(1 + random() % 3), 0};
    for (auto& line : recipe) line[2] = unsigned(1 + random() % 5);
    const size_t size = 8 + random() % 16;
    for (size_t n = 0; n < size; ++n) {
      auto [what, near, far] = recipe[n % recipe.size()];
      if (random() % 12 == 0) near = unsigned(1 + random() % 4);
      const auto back = [&](unsigned by) {
        return values[values.size() - std::min<size_t>(by, values.size())];
      };
      Value out = kNoValue;
      switch (what) {
        case 0: out = g.add1(op::gelu, {back(near)}); break;
        case 1: out = g.add1(op::add, {back(near), back(far)}); break;
        case 2: out = g.add1(op::matmul, {back(near), parameter(g)}); break;
        default: out = g.add1(op::add, {back(near), values[0]}); break;
      }
      values.push_back(out);
    }
    int64_t covered = 0;
    const NodeId end = static_cast<NodeId>(g.nodes().size());
    for (NodeId period = 1; 2 * period <= end; ++period) {
      for (NodeId first = 0; first + 2 * period <= end; ++first) {
        for (int32_t count = 2; first + count * period <= end; ++count) {
          if (count * period <= covered) continue;
          if (is_repeat(g, {first, period, count})) covered = count * period;
        }
      }
    }
    const std::vector<Repeat> found = repeats(g);
    int64_t best = 0;
    NodeId last = 0;
    for (const Repeat& r : found) {
      EXPECT_TRUE(is_repeat(g, r)) << testing::PrintToString(r) << "\n" << to_text(g);
      EXPECT_GE(r.first, last);
      last = r.end();
      best = std::max<int64_t>(best, r.period * r.count);
    }
    EXPECT_LE(last, end);
    ASSERT_EQ(best, covered) << testing::PrintToString(found) << "\n" << to_text(g);
    runs += covered > 0;
    most = std::max(most, static_cast<int>(covered));
  }
  EXPECT_GT(runs, 500);
  EXPECT_GT(most, 15);
}

// --- Models --------------------------------------------------------------------------------------

// A scope's layer, from the number in it: "h.3.attn" is 3; -1 without one.
int32_t number_in(const std::string& scope) {
  const size_t digit = scope.find_first_of("0123456789");
  return digit == std::string::npos ? -1 : std::stoi(scope.substr(digit));
}

class ModelRepeats : public testing::TestWithParam<const char*> {};

TEST_P(ModelRepeats, AreTheLayers) {
  const ModelConfig config = model_named(GetParam());
  const Graph g = trace(config);
  const std::vector<Repeat> found = repeats(g);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].count, config.layers);
  const Layers layers = layers_of(g, found);
  for (size_t n = 0; n < g.nodes().size(); ++n) {
    const Node& node = g.nodes()[n];
    const int32_t layer = layers.nodes[n].copy;
    const int32_t scope = number_in(g.scopes()[static_cast<size_t>(node.scope)]);
    // A sum of gradients is named after what it is a gradient of: perhaps the layer before.
    const bool sum = node.op->name == "add_n";
    if (node.phase == Phase::kForward || !sum) {
      EXPECT_EQ(layer, scope) << to_text(g, static_cast<NodeId>(n)) << " of layer " << layer;
    }
  }
  for (size_t s = 0; s < g.sources().size(); ++s) {
    EXPECT_EQ(layers.sources[s].copy, number_in(g.sources()[s].name)) << g.sources()[s].name;
  }
  // All copies hold the same, in the backward and the update too.
  std::vector<std::vector<uint64_t>> hashes(static_cast<size_t>(found[0].count));
  for (size_t n = 0; n < g.nodes().size(); ++n) {
    if (layers.nodes[n].repeat != 0) continue;
    hashes[static_cast<size_t>(layers.nodes[n].copy)].push_back(
        node_hash(g, static_cast<NodeId>(n)));
  }
  for (size_t c = 1; c < hashes.size(); ++c) EXPECT_EQ(hashes[c], hashes[0]) << "copy " << c;
}

INSTANTIATE_TEST_SUITE_P(Families, ModelRepeats,
                         testing::Values("mlp:tiny", "gpt2:tiny", "gpt2:124m", "llama:tiny",
                                         "llama:8b", "mixtral:tiny", "bert:base"),
                         [](const auto& info) {
                           std::string name = info.param;
                           name[name.find(':')] = '_';
                           return name;
                         });

}  // namespace
}  // namespace cleave
