// Routers and mixtures of experts against a program that goes from token to token and from expert
// to expert, in double; and what must hold of them whatever the numbers.
#include "tracer/moe.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "graph/error.h"
#include "tests/support/interpreter.h"
#include "tracer/autodiff.h"

namespace cleave {
namespace {

using Numbers = std::vector<double>;

struct Sizes {
  int64_t batch = 2, tokens = 6, hidden = 5, ffn = 7;
};

// A layer on the data x, traced and run with its own weights.
struct Trial {
  Sizes sizes;
  MoeOptions options;
  std::map<std::string, Numbers> results;  // y, balance, z, and the gradient of each parameter
  std::map<std::string, Numbers> weights;
  Numbers x;

  const Numbers& operator[](const std::string& name) const { return results.at(name); }
};

double noise(int64_t i) { return std::sin(static_cast<double>(i * i % 1009) + 0.3); }

Numbers input_of(const Sizes& s) {
  Numbers x;
  for (int64_t i = 0; i < s.batch * s.tokens * s.hidden; ++i) x.push_back(noise(i));
  return x;
}

// The parameters' values by name, which start with "moe.".
Trial trial(const MoeOptions& options, const Sizes& s = {}) {
  Trial r{s, options, {}, {}, input_of(s)};
  Tracer tracer("moe", {.compute = DType::kF64});
  const Tensor x = data("x", {s.batch, s.tokens, s.hidden}, DType::kF64);
  const MoeMlp moe("moe", s.hidden, s.ffn, options);
  const MoeMlp::Result result = moe(x);
  const Tensor balance = balance_loss(result.routing), z = router_z_loss(result.routing);
  tracer.output("y", result.y);
  tracer.output("balance", balance);
  tracer.output("z", z);
  // Weighs the elements of y differently.
  const Tensor loss = sum(result.y * x) + balance * 0.5 + z * 0.25;
  std::vector<std::string> names;
  for (const Tensor& p : tracer.parameters()) names.push_back(tracer.name_of(p));
  tracer.set_phase(Phase::kBackward);
  const std::vector<Tensor> grads = gradients(loss, tracer.parameters());
  for (size_t i = 0; i < grads.size(); ++i) tracer.output("d." + names[i], grads[i]);
  const Graph graph = tracer.finish();
  Interpreter interpreter(graph);
  interpreter.set("x", r.x);
  for (const std::string& name : names) {
    Numbers w = interpreter.initial(name);
    for (double& number : w) number *= 30;  // 0.6: choices that differ
    interpreter.set(name, w);
    r.weights[name] = std::move(w);
  }
  interpreter.run();
  r.results = interpreter.results();
  return r;
}

// --- By hand -------------------------------------------------------------------------------------

// What a token is sent to, in the order of its wishes.
struct Wish {
  int64_t expert;
  double weight;
};

struct ByHand {
  Numbers y;
  double balance = 0, z = 0;
  int64_t dropped = 0;
};

Numbers scores_of(const RouterOptions& options, const Numbers& logits) {
  Numbers scores;
  double total = 0;
  for (const double l : logits) {
    const bool softmax = options.scores == RouterOptions::Scores::kSoftmax;
    scores.push_back(softmax ? std::exp(l) : 1 / (1 + std::exp(-l)));
    total += scores.back();
  }
  if (options.scores == RouterOptions::Scores::kSoftmax) {
    for (double& s : scores) s /= total;
  }
  return scores;
}

std::vector<Wish> wishes_of(const RouterOptions& options, const Numbers& scores) {
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  std::vector<Wish> wishes;
  double total = 0;
  for (int64_t k = 0; k < options.top_k; ++k) {
    const int64_t e = order[static_cast<size_t>(k)];
    wishes.push_back({e, scores[static_cast<size_t>(e)]});
    total += wishes.back().weight;
  }
  for (Wish& w : wishes) w.weight *= options.scale / (options.normalised ? total : 1);
  return wishes;
}

// out[n] = w[at][n, in] x[in].
Numbers times(const Numbers& w, int64_t at, int64_t n, const Numbers& x) {
  Numbers y(static_cast<size_t>(n), 0.0);
  const size_t in = x.size();
  for (size_t i = 0; i < y.size(); ++i) {
    for (size_t j = 0; j < in; ++j) {
      y[i] += w[(static_cast<size_t>(at) * y.size() + i) * in + j] * x[j];
    }
  }
  return y;
}

Numbers expert_of(const std::map<std::string, Numbers>& weights, const std::string& gate,
                  const std::string& up, const std::string& proj, int64_t e, int64_t ffn,
                  const Numbers& x) {
  Numbers inner = times(weights.at(gate), e, ffn, x);
  const Numbers other = times(weights.at(up), e, ffn, x);
  for (size_t i = 0; i < inner.size(); ++i)
    inner[i] = inner[i] / (1 + std::exp(-inner[i])) * other[i];
  return times(weights.at(proj), e, std::ssize(x), inner);
}

ByHand by_hand(const Trial& r) {
  const auto& [batch, tokens, hidden, ffn] = r.sizes;
  const MoeOptions& o = r.options;
  const auto& w = r.weights;
  ByHand result;
  for (int64_t b = 0; b < batch; ++b) {
    Numbers taken(static_cast<size_t>(o.experts), 0.0), wanted = taken;
    double sequence_balance = 0;
    for (int64_t s = 0; s < tokens; ++s) {
      const auto begin = r.x.begin() + (b * tokens + s) * hidden;
      const Numbers x(begin, begin + hidden);
      const Numbers logits = times(w.at("moe.router.gate.weight"), 0, o.experts, x);
      const Numbers scores = scores_of(o.router, logits);
      const double all = std::accumulate(scores.begin(), scores.end(), 0.0);
      double lse = 0;
      for (const double l : logits) lse += std::exp(l);
      result.z += std::pow(std::log(lse), 2) / static_cast<double>(batch * tokens);
      Numbers y(static_cast<size_t>(hidden), 0.0);
      for (size_t e = 0; e < scores.size(); ++e) {
        wanted[e] += scores[e] / all / static_cast<double>(tokens);
      }
      for (const Wish& wish : wishes_of(o.router, scores)) {
        double& count = taken[static_cast<size_t>(wish.expert)];
        const bool full =
            o.capacity_factor > 0 &&
            count >= std::ceil(o.capacity_factor * static_cast<double>(tokens * o.router.top_k) /
                               static_cast<double>(o.experts));
        ++count;
        result.dropped += full;
        if (full) continue;
        const Numbers part = expert_of(w, "moe.experts.gate", "moe.experts.up", "moe.experts.proj",
                                       wish.expert, ffn, x);
        for (size_t i = 0; i < y.size(); ++i) y[i] += wish.weight * part[i];
      }
      if (o.shared_width > 0) {
        const Numbers part = expert_of(w, "moe.shared.gate.weight", "moe.shared.up.weight",
                                       "moe.shared.proj.weight", 0, o.shared_width, x);
        for (size_t i = 0; i < y.size(); ++i) y[i] += part[i];
      }
      result.y.insert(result.y.end(), y.begin(), y.end());
    }
    for (size_t e = 0; e < taken.size(); ++e) {
      sequence_balance += taken[e] / static_cast<double>(tokens * o.router.top_k) * wanted[e];
    }
    result.balance +=
        sequence_balance * static_cast<double>(o.experts) / static_cast<double>(batch);
  }
  return result;
}

void expect_near(const Numbers& got, const Numbers& want, double bound, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_NEAR(got[i], want[i], bound * (1 + std::abs(want[i]))) << what << " at " << i;
  }
}

struct Case {
  const char* label;
  MoeOptions options;
};

MoeOptions options_of(int64_t experts, int64_t top_k, double capacity_factor = 0) {
  MoeOptions options;
  options.experts = experts;
  options.router.top_k = top_k;
  options.capacity_factor = capacity_factor;
  return options;
}

std::vector<Case> cases() {
  std::vector<Case> list = {{"switch", options_of(4, 1, 1.0)}, {"dropless", options_of(8, 2)},
                            {"roomy", options_of(8, 2, 1.5)},  {"tight", options_of(3, 2, 0.5)},
                            {"all", options_of(4, 4)},         {"one", options_of(1, 1)}};
  MoeOptions deepseek = options_of(6, 3, 1.25);
  deepseek.router.scores = RouterOptions::Scores::kSigmoid;
  deepseek.router.scale = 2.5;
  deepseek.shared_width = 4;
  list.push_back({"sigmoid_shared", deepseek});
  MoeOptions plain = options_of(5, 2);
  plain.router.normalised = false;
  list.push_back({"not_normalised", plain});
  return list;
}

TEST(Moe, IsWhatOneWouldDoByHand) {
  const std::set<std::string> with_drops = {"switch", "tight", "sigmoid_shared"};
  for (const auto& [label, options] : cases()) {
    const Trial r = trial(options);
    const ByHand expected = by_hand(r);
    expect_near(r["y"], expected.y, 1e-12, label);
    expect_near(r["balance"], {expected.balance}, 1e-12, label);
    expect_near(r["z"], {expected.z}, 1e-12, label);
    EXPECT_EQ(expected.dropped > 0, with_drops.contains(label)) << label;
  }
}

TEST(Moe, DroplessIsCapacityWithoutDrops) {
  for (const int64_t top_k : {1, 2, 3}) {
    const Trial dropless = trial(options_of(4, top_k));
    const Trial roomy = trial(options_of(4, top_k, 100));
    ASSERT_EQ(by_hand(roomy).dropped, 0);
    for (const auto& [name, numbers] : dropless.results) {
      expect_near(roomy[name], numbers, 1e-12, fmt::format("{} with top {}", name, top_k));
    }
  }
}

// One expert that everybody goes to is an ordinary MLP, and its router learns nothing.
TEST(Moe, OneExpertIsAnMlp) {
  const Sizes s;
  for (const double capacity_factor : {0.0, 1.0}) {
    const Trial moe = trial(options_of(1, 1, capacity_factor));
    Tracer tracer("mlp", {.compute = DType::kF64});
    const Tensor x = data("x", {s.batch, s.tokens, s.hidden}, DType::kF64);
    const SwigluMlp mlp("mlp", s.hidden, s.ffn);
    const Tensor y = mlp(x);
    tracer.output("y", y);
    tracer.set_phase(Phase::kBackward);
    const std::vector<Tensor> grads = gradients(sum(y * x), tracer.parameters());
    for (size_t i = 0; i < grads.size(); ++i) tracer.output(fmt::format("d{}", i), grads[i]);
    const Graph graph = tracer.finish();
    Interpreter interpreter(graph);
    interpreter.set("x", moe.x);
    const std::vector<std::string> parts = {"gate", "up", "proj"};
    for (const std::string& part : parts) {
      interpreter.set("mlp." + part + ".weight", moe.weights.at("moe.experts." + part));
    }
    interpreter.run();
    const auto results = interpreter.results();
    expect_near(moe["y"], results.at("y"), 1e-12, "y");
    for (size_t i = 0; i < parts.size(); ++i) {
      expect_near(moe["d.moe.experts." + parts[i]], results.at(fmt::format("d{}", i)), 1e-12,
                  parts[i]);
    }
    EXPECT_NEAR(moe["balance"][0], 1, 1e-12);
  }
}

// Through the choices' weights, the experts and the balance: against differences, where the
// choices stay as they are.
TEST(Moe, GradientsAreTheDifferences) {
  for (const auto& [label, options] : cases()) {
    const Trial r = trial(options);
    const auto loss_with = [&](const std::string& name, size_t i, double step) {
      Trial moved = r;
      moved.weights[name][i] += step;
      const ByHand h = by_hand(moved);
      double loss = 0.5 * h.balance + 0.25 * h.z;
      for (size_t j = 0; j < h.y.size(); ++j) loss += h.y[j] * r.x[j];
      return loss;
    };
    for (const auto& [name, numbers] : r.weights) {
      for (size_t i = 0; i < numbers.size(); i += 1 + numbers.size() / 7) {
        constexpr double kStep = 1e-5;
        const double difference =
            (loss_with(name, i, kStep) - loss_with(name, i, -kStep)) / (2 * kStep);
        EXPECT_NEAR(r["d." + name][i], difference, 1e-7 * (1 + std::abs(difference)))
            << label << " " << name << " " << i;
      }
    }
  }
}

// Equal scores: the lower numbers are chosen, by every token, and the last ones are dropped.
TEST(Moe, TiesGoToTheLowerExpertAndLaterTokensAreDropped) {
  const Sizes s = {.batch = 1, .tokens = 6};
  Tracer tracer("ties", {.compute = DType::kF64});
  const Tensor x = data("x", {1, s.tokens, s.hidden}, DType::kF64);
  const MoeMlp moe("moe", s.hidden, s.ffn, options_of(4, 2, 1.0));  // 3 tokens an expert
  const MoeMlp::Result result = moe(x);
  tracer.output("y", result.y);
  const Value experts = result.routing.experts.value();
  const Graph graph = tracer.finish();
  Interpreter interpreter(graph);
  interpreter.set("x", input_of(s));
  interpreter.set("moe.router.gate.weight", Numbers(static_cast<size_t>(4 * s.hidden), 0.0));
  interpreter.run();
  const Numbers chosen = interpreter.numbers(experts), y = interpreter.results().at("y");
  for (size_t i = 0; i < chosen.size(); ++i) EXPECT_EQ(chosen[i], i % 2);
  for (int64_t t = 0; t < s.tokens; ++t) {
    const double first = y[static_cast<size_t>(t * s.hidden)];
    EXPECT_EQ(first == 0, t >= 3) << t;
  }
}

TEST(Moe, CapacityIsTheShareRoundedUp) {
  EXPECT_EQ(expert_capacity(4096, 2, 8, 1.0), 1024);
  EXPECT_EQ(expert_capacity(4096, 2, 8, 1.25), 1280);
  EXPECT_EQ(expert_capacity(4096, 8, 256, 1.25), 160);
  EXPECT_EQ(expert_capacity(10, 2, 8, 1.0), 3);
  EXPECT_EQ(expert_capacity(10, 2, 8, 1.2), 3);   // 3.0000000000000004 in double
  EXPECT_EQ(expert_capacity(10, 2, 8, 100), 10);  // no more than all
  EXPECT_EQ(expert_capacity(10, 1, 64, 0.1), 1);
}

TEST(Moe, MistakesAreRefused) {
  const auto refused = [](auto&& make) {
    try {
      make();
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  Tracer tracer("mistakes");
  const Tensor x = data("x", {2, 6, 4}, DType::kF32);
  EXPECT_NE(refused([&] { top_k(x, 5); }).find("there are no 5 to choose"), std::string::npos);
  EXPECT_NE(refused([&] { top_k(x, 0); }).find("there are no 0"), std::string::npos);
  EXPECT_NE(refused([&] { histogram(x, 4, DType::kF32); }).find("i32 numbers"), std::string::npos);
  EXPECT_NE(refused([&] { MoeMlp("moe", 4, 4, options_of(2, 3))(x); }).find("no 3 to choose"),
            std::string::npos);
  const Tensor flat = data("flat", {6, 4}, DType::kF32);
  EXPECT_NE(refused([&] { MoeMlp("flat", 4, 4, options_of(2, 1))(flat); }).find("[b, s, hidden]"),
            std::string::npos);
}

TEST(Moe, NodesCarryTheLineThatCalledTheLayer) {
  Tracer tracer("lines");
  const Tensor x = data("x", {2, 6, 4}, DType::kF32);
  const MoeMlp moe("moe", 4, 4, options_of(2, 1, 1.0)), other("other", 4, 4, options_of(2, 1));
  const int line = __LINE__ + 1;
  moe(x), other(x);
  std::set<std::string> scopes;
  for (const Node& node : tracer.graph().nodes()) {
    EXPECT_EQ(tracer.graph().place(node.loc), fmt::format("tracer_moe_test.cc:{}", line));
    scopes.insert(tracer.graph().scopes()[static_cast<size_t>(node.scope)]);
  }
  EXPECT_TRUE(scopes.contains("moe.router.gate"));
  EXPECT_TRUE(scopes.contains("other.experts"));
}

}  // namespace
}  // namespace cleave
