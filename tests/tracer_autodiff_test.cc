// Gradients of composite programs against finite differences in f64, and the mistakes that autodiff
// refuses.
#include "tracer/autodiff.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "graph/error.h"
#include "tests/support/interpreter.h"
#include "tracer/functional.h"

namespace cleave {
namespace {

Tensor weight(const char* name, Shape shape) {
  return parameter(name, std::move(shape), {Init::Kind::kNormal, 1});
}

// A graph with outputs "loss" and "d NAME" for every parameter.
Graph with_gradients(const std::function<Tensor()>& program, DType compute = DType::kF64) {
  Tracer tracer("program", {.compute = compute});
  const Tensor loss = program();
  const std::vector<Tensor> grads = gradients(loss, tracer.parameters());
  tracer.output("loss", loss);
  for (size_t i = 0; i < grads.size(); ++i) {
    tracer.output("d " + tracer.name_of(tracer.parameters()[i]), grads[i]);
  }
  return tracer.finish();
}

using Data = std::map<std::string, std::vector<double>>;

struct Program {
  const char* name;
  std::function<Tensor()> loss;
  Data data = {};
};

const std::vector<Program>& programs() {
  static const std::vector<Program> all = {
      {"SharedValues",
       [] {
         const Tensor x = weight("x", {3, 2});
         const Tensor y = x * x + 3 * x - 1;
         return mean(square(y * x - y / 2 + (2 - x)));
       }},
      {"Broadcasting",
       [] {
         const Tensor x = weight("x", {4, 3}), r = weight("r", {3}), c = weight("c", {4, 1});
         const Tensor s = weight("s", {}), u = weight("u", {1, 3});
         const Tensor y = x * r + c - s;
         return sum(y * u / (2 + square(c)) - r * s);
       }},
      {"BroadcastingOfLeadingDims",
       [] {
         const Tensor x = weight("x", {2, 1, 3}), y = weight("y", {4, 1});
         return sum(square(x - y) * x);
       }},
      {"Pointwise",
       [] {
         const Tensor x = weight("x", {7});
         const Tensor p = square(x) + 0.5;
         return sum(exp(0.3 * x) + log(p) * sqrt(p) + reciprocal(p) + relu(x) * tanh(x) +
                    sigmoid(x) * silu(x) + gelu(x) + 1 / p - p / (p + 2) + (-x));
       }},
      {"Views",
       [] {
         const Tensor x = weight("x", {4, 6});
         const Tensor a = x.view({2, 2, 6}).permute({2, 0, 1})[{1, 6, 2}];  // [3, 2, 2]
         const Tensor b = x.t().reshape({24}).slice(0, 3, 15).view({3, 2, 2});
         const Tensor c = x.select(1, 2).unsqueeze(0).expand({3, 4}).reshape({3, 2, 2});
         return sum(exp(0.2 * a) * b + square(c) * a);
       }},
      {"ReshapeThatDoesNotLineUp",
       [] {
         const Tensor x = weight("x", {4, 6}), y = weight("y", {3, 8});
         return sum(square(x.reshape({3, 8}) * y) + y.reshape({6, 4}).reshape({3, 8}));
       }},
      {"UnbindAndSplit",
       [] {
         const Tensor x = weight("x", {2, 3, 4});
         const auto u = x.unbind(1);             // number 1 is not used
         const auto c = x.chunk(2, -1);          // [2, 3, 2]
         const auto s = x.split(Dims{1, 3}, 2);  // [2, 3, 1], [2, 3, 3]
         return sum(u[0] * u[2]) + sum(square(c[0]) * c[1]) + sum(s[0] * s[1]);
       }},
      {"Joins",
       [] {
         const Tensor x = weight("x", {2, 3}), y = weight("y", {2, 2}), z = weight("z", {2, 3});
         const Tensor c = cat({x, y, x}, 1), s = stack({x, z, x}, 1);  // [2, 8], [2, 3, 3]
         return sum(square(c)) + sum(exp(0.1 * s) * s.transpose(1, 2)) + sum(cat({y, y}, 0));
       }},
      {"CatOfMany",
       [] {
         const Tensor x = weight("x", {2, 11});
         std::vector<Tensor> parts = x.unbind(1);
         for (Tensor& p : parts) p = p.unsqueeze(1);
         std::reverse(parts.begin(), parts.end());
         return sum(square(cat(parts, 1) - 2 * x) * x);
       }},
      {"Products",
       [] {
         const Tensor x = weight("x", {2, 3, 4}), w = weight("w", {5, 4}), v = weight("v", {5, 2});
         const Tensor b = weight("b", {1, 2, 3});
         const Tensor h = linear(x, w);             // [2, 3, 5]
         const Tensor m = matmul(b, matmul(h, v));  // [2, 2, 2]
         const Tensor c = contract(h, v, "bsk,kn->bns");
         return sum(square(m)) + sum(c * c.transpose(1, 2).transpose(1, 2));
       }},
      {"Reductions",
       [] {
         const Tensor x = weight("x", {3, 4, 2});
         const Tensor m = x.mean({1}, true), l = logsumexp(x, {-1}), s = x.sum({0, 2});
         return sum(square(x - m)) + sum(l * x.sum({2})) + sum(s * s) + l.mean();
       }},
      {"Softmax",
       [] {
         const Tensor x = weight("x", {3, 4}), y = weight("y", {3, 4});
         return sum(softmax(x) * y + softmax(x * y, 0) * x);
       }},
      {"InPlaceOnSlices",
       [] {
         const Tensor x = weight("x", {4, 3}), y = weight("y", {2, 3}), r = weight("r", {3});
         const Tensor h = 2 * x;
         h[{0, 2}].add_(y);
         h[{1, 3}].mul_(0.5);
         h[3].copy_(r);
         h.slice(1, 0, 1).zero_();
         return sum(exp(0.3 * h) * x);
       }},
      {"InPlaceThroughChains",
       [] {
         const Tensor x = weight("x", {4, 6}), y = weight("y", {3, 2}), z = weight("z", {6, 4});
         const Tensor h = x + 1;
         const Tensor alias = h.view({2, 2, 6});
         h.t().add_(z);
         h.chunk(2, 1)[1].sub_(y.sum());
         h[{1, 3}].t()[{2, 5}].copy_(y);
         h.unbind(0)[2].add_(y.view({6}));
         return sum(square(alias) * alias) + sum(h);
       }},
      {"InPlaceOverOwnAlias",
       [] {
         const Tensor x = weight("x", {3, 3});
         const Tensor h = 1 * x;
         h.add_(h.t());
         h[{0, 2}].copy_(h[{1, 3}]);
         h.sub_(h[0]);
         return sum(square(h) * x);
       }},
      {"InPlaceDivisionByNumberAndAccumulation",
       [] {
         const Tensor x = weight("x", {5});
         Tensor total = zeros({});
         for (int i = 1; i <= 4; ++i) total += sum(square(x * i) * x / i);
         total /= 3;
         return total.clone();
       }},
      {"LoopOverASharedWeight",
       [] {
         const Tensor w = weight("w", {3, 3}), x = weight("x", {2, 3});
         Tensor h = x;
         for (int i = 0; i < 3; ++i) h = h + tanh(linear(h, w));
         return mean(square(h));
       }},
      {"Norms",
       [] {
         const Tensor x = weight("x", {2, 3, 4}), g = weight("g", {4}), b = weight("b", {4});
         return sum(exp(0.3 * layer_norm(x, g, b))) + sum(square(rms_norm(x * x + x, g)) * x);
       }},
      {"Gated",
       [] {
         const Tensor x = weight("x", {2, 6}), w = weight("w", {3});
         const auto c = x.chunk(2, 1);
         return sum(swiglu(c[0], c[1] * w) * c[1]);
       }},
      {"Dropout",
       [] {
         const Tensor x = weight("x", {4, 5});
         const Scope scope("mlp");
         return sum(dropout(square(x), 0.4) + dropout(x, 0.2) * x);
       }},
      {"AttentionWithDropout",
       [] {
         const Tensor q = weight("q", {2, 3, 4, 2}), k = weight("k", {2, 3, 2, 2});
         const Tensor v = weight("v", {2, 3, 2, 2});
         return sum(square(attention(q, k, v, {.causal = true, .scale = {}, .dropout = 0.3})));
       }},
      {"CrossAttention",
       [] {
         const Tensor q = weight("q", {2, 3, 2, 4}), k = weight("k", {2, 5, 2, 4});
         const Tensor v = weight("v", {2, 5, 2, 3});
         return sum(square(attention(q, k, v, {.causal = false, .scale = 0.7, .dropout = 0})));
       }},
      {"Transformer",
       [] {
         const Tensor ids = data("ids", {2, 4}, DType::kI32), to = data("to", {2, 4}, DType::kI32);
         const Tensor table = weight("table", {5, 6}), qkv = weight("qkv", {18, 6});
         const Tensor out = weight("out", {6, 6}), gain = weight("gain", {6});
         Tensor x = embedding(table, ids);
         const auto parts = linear(rms_norm(x, gain), qkv).view({2, 4, 3, 3, 2}).unbind(2);
         const Tensor a = attention(rotary(parts[0]), rotary(parts[1]), parts[2]);
         x = x + linear(a.flatten(2), out);
         return cross_entropy(linear(x, table), to, -100);
       },
       {{"ids", {0, 1, 2, 3, 4, 3, 3, 0}}, {"to", {1, 2, 3, -100, 3, 3, 0, -100}}}},
  };
  return all;
}

class Gradients : public testing::TestWithParam<size_t> {};

TEST_P(Gradients, EqualFiniteDifferences) {
  const Program& program = programs()[GetParam()];
  const Graph graph = without_dead_nodes(with_gradients(program.loss));
  Interpreter interpreter(graph);
  for (const auto& [name, numbers] : program.data) interpreter.set(name, numbers);
  interpreter.run();
  const auto results = interpreter.results();
  // Whatever order the dependencies allow.
  const std::vector<Dependency> all = dependencies(graph);
  std::mt19937 random(3);
  for (int round = 0; round < 5; ++round) {
    interpreter.run(random_order(working_nodes(graph), all, random));
    EXPECT_EQ(interpreter.results(), results);
  }
  const Value loss = graph.outputs()[0].value;
  for (const Source& s : graph.sources()) {
    if (s.kind != SourceKind::kParameter) continue;
    const std::vector<double> at = interpreter.initial(s.name);
    const std::vector<double>& gradient = results.at("d " + s.name);
    for (size_t i = 0; i < at.size(); ++i) {
      const double step = 1e-5;
      double sides[2];
      for (int side = 0; side < 2; ++side) {
        std::vector<double> moved = at;
        moved[i] += side == 0 ? step : -step;
        interpreter.set(s.name, moved);
        interpreter.run();
        sides[side] = interpreter.numbers(loss)[0];
      }
      const double expected = (sides[0] - sides[1]) / (2 * step);
      EXPECT_NEAR(gradient[i], expected, 1e-6 * (1 + std::abs(expected)))
          << "element " << i << " of " << s.name;
    }
    interpreter.set(s.name, at);
  }
}

TEST_P(Gradients, BackwardNodesFollowTheirForward) {
  const Graph graph = with_gradients(programs()[GetParam()].loss);
  bool backward = false;
  for (const Node& node : graph.nodes()) {
    backward |= node.phase == Phase::kBackward;
    EXPECT_EQ(node.phase, backward ? Phase::kBackward : Phase::kForward);
    EXPECT_GE(node.loc.file, 0) << node.op->name;
    if (node.follows == kNoNode) continue;
    const Node& forward = graph.node(node.follows);
    EXPECT_EQ(forward.phase, Phase::kForward);
    EXPECT_EQ(node.loc, forward.loc);
    EXPECT_EQ(node.scope, forward.scope);
  }
  EXPECT_TRUE(backward);
}

INSTANTIATE_TEST_SUITE_P(Programs, Gradients, testing::Range(size_t{0}, programs().size()),
                         [](const auto& info) { return programs()[info.param].name; });

TEST(Autodiff, StopsAtDetach) {
  const Graph graph = with_gradients([] {
    const Tensor x = weight("x", {5});
    return sum(square(x).detach() * x);
  });
  Interpreter interpreter(graph);
  interpreter.run();
  const auto results = interpreter.results();
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_DOUBLE_EQ(results.at("d x")[i], std::pow(interpreter.initial("x")[i], 2));
  }
}

TEST(Autodiff, AddsOnceAndNotInPairs) {
  const Graph graph = with_gradients([] {
    const Tensor x = weight("x", {5});
    return sum(x + exp(x) + tanh(x) + square(x));
  });
  int sums = 0;
  for (const Node& node : graph.nodes()) {
    if (node.op->name != "add_n") continue;
    ++sums;
    EXPECT_EQ(node.inputs.size(), 4u);
    EXPECT_EQ(node.follows, kNoNode);
  }
  EXPECT_EQ(sums, 1);
}

TEST(Autodiff, ParametersInBfloat16AreCastOnce) {
  const Graph graph = with_gradients(
      [] {
        const Tensor w = weight("w", {4, 4});
        const Tensor x = data("x", {2, 4}, DType::kBF16);
        const Tensor y = linear(linear(x, w), w).to(DType::kF32);
        return sum(y);
      },
      DType::kBF16);
  int forward = 0, backward = 0;
  for (const Node& node : graph.nodes()) {
    if (node.op->name != "cast" || graph.type(node.outputs[0]).shape != Shape{4, 4}) continue;
    ++(node.phase == Phase::kForward ? forward : backward);
  }
  EXPECT_EQ(forward, 1);
  EXPECT_EQ(backward, 1);
  EXPECT_EQ(to_string(graph.type(graph.outputs()[1].value)), "f32[4, 4]");
}

// --- Mistakes ------------------------------------------------------------------------------------

// The message of the Error that `fn` throws.
std::string refusal(const std::function<void()>& fn) {
  Tracer tracer("mistake", {.compute = DType::kF64});
  try {
    fn();
  } catch (const Error& e) {
    return e.what();
  }
  return "nothing was refused";
}

// Part of a message; or the place of a line, which is known only when the message is there.
struct Part {
  Part(const char* t) : text(t) {}
  Part(std::string t) : text(std::move(t)) {}
  Part(const int& l) : line(&l) {}
  std::string text;
  const int* line = nullptr;
};

std::string here(int line) { return fmt::format("tracer_autodiff_test.cc:{}", line); }

void expect_parts(const std::string& message, const std::vector<Part>& parts) {
  for (const Part& p : parts) {
    const std::string part = p.line == nullptr ? p.text : here(*p.line);
    EXPECT_NE(message.find(part), std::string::npos) << "no '" << part << "' in: " << message;
  }
}

TEST(Mistakes, AParameterThatDoesNotReachTheLoss) {
  int line = 0;
  expect_parts(refusal([&] {
                 const Tensor x = weight("x", {3});
                 line = __LINE__ + 1;
                 const Tensor w = parameter("w", {3}, {});
                 const Tensor all[] = {x, w};
                 gradients(sum(x * w.detach()), all);
               }),
               {"param 'w'", line, "does not reach the loss"});
}

TEST(Mistakes, AValueOverwrittenBeforeTheBackward) {
  int needs = 0, writes = 0;
  const std::string message = refusal([&] {
    const Tensor x = weight("x", {3, 2});
    const Tensor h = 2 * x;
    needs = __LINE__ + 1;
    const Tensor y = square(h);
    writes = __LINE__ + 1;
    h[{1, 2}].add_(1);
    const Tensor all[] = {x};
    gradients(sum(y), all);
  });
  expect_parts(message,
               {"square", "f64[3, 2]", "write_slice", "overwritten in place", needs, writes});
}

TEST(Mistakes, OnlyWhatTheBackwardReadsMustSurvive) {
  const auto program = [](int64_t start, bool into_exp) {
    return refusal([=] {
      const Tensor x = weight("x", {4, 2});
      const Tensor h = 2 * x;
      const Tensor y = square(h[{0, 2}]);  // its gradient needs rows 0 and 1
      const Tensor z = h + 1;              // needs nothing
      h[{start, start + 1}].zero_();
      const Tensor all[] = {x};
      gradients(sum(y) + sum(z) + (into_exp ? sum(exp(h)) : sum(h)), all);
    });
  };
  EXPECT_EQ(program(2, false), "nothing was refused");
  EXPECT_EQ(program(3, true), "nothing was refused");
  expect_parts(program(1, false), {"square", "overwritten"});
}

TEST(Mistakes, MultiplyingInPlaceByWhatIsTrained) {
  expect_parts(refusal([] {
                 const Tensor x = weight("x", {3}), w = weight("w", {3});
                 const Tensor h = 2 * x;
                 h.mul_(w);
                 const Tensor all[] = {x, w};
                 gradients(sum(h), all);
               }),
               {"mul", "overwritten in place"});
}

TEST(Mistakes, AnOpWithoutAGradient) {
  int line = 0;
  expect_parts(refusal([&] {
                 const Tensor x = weight("x", {3, 2});
                 line = __LINE__ + 1;
                 const Tensor y = max(x, {1});
                 const Tensor all[] = {x};
                 gradients(sum(y), all);
               }),
               {"max has no gradient", line});
}

TEST(Mistakes, ALossThatIsNoScalar) {
  int line = 0;
  expect_parts(refusal([&] {
                 const Tensor x = weight("x", {3, 2});
                 const Tensor all[] = {x};
                 line = __LINE__ + 1;
                 gradients(x, all);
               }),
               {"gradients(f64[3, 2])", "scalar", line});
}

TEST(Mistakes, WrongShapesNameTheUsersLine) {
  int line = 0;
  const auto with = [&](const std::function<void(Tensor, Tensor)>& fn) {
    return refusal([&] { fn(data("x", {2, 3}, DType::kF64), data("y", {4, 5}, DType::kF64)); });
  };
  const std::string both = "f64[2, 3], f64[4, 5]";
  expect_parts(with([&](Tensor x, Tensor y) { line = __LINE__, x + y; }), {"add", both, line});
  expect_parts(with([&](Tensor x, Tensor y) { line = __LINE__, matmul(x, y); }),
               {"matmul", both, line});
  expect_parts(with([&](Tensor x, Tensor y) { line = __LINE__, x.add_(y); }), {"add_", both, line});
  expect_parts(with([&](Tensor x, Tensor y) {
                 line = __LINE__, x[{0, 1}].copy_(y);
               }),
               {"copy_", "f64[1, 3], f64[4, 5]", line});
  expect_parts(with([&](Tensor x, Tensor y) {
                 line = __LINE__, cat({x, y}, 0);
               }),
               {"concat", both, line});
  expect_parts(with([&](Tensor x, Tensor) {
                 line = __LINE__, x.reshape({4, -1});
               }),
               {"reshape", "f64[2, 3]", "[4, -1]", line});
  expect_parts(with([&](Tensor x, Tensor) { line = __LINE__, x.t().view({6}); }),
               {"view", "f64[3, 2]", "[6]", "reshape()", line});
  expect_parts(with([&](Tensor x, Tensor) { line = __LINE__, x.slice(1, 3, 5); }),
               {"slice", "f64[2, 3]", line});
  expect_parts(with([&](Tensor x, Tensor) { line = __LINE__, x.sum({2}); }),
               {"sum", "f64[2, 3]", "dimension 2", line});
  expect_parts(with([&](Tensor x, Tensor y) { line = __LINE__, layer_norm(x, y, y); }),
               {"layer_norm", both, line});
  expect_parts(with([&](Tensor x, Tensor) {
                 line = __LINE__, x.expand({4, 2, 3})[0].add_(1);
               }),
               {"add_", "expanded", line});
  expect_parts(with([&](Tensor x, Tensor) {
                 line = __LINE__, x + data("i", {2, 3}, DType::kI32);
               }),
               {"add", "element types", line});
}

TEST(Mistakes, ADummyTensorHasNoNumbers) {
  int made = 0, read = 0;
  expect_parts(refusal([&] {
                 const Tensor x = weight("x", {2, 3});
                 made = __LINE__ + 1;
                 const Tensor y = exp(x);
                 read = __LINE__ + 1;
                 y.item();
               }),
               {"exp", "f64[2, 3]", "has no numbers", made, read});
  expect_parts(refusal([&] {
                 made = __LINE__ + 1;
                 const Tensor x = weight("x", {});
                 if (x) FAIL() << "a dummy tensor is neither true nor false";
               }),
               {"param 'x'", "has no numbers", "dummy tensor"});
  expect_parts(refusal([&] { static_cast<void>(static_cast<float>(sum(weight("x", {2})))); }),
               {"sum", "f64[]", "has no numbers"});
}

TEST(Mistakes, WritingAParameterInTheForward) {
  int line = 0;
  expect_parts(refusal([&] {
                 const Tensor w = weight("w", {2, 3});
                 line = __LINE__ + 1;
                 w[{0, 1}].zero_();
               }),
               {"parameter 'w'", "clone()", line});
}

TEST(Mistakes, SourcesOfOneName) {
  int line = 0;
  expect_parts(refusal([&] {
                 weight("w", {2});
                 line = __LINE__ + 1;
                 data("w", {2}, DType::kF64);
               }),
               {"'w'", line});
}

TEST(Mistakes, NoTracer) {
  try {
    zeros({2});
    FAIL();
  } catch (const Error& e) {
    expect_parts(e.what(), {"no Tracer is active"});
  }
}

// A layer of the library: its ops carry the line of its caller.
Tensor layer(const Tensor& x, Loc loc = Loc::current()) {
  const LocationScope at(loc);
  const Scope scope("layer");
  return exp(x) + x;
}

TEST(Tracing, OpsInsideALayerCarryTheCallersLineAndScope) {
  Tracer tracer("layers", {.compute = DType::kF64});
  const Tensor x = data("x", {2}, DType::kF64);
  const Scope scope("h.0");
  const int line = __LINE__ + 1;
  const Tensor y = layer(x);
  static_cast<void>(-y);
  const Graph graph = tracer.finish();
  ASSERT_EQ(graph.nodes().size(), 3u);
  for (size_t n = 0; n < 2; ++n) {
    const Node& node = graph.nodes()[n];
    EXPECT_EQ(graph.place(node.loc), here(line));
    EXPECT_EQ(graph.scopes()[static_cast<size_t>(node.scope)], "h.0.layer");
  }
  EXPECT_EQ(graph.place(graph.nodes()[2].loc), here(line + 1));
  EXPECT_EQ(graph.scopes()[static_cast<size_t>(graph.nodes()[2].scope)], "h.0");
}

TEST(Tracing, FinishSetsWhatStatesEndAs) {
  Tracer tracer("states", {.compute = DType::kF64});
  const Tensor s = state("s", {3}, DType::kF64, {}), kept = state("kept", {}, DType::kF64, {});
  s.slice(0, 0, 1).add_(1);
  s.add_(kept);
  const Graph graph = tracer.finish();
  EXPECT_EQ(graph.value(graph.source_named("s")->final).version, 2);
  EXPECT_EQ(graph.source_named("kept")->final, graph.source_named("kept")->value);
}

}  // namespace
}  // namespace cleave
