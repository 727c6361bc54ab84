// Siblings: products that read the same tensor are one, and what is made and kept of them lies side
// by side; programs in which that cannot be are left alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <string>

#include "executor/fuse.h"
#include "executor/memory_layout.h"
#include "executor/typing.h"
#include "kernels/ops.h"
#include "models/models.h"
#include "tests/training_plans.h"
#include "tests/widened_program.h"
#include "tracer/functional.h"
#include "tracer/nn.h"

namespace cleave {
namespace {

using testing::plan_for;
using testing::widened;

struct Setting {
  std::string model = "llama:tiny";
  DType dtype = DType::kF64;
  int64_t micro_batches = 1;
  int64_t hidden = 32;
};

ModelConfig config_of(const Setting& s) {
  ModelConfig config = model_named(s.model);
  for (const char* key : {"layers=2", "ffn=64", "sequence=16", "batch=2"}) set_value(config, key);
  config.hidden = s.hidden;
  return config;
}

// Gate and up of each layer: forward, the gradient of their input, those of their weights. Where
// keys have rows that are aligned: both gradients of queries, keys and values.
int64_t joined_of(const Setting& s) {
  const ModelConfig c = config_of(s);
  const int64_t keys = c.hidden / c.heads * c.num_kv_heads() * size_of(s.dtype);
  return c.layers * (keys % kArenaAlignment == 0 ? 5 : 3);
}

TraceOptions options_of(const Setting& s) {
  TraceOptions options;
  options.dtype = s.dtype;
  options.optimizer = {
      .lr = 3e-3, .min_lr = 3e-4, .warmup = 2, .total_steps = 8, .micro_batches = s.micro_batches};
  return options;
}

Program lowered(const Graph& graph, const std::vector<std::string>& off = {}) {
  return lower(graph, plan_for(graph, "1", {}), {true, off});
}

Program lowered(const Setting& s, const std::vector<std::string>& off = {}) {
  return lowered(trace(config_of(s), options_of(s)), off);
}

// As the processor can run it, which multiplies halves in f32: then nothing is stored wider.
Program runnable(const Setting& s, std::vector<std::string> off) {
  if (s.dtype != DType::kBF16) return lowered(s, off);
  off.emplace_back("wide");
  if (s.micro_batches > 1) off.emplace_back("chain");  // of casts to f32
  return widened(lowered(s, off));
}

// Of numbers relative to the largest of their tensor. In f32, and in f32 instead of bf16, sums are
// in another order, which AdamW's quotients make more of.
double tolerance_of(const Setting& s) { return s.dtype == DType::kF64 ? 1e-12 : 2e-4; }

int made(const Program& p) {
  for (size_t f = 0; f < fusions().size(); ++f) {
    if (fusions()[f].name == "siblings") return p.fusions[f];
  }
  return -1;
}

std::vector<double> numbers(const Runtime& runtime, const std::string& name) {
  const std::vector<std::byte> bytes = runtime.read_source(name);
  const DType type = runtime.source_type(name).dtype;
  const size_t n = bytes.size() / static_cast<size_t>(size_of(type));
  std::vector<double> result;
  for (size_t i = 0; i < n; ++i) {
    double wide = 0;
    float narrow = 0;
    int32_t whole = 0;
    if (type == DType::kF64) {
      std::memcpy(&wide, bytes.data() + i * sizeof wide, sizeof wide);
    } else if (type == DType::kF32) {
      std::memcpy(&narrow, bytes.data() + i * sizeof narrow, sizeof narrow);
      wide = narrow;
    } else {
      std::memcpy(&whole, bytes.data() + i * sizeof whole, sizeof whole);
      wide = whole;
    }
    result.push_back(wide);
  }
  return result;
}

// What a checkpoint holds.
std::vector<std::string> states_of(const Program& p) {
  std::vector<std::string> names;
  for (const ProgramSource& s : p.sources) {
    if (s.is_rest) continue;
    if (s.kind == SourceKind::kParameter || s.kind == SourceKind::kState) names.push_back(s.name);
  }
  return names;
}

// Steps [first, last).
void train(Runtime& runtime, const Setting& s, int64_t first, int64_t last,
           std::vector<double>* curve = nullptr) {
  for (int64_t step = first; step < last; ++step) {
    for (int64_t m = 0; m < s.micro_batches; ++m) {
      testing::feed(runtime, config_of(s), step * s.micro_batches + m);
      if (m + 1 < s.micro_batches) runtime.accumulate();
    }
    const StepResult r = runtime.step();
    if (curve == nullptr) continue;
    curve->push_back(r.value("loss"));
    curve->push_back(r.value("grad_norm"));
  }
}

// The largest difference between two lists, beside the size of the second's largest number.
double difference(const std::vector<double>& a, const std::vector<double>& b) {
  double worst = a.size() == b.size() ? 0 : INFINITY, size = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    worst = std::max(worst, std::abs(a[i] - b[i]));
    size = std::max(size, std::abs(b[i]));
  }
  return size == 0 ? worst : worst / size;
}

// Six steps by both: losses and norms, and every parameter and moment, differ by no more.
void expect_same_training(Program with, Program without, const Setting& s, double tolerance) {
  const std::vector<std::string> states = states_of(with);
  CpuRuntime a(std::move(with), {.seed = 42}), b(std::move(without), {.seed = 42});
  a.initialize();
  b.initialize();
  std::vector<double> got, want;
  train(a, s, 0, 6, &got);
  train(b, s, 0, 6, &want);
  EXPECT_LE(difference(got, want), tolerance);
  for (const std::string& name : states)
    EXPECT_LE(difference(numbers(a, name), numbers(b, name)), tolerance) << name;
}

class Siblings : public ::testing::TestWithParam<Setting> {};

TEST_P(Siblings, TrainLikeTheParts) {
  const Setting& s = GetParam();
  for (const bool alone : {false, true}) {
    std::vector<std::string> others = fusions_in("all");
    for (const char* name : {"siblings", "copies"}) std::erase(others, name);
    if (!alone) others.clear();
    std::vector<std::string> off = others;
    off.emplace_back("siblings");
    const Program with = runnable(s, others), without = runnable(s, off);
    EXPECT_EQ(made(with), joined_of(s));
    EXPECT_EQ(made(without), 0);
    expect_same_training(with, without, s, tolerance_of(s));
  }
}

// Nothing is copied, and what is kept from step to step takes the same memory; what a step holds
// takes little more, as the gradients of both are there at once.
TEST_P(Siblings, LieSideBySide) {
  const Setting& s = GetParam();
  const Program with = lowered(s, {"chain"}), without = lowered(s, {"chain", "siblings"});
  const auto kept = [](const Program& p) {
    int64_t bytes = 0;
    for (const Buffer& b : p.buffers) bytes += b.persistent ? b.bytes : 0;
    return bytes;
  };
  EXPECT_EQ(kept(with), kept(without));
  EXPECT_LE(with.arena_bytes, without.arena_bytes + without.arena_bytes / 50);
  int64_t stacks = 0, views = 0, lines = 0, slices = 0, updates = 0, added = 0;
  for (const Instr& i : with.instrs) {
    EXPECT_NE(i.kind, InstrKind::kCopy) << i.where;
    if (i.op == &ops::stack || i.op == &ops::unbind) {
      EXPECT_TRUE(is_view(with, i)) << i.where;
      (i.op == &ops::stack ? stacks : views) += 1;
    }
    if (i.op == &ops::concat || i.op == &ops::slice) {
      EXPECT_TRUE(is_view(with, i)) << i.where;
      (i.op == &ops::concat ? lines : slices) += 1;
    }
    // The update reads and writes what is dense, and makes its results in place.
    if (i.op == &ops::adamw) {
      ++updates;
      for (const TensorId t : i.in) {
        const Geometry& g = with.tensor(t).geometry;
        EXPECT_EQ(g.strides, contiguous_strides(g.shape)) << i.where;
      }
      EXPECT_EQ(with.tensor(i.out[0]).geometry, with.tensor(i.in[0]).geometry) << i.where;
      EXPECT_EQ(with.tensor(i.out[0]).buffer, with.tensor(i.in[0]).buffer) << i.where;
    }
    // Over several micro-batches, the gradients of weights are added up in place.
    const Shape& made = with.tensor(i.out[0]).geometry.shape;
    const ModelConfig c = config_of(s);
    const int64_t qkv = c.hidden + 2 * c.hidden / c.heads * c.num_kv_heads();
    if (i.op == &ops::linear && i.attrs.has("residual") &&
        (made == Shape{2, c.ffn, c.hidden} || made == Shape{qkv, c.hidden})) {
      ++added;
      EXPECT_EQ(with.tensor(i.in[2]).buffer, with.tensor(i.out[0]).buffer) << i.where;
      EXPECT_EQ(with.tensor(i.in[2]).geometry, with.tensor(i.out[0]).geometry) << i.where;
    }
  }
  const int64_t layers = config_of(s).layers, groups = joined_of(s) > 3 * layers ? 2 : 1;
  const int64_t wholes = (s.micro_batches > 1 ? 3 : 2) * layers;
  EXPECT_EQ(views, 2 * layers);
  EXPECT_EQ(stacks, wholes);
  EXPECT_EQ(lines, groups > 1 ? wholes : 0);
  EXPECT_EQ(slices, groups > 1 ? 3 * layers : 0);
  EXPECT_EQ(added, s.micro_batches > 1 ? groups * layers : 0);
  const auto products = [](const Program& p) {
    return std::count_if(p.instrs.begin(), p.instrs.end(), [](const Instr& i) {
      return i.op == &ops::matmul || i.op == &ops::linear;
    });
  };
  EXPECT_EQ(products(without) - products(with), (groups > 1 ? 3 + 4 : 3) * layers);
  EXPECT_GT(updates, 0);
}

// A checkpoint has every tensor by itself: what the one has trained, the other goes on with, and
// reads the same bits.
TEST_P(Siblings, GoOnWithoutEachOther) {
  const Setting& s = GetParam();
  const auto program = [&](bool with) {
    return runnable(s, with ? std::vector<std::string>{} : std::vector<std::string>{"siblings"});
  };
  const std::vector<std::string> states = states_of(program(true));
  CpuRuntime whole(program(true), {.seed = 42});
  whole.initialize();
  train(whole, s, 0, 3);
  for (const bool with : {true, false}) {
    CpuRuntime next(program(with), {.seed = 1});
    next.initialize();
    train(next, s, 0, 1);  // to be overwritten
    for (const std::string& name : states) next.write_source(name, whole.read_source(name));
    for (const std::string& name : states)
      EXPECT_EQ(next.read_source(name), whole.read_source(name)) << name;
    CpuRuntime again(program(true), {.seed = 42});
    again.initialize();
    train(again, s, 0, 6);
    train(next, s, 3, 6);
    for (const std::string& name : states) {
      if (with) {
        EXPECT_EQ(next.read_source(name), again.read_source(name)) << name;
      } else {
        EXPECT_LE(difference(numbers(next, name), numbers(again, name)), tolerance_of(s)) << name;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Programs, Siblings,
    ::testing::Values(
        Setting{}, Setting{.micro_batches = 3}, Setting{.dtype = DType::kF32},
        Setting{.dtype = DType::kBF16}, Setting{.dtype = DType::kBF16, .micro_batches = 2},
        Setting{.model = "qwen2.5:tiny"}, Setting{.model = "qwen2.5:tiny", .micro_batches = 2},
        Setting{.model = "qwen2.5:tiny", .dtype = DType::kBF16},
        Setting{.dtype = DType::kBF16, .hidden = 64},
        Setting{.model = "qwen2.5:tiny", .dtype = DType::kBF16, .micro_batches = 2, .hidden = 64}),
    [](const auto& info) {
      const Setting& s = info.param;
      return s.model.substr(0, s.model.find_first_of(".:")) + std::string(name_of(s.dtype)) +
             std::to_string(s.micro_batches) + "of" + std::to_string(s.hidden);
    });

// The backward that computes both again does so by one product, too, of the same weights.
TEST(SiblingsAgain, WhatIsComputedAgain) {
  for (const int64_t micro_batches : {1, 2}) {
    const Setting s{.micro_batches = micro_batches};
    PlannerOptions options;
    options.mesh = parse_mesh("1");
    options.space.recompute = true;
    options.pins.recompute = Recompute::kFull;
    const Graph graph = trace(config_of(s), options_of(s));
    const PlanResult found = find_plan(graph, parse_cluster("cpu:1"), options);
    ASSERT_TRUE(found.plan && !found.plan->rewrite.remade.empty());
    const Program with = lower(*found.graph, *found.plan, true);
    EXPECT_EQ(made(with), joined_of(s) + config_of(s).layers);
    expect_same_training(with, lower(*found.graph, *found.plan, {true, {"siblings"}}), s, 1e-12);
  }
}

// --- Programs by hand ----------------------------------------------------------------------------

// A loss of x [b, s, 32] for weights that stand in the products as given.
using Hidden = std::function<Tensor(const Tensor& x)>;

Graph graph_of(const Hidden& hidden, const Setting& s = {}) {
  const auto loss = [&](const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
    const Tensor x = Embedding("embed", c.vocab, 32)(tokens);
    const Tensor logits = linear(hidden(x), parameter("head", {c.vocab, 32}, normal(0.1)));
    return cross_entropy(logits, targets);
  };
  return trace("by hand", config_of(s), loss, options_of(s));
}

Tensor weight(const char* name, int64_t rows, int64_t columns) {
  return parameter(name, {rows, columns}, normal(0.1));
}

// Any op in which the results meet, x read by others, too, whose gradients are added; the residual
// stream around it.
TEST(SiblingsByHand, AnyOpThatReadsBoth) {
  for (const int64_t micro_batches : {1, 2}) {
    const Setting s{.micro_batches = micro_batches};
    const Graph graph = graph_of(
        [](const Tensor& x) {
          const Tensor a = linear(x, weight("a", 64, 32)), b = linear(x, weight("b", 64, 32));
          return x + tanh(x) + linear(a * b, weight("down", 32, 64));
        },
        s);
    const Program with = lowered(graph);
    EXPECT_EQ(made(with), 3);
    expect_same_training(with, lowered(graph, {"siblings"}), s, 1e-12);
  }
}

// Both gradients are one product, the products forward are left as they are.
TEST(SiblingsByHand, BackwardAlone) {
  const std::map<std::string, Hidden> programs = {
      {"different sizes",
       [](const Tensor& x) {
         const Tensor a = linear(x, weight("a", 64, 32)), b = linear(x, weight("b", 16, 32));
         const Tensor u = tanh(a), v = tanh(b);
         return x + linear(u, weight("c", 32, 64)) + linear(v, weight("d", 32, 16));
       }},
      {"a bias",
       [](const Tensor& x) {
         const Tensor bias = parameter("bias", {16}, normal(0.1));
         const Tensor a = linear(x, weight("a", 64, 32)), b = linear(x, weight("b", 16, 32)) + bias;
         const Tensor u = tanh(a), v = tanh(b);
         return linear(u, weight("c", 32, 64)) + linear(v, weight("d", 32, 16));
       }},
      {"a weight that is read elsewhere, too",
       [](const Tensor& x) {
         const Tensor a = weight("a", 64, 32), b = weight("b", 64, 32);
         const Tensor y = linear(swiglu(linear(x, a), linear(x, b)), weight("down", 32, 64));
         return linear(gelu(linear(y, a)), weight("last", 32, 64));
       }},
      {"the same weights for two inputs",
       [](const Tensor& x) {
         const Tensor a = weight("a", 64, 32), b = weight("b", 64, 32), c = weight("c", 32, 64);
         const Tensor y = linear(swiglu(linear(x, a), linear(x, b)), c);
         return linear(swiglu(linear(y, a), linear(y, b)), c);
       }},
      {"results that lie apart before they meet",
       [](const Tensor& x) {
         // In this order: the gradients of both are there before either is multiplied.
         const Tensor b = linear(x, weight("b", 64, 32)), a = tanh(linear(x, weight("a", 64, 32)));
         return linear(swiglu(a, b), weight("down", 32, 64));
       }},
  };
  for (const auto& [name, hidden] : programs) {
    for (const int64_t micro_batches : {1, 2}) {
      SCOPED_TRACE(name);
      const Setting s{.micro_batches = micro_batches};
      const Graph graph = graph_of(hidden, s);
      const Program with = lowered(graph);
      EXPECT_EQ(made(with), 2);
      for (const Instr& i : with.instrs) EXPECT_NE(i.kind, InstrKind::kCopy) << i.where;
      expect_same_training(with, lowered(graph, {"siblings"}), s, 1e-12);
    }
  }
}

// More than a signature has letters for: 24, and the rest.
TEST(SiblingsByHand, ManyAreJoinedInGroups) {
  const Graph graph = graph_of([](const Tensor& x) {
    std::vector<Tensor> all;
    for (int i = 0; i < 26; ++i) {
      all.push_back(linear(x, weight(("up" + std::to_string(i)).c_str(), 16, 32)));
    }
    Tensor sum = tanh(all[0]);
    for (size_t i = 1; i < all.size(); ++i) sum = sum + tanh(all[i]);
    return linear(sum, weight("down", 32, 16));
  });
  const Program with = lowered(graph);
  EXPECT_EQ(made(with), 4);
  expect_same_training(with, lowered(graph, {"siblings"}), {}, 1e-12);
}

// Each is left as it is, and trains as it did.
TEST(SiblingsByHand, OthersAreLeftAlone) {
  const std::map<std::string, Hidden> programs = {
      {"one weight twice",
       [](const Tensor& x) {
         const Tensor a = weight("a", 64, 32);
         return linear(swiglu(linear(x, a), linear(x, a)), weight("down", 32, 64));
       }},
      {"different sizes, of which one is not aligned",
       [](const Tensor& x) {
         return linear(linear(x, weight("a", 64, 32)), weight("c", 32, 64)) +
                linear(linear(x, weight("b", 20, 32)), weight("d", 32, 20));
       }},
      {"different inputs",
       [](const Tensor& x) {
         return linear(swiglu(linear(x, weight("a", 64, 32)), linear(tanh(x), weight("b", 64, 32))),
                       weight("down", 32, 64));
       }},
      {"rows that would not be aligned",
       [](const Tensor& x) {
         return linear(swiglu(linear(x, weight("a", 20, 32)), linear(x, weight("b", 20, 32))),
                       weight("down", 32, 20));
       }},
      {"gradients of which one is made when another is no longer needed",
       [](const Tensor& x) {
         return linear(tanh(linear(x, weight("a", 64, 32))), weight("c", 32, 64)) +
                linear(tanh(linear(x, weight("b", 16, 32))), weight("d", 32, 16));
       }},
      {"a gradient that others read, too",
       [](const Tensor& x) {
         const Tensor a = linear(x, weight("a", 64, 32)), b = linear(x, weight("b", 16, 32));
         const Tensor u = tanh(a + parameter("u", {16, 64}, normal(0.1))), v = tanh(b);
         return linear(u, weight("c", 32, 64)) + linear(v, weight("d", 32, 16));
       }},
  };
  for (const auto& [name, hidden] : programs) {
    SCOPED_TRACE(name);
    const Graph graph = graph_of(hidden);
    const Program with = lowered(graph);
    EXPECT_EQ(made(with), 0);
    expect_same_training(with, lowered(graph, {"siblings"}), {}, 0);
  }
}

// Without training, too; but not when one of them is returned.
TEST(SiblingsByHand, WhatIsReturnedIsLeftAlone) {
  for (const bool returned : {false, true}) {
    Tracer tracer("forward", {.compute = DType::kF64});
    const Tensor x = data("x", {4, 32}, DType::kF64);
    const Tensor a = linear(x, weight("a", 64, 32)), b = linear(x, weight("b", 64, 32));
    tracer.output("y", swiglu(a, b));
    if (returned) tracer.output("b", b);
    EXPECT_EQ(made(lowered(tracer.finish())), returned ? 0 : 1);
  }
}

// SwiGLU goes into a product that a model wrote with both factors side by side, and its backward
// into the one that makes its gradient; others stay by themselves.
TEST(SiblingsByHand, SwigluOfAProductOfBoth) {
  // [batch, sequence, 2, 64] by one product; of these, where they lie.
  const auto both = [](const Tensor& x) {
    return contract(x, parameter("both", {2, 64, 32}, normal(0.1)), "bsk,Ank->bsAn");
  };
  const auto down = [](const Tensor& y) { return linear(y, weight("down", 32, 64)); };
  struct Case {
    const char* name;
    int64_t forward, backward;
    Hidden hidden;
  };
  const std::vector<Case> cases = {
      {"gate first", 1, 1,
       [&](const Tensor& x) {
         const std::vector<Tensor> of = both(x).unbind(2);
         return down(swiglu(of[0], of[1]));
       }},
      {"a dimension that could be split", 0, 1,
       [&](const Tensor& x) {
         const Tensor w = parameter("both", {2, 64, 32}, normal(0.1));
         const std::vector<Tensor> of = contract(x, w, "bsk,ank->bsan").unbind(2);
         return down(swiglu(of[0], of[1]));
       }},
      {"gate last", 0, 1,
       [&](const Tensor& x) {
         const std::vector<Tensor> of = both(x).unbind(2);
         return down(swiglu(of[1], of[0]));
       }},
      {"one is its own gate", 0, 1,
       [&](const Tensor& x) {
         const std::vector<Tensor> of = both(x).unbind(2);
         return down(swiglu(of[0], of[0]));
       }},
      {"the product is read elsewhere", 0, 1,
       [&](const Tensor& x) {
         const Tensor y = both(x);
         const std::vector<Tensor> of = y.unbind(2);
         return down(swiglu(of[0], of[1])) * mean(tanh(y));
       }},
      {"one of three", 0, 1,
       [&](const Tensor& x) {
         const Tensor w = parameter("three", {3, 64, 32}, normal(0.1));
         const std::vector<Tensor> of = contract(x, w, "bsk,Ank->bsAn").unbind(2);
         return down(swiglu(of[0], of[1])) * mean(tanh(of[2]));
       }},
      {"parts along another dimension", 0, 1,
       [&](const Tensor& x) {
         const Tensor w = parameter("both", {64, 2, 32}, normal(0.1));
         const std::vector<Tensor> of = contract(x, w, "bsk,nAk->bsnA").unbind(3);
         return down(swiglu(of[0], of[1]));
       }},
      {"the gradient is read elsewhere", 1, 0,
       [&](const Tensor& x) {
         const std::vector<Tensor> of = both(x).unbind(2);
         const Tensor more = parameter("more", {2, 16, 64}, normal(0.1));
         return down(swiglu(of[0], of[1]) + more);
       }},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const Graph graph = graph_of(c.hidden);
    const Program with = lowered(graph);
    int64_t forward = 0, backward = 0;
    for (const Instr& i : with.instrs) {
      forward += i.op == &ops::linear && i.attrs.has("swiglu");
      backward += i.op == &ops::linear && i.attrs.has("swiglu_backward");
    }
    EXPECT_EQ(forward, c.forward);
    EXPECT_EQ(backward, c.backward);
    expect_same_training(with, lowered(graph, {"swiglu"}), {}, 1e-12);
  }
}

// Products of 8 bits read codes of one weight each.
TEST(SiblingsByHand, NotWithFloatsOf8Bits) {
  const Setting s{.dtype = DType::kBF16};
  const Graph graph = trace(config_of(s), options_of(s));
  F8Options f8;
  f8.scaling = F8Scaling::kCurrent;
  EXPECT_EQ(made(lower(graph, plan_for(graph, "1", {}), {true, {}, f8})), 0);
}

}  // namespace
}  // namespace cleave
