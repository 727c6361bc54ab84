// Random small problems of the joint space: a training step, a cluster, what the search may choose.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <random>

#include "kernels/ops.h"
#include "planner/planner.h"
#include "tracer/autodiff.h"
#include "tracer/functional.h"

namespace cleave::testing {

// A network of equal layers between two ends, trained by adding its gradients.
struct Recipe {
  int64_t batch = 4, width = 4, inner = 0;
  int layers = 2;
  bool residual = false, contracts = false, head = false, bias = false;
  bool made = false;  // weights are functions of parameters, the same in every micro-batch

  std::shared_ptr<const Graph> trace(int64_t micro_batches) const {
    Tracer tracer("joint");
    Tensor x = contracts ? data("x", {batch / micro_batches, 2, width}, DType::kF32,
                                {"batch", "sequence", ""})
                         : data("x", {batch / micro_batches, width}, DType::kF32, {"batch", ""});
    const Init init{Init::Kind::kNormal, 0.02};
    for (int l = 0; l < layers; ++l) {
      const auto weight = [&](const char* name, Shape shape) {
        const Tensor w = parameter(fmt::format("{}{}", name, l), std::move(shape), init);
        return made ? gelu(w) : w;
      };
      Tensor y = x;
      if (contracts) y = contract(contract(y, y, "bqk,bsk->bqs"), y, "bqs,bsk->bqk");
      y = linear(y, weight("w", {inner > 0 ? inner : width, width}));
      if (bias) y = y + weight("b", {inner > 0 ? inner : width});
      y = gelu(y);
      if (inner > 0) y = linear(y, weight("v", {width, inner}));
      x = residual ? x + y : y;
    }
    if (head) x = linear(x, parameter("head", {2, width}, init));
    Tensor loss = mean(x);
    if (micro_batches > 1) loss = loss * (1 / static_cast<double>(micro_batches));
    tracer.graph().micro_batches = micro_batches;
    const std::vector<Tensor> parameters = tracer.parameters();
    std::vector<Tensor> grads(parameters.size());
    const auto add_to = [&](const Tensor& sum, const Tensor& part) {
      tracer.apply_in_place(ops::add, std::array{sum, part}, "", {}, std::array{sum},
                            Loc::current());
    };
    Tensor total = loss;
    if (micro_batches > 1) {
      total = accumulator("sum.loss", {}, loss.dtype());
      add_to(total, loss);
    }
    tracer.output("loss", total);
    gradients(loss, parameters, [&](size_t i, const Tensor& gradient) {
      grads[i] = gradient;
      if (micro_batches == 1) return;
      grads[i] =
          accumulator("sum." + tracer.name_of(parameters[i]), gradient.shape(), gradient.dtype());
      add_to(grads[i], gradient);
    });
    tracer.set_phase(Phase::kUpdate);
    for (size_t i = 0; i < parameters.size(); ++i) add_to(parameters[i], grads[i]);
    return std::make_shared<const Graph>(without_dead_nodes(tracer.finish()));
  }
};

inline Recipe random_recipe(std::mt19937& random) {
  const auto one_in = [&](unsigned n) { return random() % n == 0; };
  Recipe r;
  constexpr int64_t kBatches[] = {2, 4, 4, 6}, kWidths[] = {2, 4, 6};
  r.batch = kBatches[random() % 4];
  r.width = kWidths[random() % 3];
  r.layers = 1 + static_cast<int>(random() % 3);
  if (one_in(4)) r.inner = 2 * r.width;
  r.residual = one_in(3);
  r.contracts = one_in(4);
  r.head = one_in(3);
  r.bias = one_in(4);
  std::mt19937 copy = random;  // what else is drawn stays
  r.made = copy() % 3 == 0;
  if (r.made) r.layers = std::min(r.layers, 2), r.inner = 0;  // they are two variables more
  return r;
}

// Real constants make one term drown the others in graphs as small as these.
inline Cluster random_cluster(std::mt19937& random, const char* spec) {
  Cluster c = parse_cluster(spec);
  const auto between = [&](double low, double high) {
    return std::exp2(std::uniform_real_distribution<double>(low, high)(random));
  };
  for (Tier& tier : c.tiers) {
    tier.link.latency = 1e-6 * between(-4, 2), tier.link.start = 1e-6 * between(-4, 2);
    tier.link.bandwidth = 1e7 * between(-3, 4);
  }
  c.device.op_latency = 1e-6 * between(-3, 3);
  c.device.bandwidth = 1e8 * between(-3, 3);
  c.device.f32.peak = 1e8 * between(-3, 3);
  return c;
}

// Forbids choices at random, never to leave everything whole.
inline Preferences some_choices(uint64_t seed, double share) {
  const auto forbidden = [=](uint64_t what) {
    std::mt19937_64 random(seed ^ (what * 0x9e3779b97f4a7c15u));
    random.discard(3);
    return std::uniform_real_distribution<double>(0, 1)(random) < share;
  };
  Preferences p;
  p.choice = [=](NodeId leader, const std::vector<AxisOption>& choice) {
    uint64_t hash = static_cast<uint64_t>(leader) + 1;
    bool whole = true;
    for (const AxisOption& o : choice) {
      hash = hash * 131 + static_cast<uint64_t>(o.kind);
      hash = hash * 131 + static_cast<uint64_t>(o.letter);
      hash = hash * 131 + static_cast<uint64_t>(o.atom + 1);
      whole &= o.kind == AxisOption::Kind::kReplicate;
    }
    return !whole && forbidden(hash) ? std::numeric_limits<double>::infinity() : 0.0;
  };
  return p;
}

struct JointCase {
  Recipe recipe;
  std::shared_ptr<const Graph> graph;
  Cluster cluster;
  PlannerOptions options;
};

inline JointCase random_case(std::mt19937& random) {
  JointCase c;
  c.recipe = random_recipe(random);
  constexpr const char* kClusters[] = {"cpu:2", "cpu:2", "cpu:3", "cpu:4", "2x2xcpu"};
  c.cluster = random_cluster(random, kClusters[random() % 5]);
  c.options.space = {.stages = true, .recompute = true, .exhaustive = true};
  c.options.threads = 1;
  std::vector<int64_t> counts;
  for (int64_t m = 1; m <= c.recipe.batch; ++m) {
    if (c.recipe.batch % m == 0) counts.push_back(m);
  }
  c.graph = c.recipe.trace(counts[random() % counts.size()]);
  if (random() % 4 == 0) {
    c.options.trace = [recipe = c.recipe](int64_t m) { return recipe.trace(m); };
  }
  return c;
}

}  // namespace cleave::testing
