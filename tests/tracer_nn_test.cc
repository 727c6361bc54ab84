// Layers and the optimizer: names, shapes, lines, and the structure of an update.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "graph/error.h"
#include "graph/text.h"
#include "kernels/ops.h"
#include "tests/support/interpreter.h"
#include "tracer/nn.h"
#include "tracer/optimizer.h"

namespace cleave {
namespace {

std::vector<std::string> parameter_names(const Graph& graph) {
  std::vector<std::string> names;
  for (const Source& s : graph.sources()) {
    if (s.kind == SourceKind::kParameter) names.push_back(s.name);
  }
  return names;
}

std::vector<const Node*> nodes_of(const Graph& graph, std::string_view op) {
  std::vector<const Node*> found;
  for (const Node& node : graph.nodes()) {
    if (node.op->name == op) found.push_back(&node);
  }
  return found;
}

Tensor input(Shape shape) { return data("x", std::move(shape), DType::kF32); }

TEST(Layers, NameTheirParametersUnderTheScope) {
  Tracer tracer("layers");
  {
    const Scope scope("h.0");
    const SelfAttention attn("attn", 32, 4);
    const SwigluMlp mlp("mlp", 32, 48);
  }
  const GroupedAttention attn("attn", 32, 4, 2);
  EXPECT_EQ(
      parameter_names(tracer.graph()),
      (std::vector<std::string>{"h.0.attn.qkv.weight", "h.0.attn.qkv.bias", "h.0.attn.proj.weight",
                                "h.0.attn.proj.bias", "h.0.mlp.gate.weight", "h.0.mlp.up.weight",
                                "h.0.mlp.proj.weight", "attn.q.weight", "attn.k.weight",
                                "attn.v.weight", "attn.proj.weight"}));
  EXPECT_EQ(attn.q.weight.shape(), (Shape{32, 32}));
  EXPECT_EQ(attn.k.weight.shape(), (Shape{16, 32}));
}

TEST(Layers, GroupedQueriesKeysAndValuesMayHaveBiases) {
  Tracer tracer("layers");
  const GroupedAttention attn("attn", 32, 4, 2, {.qkv_bias = true});
  EXPECT_EQ(
      parameter_names(tracer.graph()),
      (std::vector<std::string>{"attn.q.weight", "attn.q.bias", "attn.k.weight", "attn.k.bias",
                                "attn.v.weight", "attn.v.bias", "attn.proj.weight"}));
  EXPECT_EQ(attn.q.bias.shape(), Shape{32});
  EXPECT_EQ(attn.k.bias.shape(), Shape{16});
}

TEST(Layers, KeepTheShapeOfTheResidualStream) {
  Tracer tracer("layers");
  const Shape stream = {2, 6, 32};
  const Tensor x = input(stream);
  EXPECT_EQ(SelfAttention("fused", 32, 4)(x).shape(), stream);
  EXPECT_EQ(SelfAttention("turned", 32, 4, {.theta = 10000})(x).shape(), stream);
  EXPECT_EQ(GroupedAttention("grouped", 32, 4, 1, {.theta = 10000})(x).shape(), stream);
  EXPECT_EQ(Mlp("mlp", 32, 64)(x).shape(), stream);
  EXPECT_EQ(SwigluMlp("swiglu", 32, 64)(x).shape(), stream);
  EXPECT_EQ(LayerNorm("ln", 32)(x).shape(), stream);
  EXPECT_EQ(RmsNorm("rms", 32)(x).shape(), stream);
  EXPECT_EQ(Linear("linear", 32, 5)(x).shape(), (Shape{2, 6, 5}));
  const Tensor ids = data("ids", {2, 6}, DType::kI32);
  EXPECT_EQ(Embedding("embedding", 100, 8)(ids).shape(), (Shape{2, 6, 8}));
}

TEST(Layers, AreWhereTheyAreCalled) {
  Tracer tracer("layers");
  const Tensor x = input({2, 6, 32});
  const SelfAttention attn("attn", 32, 4, {.dropout = 0.1});
  const int line = __LINE__ + 1;
  attn(x);
  std::set<std::string> scopes;
  for (const Node& node : tracer.graph().nodes()) {
    EXPECT_EQ(tracer.graph().place(node.loc), fmt::format("tracer_nn_test.cc:{}", line))
        << node.op->name;
    scopes.insert(tracer.graph().scopes()[static_cast<size_t>(node.scope)]);
  }
  EXPECT_TRUE(scopes.contains("attn.qkv"));
  EXPECT_TRUE(scopes.contains("attn.proj"));
}

TEST(Layers, AWrongWidthIsTheUsersMistakeAtTheirLine) {
  Tracer tracer("layers");
  const Tensor x = input({2, 30});
  const Linear fc("fc", 32, 8);
  const int line = __LINE__ + 2;
  try {
    fc(x);
    FAIL() << "accepted";
  } catch (const Error& e) {
    const std::string what = e.what();
    EXPECT_NE(what.find(fmt::format("tracer_nn_test.cc:{}", line)), std::string::npos) << what;
    EXPECT_NE(what.find("[2, 30]"), std::string::npos) << what;
  }
}

TEST(Layers, DropoutsDrawDifferentNumbers) {
  Tracer tracer("layers");
  Tensor x = input({2, 6, 32});
  for (int i = 0; i < 2; ++i) {
    const Scope scope(fmt::format("h.{}", i));
    x = Mlp(fmt::format("mlp{}", i), 32, 64, 0.1)(x);
    x = Dropout("dropout", 0.1)(x);
    x = Dropout("dropout", 0.1)(x);
  }
  EXPECT_EQ(Dropout("none", 0)(x).value(), x.value());
  std::set<std::string> names;
  const auto nodes = nodes_of(tracer.graph(), "dropout");
  for (const Node* node : nodes) names.insert(node->attrs.text("name"));
  EXPECT_EQ(nodes.size(), 6u);
  EXPECT_EQ(names.size(), 6u);
}

// --- The optimizer -------------------------------------------------------------------------------

Tensor small_loss() {
  const Tensor x = data("x", {8, 16}, Tracer::current().compute_dtype());
  const Linear a("a", 16, 32), b("b", 32, 4);
  return mean(square(b(gelu(a(x)))));
}

Graph step_with(const OptimizerOptions& options, DType dtype = DType::kF32) {
  return trace_training_step("small", small_loss, options, {.compute = dtype});
}

TEST(Optimizer, AdamWUpdatesEveryParameterInPlace) {
  const Graph g = step_with({});
  EXPECT_EQ(parameter_names(g),
            (std::vector<std::string>{"a.weight", "a.bias", "b.weight", "b.bias"}));
  ASSERT_EQ(nodes_of(g, "adamw").size(), 4u);
  for (const std::string name : {"a.weight", "a.bias", "b.weight", "b.bias"}) {
    for (const std::string prefix : {"", "adam.m.", "adam.v."}) {
      const Source* s = g.source_named(prefix + name);
      ASSERT_NE(s, nullptr) << prefix + name;
      EXPECT_EQ(g.value(s->final).storage, g.value(s->value).storage);
      EXPECT_EQ(g.node(g.value(s->final).producer).op->name, "adamw");
      EXPECT_EQ(g.type(s->value), g.type(g.source_named(name)->value));
    }
  }
  const Source* step = g.source_named("step");
  ASSERT_NE(step, nullptr);
  EXPECT_EQ(g.type(step->value), (TensorType{DType::kI32, {}}));
  EXPECT_EQ(g.node(g.value(step->final).producer).op->name, "count_update");
  // The rate and the bias correction of the first step read 1.
  for (const char* op : {"adamw", "learning_rate"}) {
    for (const Node* node : nodes_of(g, op)) {
      const auto& in = node->inputs;
      EXPECT_NE(std::find(in.begin(), in.end(), step->final), in.end()) << op;
    }
  }
}

TEST(Optimizer, OnlyMatricesDecay) {
  for (const auto kind : {OptimizerOptions::Kind::kAdamW, OptimizerOptions::Kind::kSgd}) {
    const Graph g = step_with({.kind = kind, .weight_decay = 0.25});
    const bool adamw = kind == OptimizerOptions::Kind::kAdamW;
    const auto updates = nodes_of(g, adamw ? "adamw" : "sgd");
    ASSERT_EQ(updates.size(), 4u);
    for (const Node* node : updates) {
      const size_t rank = g.type(node->inputs[0]).shape.size();
      EXPECT_EQ(node->attrs.real("weight_decay"), rank >= 2 ? 0.25 : 0.0);
    }
  }
}

// An update follows the node that squared its gradient: an earlier one, over the same space.
TEST(Optimizer, UpdatesFollowTheSquaresOfTheirGradient) {
  const Graph g = step_with({});
  for (size_t n = 0; n < g.nodes().size(); ++n) {
    const Node& node = g.nodes()[n];
    if (node.op->name != "adamw") continue;
    ASSERT_NE(node.follows, kNoNode);
    EXPECT_LT(node.follows, static_cast<NodeId>(n));
    const Node& squares = g.node(node.follows);
    EXPECT_EQ(squares.op->name, "sum_squares");
    EXPECT_EQ(squares.inputs[0], node.inputs[1]);
    EXPECT_EQ(squares.signature->input_text(0), node.signature->input_text(0));
    EXPECT_EQ(node.phase, Phase::kUpdate);
    EXPECT_EQ(squares.phase, Phase::kUpdate);
    EXPECT_EQ(squares.loc, node.loc);
  }
}

TEST(Optimizer, OneScalarHoldsTheNormOfAllGradients) {
  const Graph g = step_with({.max_norm = 0.5});
  const auto total = nodes_of(g, "add_n");
  const Node* norm = nullptr;
  for (const Node* node : nodes_of(g, "clip_coefficient")) norm = node;
  ASSERT_NE(norm, nullptr);
  EXPECT_EQ(norm->attrs.real("max_norm"), 0.5);
  const Node& sum = g.node(g.value(norm->inputs[0]).producer);
  EXPECT_EQ(sum.op->name, "add_n");
  EXPECT_EQ(sum.inputs.size(), 4u);
  for (const Node* node : nodes_of(g, "adamw")) EXPECT_EQ(node->inputs[5], norm->outputs[1]);
}

// The update is told what its random numbers are called, where its shard lies, and the step.
TEST(Optimizer, MomentsInBf16) {
  for (const auto kind : {OptimizerOptions::Kind::kAdamW, OptimizerOptions::Kind::kSgd}) {
    const bool adamw = kind == OptimizerOptions::Kind::kAdamW;
    const Graph g = step_with({.kind = kind, .moments = DType::kBF16}, DType::kBF16);
    std::set<std::string> names;
    for (const Node* node : nodes_of(g, adamw ? "adamw" : "sgd")) {
      EXPECT_EQ(g.type(node->inputs[0]).dtype, DType::kF32);
      for (size_t i = 2; i < (adamw ? 4u : 3u); ++i) {
        EXPECT_EQ(g.type(node->inputs[i]).dtype, DType::kBF16);
      }
      EXPECT_EQ(node->inputs.back(), g.source_named("step")->final);
      for (const Factor& f : node->signature->factors()) EXPECT_TRUE(f.indexed);
      names.insert(node->attrs.text("name"));
    }
    const std::string prefix = adamw ? "adam." : "sgd.";
    EXPECT_EQ(names, (std::set<std::string>{prefix + "a.weight", prefix + "a.bias",
                                            prefix + "b.weight", prefix + "b.bias"}));
    EXPECT_EQ(to_text(graph_from_text(to_text(g), ops::find)), to_text(g));
    // Those of the parameters' own type are what they are when nothing is said.
    EXPECT_EQ(to_text(step_with({.kind = kind, .moments = DType::kF32})),
              to_text(step_with({.kind = kind})));
  }
  EXPECT_THROW(step_with({.moments = DType::kF16}), Error);
  EXPECT_THROW(step_with({.moments = DType::kF32}, DType::kF64), Error);
}

TEST(Optimizer, Bf16KeepsParametersMomentsAndGradientsInF32) {
  const Graph g = step_with({}, DType::kBF16);
  for (const Node* node : nodes_of(g, "adamw")) {
    for (size_t i = 0; i < 6; ++i) EXPECT_EQ(g.type(node->inputs[i]).dtype, DType::kF32) << i;
  }
  for (const Node* node : nodes_of(g, "matmul")) {
    EXPECT_EQ(g.type(node->outputs[0]).dtype, DType::kBF16);
  }
}

// Three steps of SGD on mean((w - 3)^2), by hand.
TEST(Optimizer, SgdFollowsItsFormula) {
  for (const double max_norm : {0.0, 0.25}) {
    OptimizerOptions options;
    options.kind = OptimizerOptions::Kind::kSgd;
    options.schedule = OptimizerOptions::Schedule::kConstant;
    options.lr = 0.5;
    options.warmup = 2;
    options.momentum = 0.75;
    options.weight_decay = 0.125;
    options.max_norm = max_norm;
    const auto model = [] { return mean(square(parameter("w", {2, 2}, constant(1)) - 3.0)); };
    const Graph graph = trace_training_step("w", model, options, {.compute = DType::kF64});
    Interpreter interpreter(graph);
    double w = 1, buffer = 0;
    for (int step = 1; step <= 3; ++step) {
      interpreter.run();
      const auto results = interpreter.results();
      EXPECT_NEAR(results.at("loss")[0], (w - 3) * (w - 3), 1e-12);
      const double grad = 2 * (w - 3) / 4, norm = std::abs(grad) * 2;
      EXPECT_NEAR(results.at("grad_norm")[0], norm, 1e-12);
      const double lr = options.lr * std::min(1.0, step / 2.0);
      EXPECT_NEAR(results.at("lr")[0], lr, 1e-15);
      const double clip = max_norm == 0 ? 1 : std::min(1.0, max_norm / (norm + 1e-6));
      buffer = 0.75 * buffer + grad * clip + 0.125 * w;
      w -= lr * buffer;
      for (const double x : results.at("w")) EXPECT_NEAR(x, w, 1e-12) << step;
      for (const char* s : {"w", "sgd.momentum.w", "step"}) interpreter.set(s, results.at(s));
    }
  }
}

TEST(Optimizer, SettingsThatMakeNoSenseAreRefused) {
  EXPECT_THROW(step_with({.warmup = 10, .total_steps = 10}), Error);
  EXPECT_THROW(step_with({.lr = -1}), Error);
  EXPECT_THROW(step_with({.beta2 = 1}), Error);
  EXPECT_THROW(step_with({.max_norm = -1}), Error);
  EXPECT_NO_THROW(step_with({.schedule = OptimizerOptions::Schedule::kConstant, .total_steps = 1}));
  Tracer tracer("nothing to train");
  EXPECT_THROW(optimize(mean(input({4})), {}), Error);
}

}  // namespace
}  // namespace cleave
