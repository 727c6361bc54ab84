// Plans drawn at random out of the whole space of a model on a mesh, and what they train to.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "executor/cpu_runtime.h"
#include "executor/lower.h"
#include "executor/trainer.h"
#include "graph/error.h"
#include "graph/philox.h"
#include "models/trace.h"
#include "planner/planner.h"

namespace cleave::testing {

// The numbers that every step reports.
struct Curve {
  std::vector<double> loss, grad_norm;
};

// The largest difference of two curves, relative to the second.
inline double distance(const Curve& a, const Curve& b) {
  double worst = a.loss.size() == b.loss.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(a.loss.size(), b.loss.size()); ++i) {
    for (const auto& [x, y] :
         {std::pair(a.loss[i], b.loss[i]), std::pair(a.grad_norm[i], b.grad_norm[i])}) {
      const double d = std::abs(x - y) / std::abs(y);
      worst = std::isnan(d) ? INFINITY : std::max(worst, d);
    }
  }
  return worst;
}

inline Graph training_graph(const ModelConfig& config, DType dtype,
                            OptimizerOptions::Kind optimizer_kind = {}) {
  OptimizerOptions optimizer;
  optimizer.kind = optimizer_kind;
  optimizer.lr = optimizer_kind == OptimizerOptions::Kind::kSgd ? 0.1 : 3e-3;
  optimizer.min_lr = optimizer.lr / 10;
  optimizer.warmup = 5;
  optimizer.total_steps = 20;
  TraceOptions options;
  options.dtype = dtype;
  options.optimizer = optimizer;
  return trace(config, options);
}

// Tokens that follow each other by a rule with noise, so that there is something to learn.
inline Batch batch_of(const ModelConfig& config, int64_t step) {
  const int64_t n = config.batch * config.sequence;
  const uint64_t stream = stream_of("data") + static_cast<uint64_t>(step);
  Batch batch;
  int64_t token = 0;
  for (int64_t i = 0; i < n; ++i) {
    batch.tokens.push_back(static_cast<int32_t>(token));
    const double u = uniform_at(7, stream, static_cast<uint64_t>(i));
    token = u < 0.3 ? static_cast<int64_t>(u / 0.3 * static_cast<double>(config.vocab))
                    : (token * 5 + 3) % config.vocab;
    batch.targets.push_back(static_cast<int32_t>(token));
    if (objective_of(config) == Objective::kMaskedTokens &&
        uniform_at(8, stream, static_cast<uint64_t>(i)) > 0.3) {
      batch.targets.back() = kNoTarget;
    }
  }
  return batch;
}

inline void feed(Runtime& runtime, const ModelConfig& config, int64_t step) {
  const Batch batch = batch_of(config, step);
  runtime.set_data("tokens", std::as_bytes(std::span<const int32_t>(batch.tokens)));
  runtime.set_data("targets", std::as_bytes(std::span<const int32_t>(batch.targets)));
}

inline constexpr int kSteps = 20;

// Trains for kSteps steps. With a plan, every step must execute the plan's collectives.
inline Curve run(Program program, const ModelConfig& config, const Plan* plan = nullptr,
                 RunOptions options = {.seed = 42, .compare_ranks = true}) {
  CpuRuntime runtime(std::move(program), options);
  runtime.initialize();
  Curve curve;
  for (int step = 0; step < kSteps; ++step) {
    feed(runtime, config, step);
    const StepResult r = runtime.step();
    if (plan != nullptr) expect_planned(r.collectives, *plan);
    curve.loss.push_back(r.value("loss"));
    curve.grad_norm.push_back(r.value("grad_norm"));
  }
  return curve;
}

// --- Random plans --------------------------------------------------------------------------------

// A number in [0, 1) that depends on all its arguments.
inline double chance(uint64_t seed, std::string_view what) {
  return uniform_at(seed, stream_of(what), 0);
}

inline std::string text_of(const std::vector<AxisOption>& options) {
  std::string text;
  for (const AxisOption& o : options) {
    text += fmt::format("{}{}{} ", static_cast<int>(o.kind), o.letter == 0 ? '-' : o.letter,
                        static_cast<int>(o.atom));
  }
  return text;
}

// Steers the search to a random plan: costs of seconds, where real ones are of microseconds. By
// the seed, every op draws for itself, or ops of one kind draw together (as repeated layers do), or
// the costs are of the size of real ones.
inline Preferences random_preferences(const Graph& graph, uint64_t seed) {
  const int mode = static_cast<int>(4 * chance(seed, "mode"));
  const double size = mode == 2 ? 1e-4 : 10;
  const double replicate = mode == 3 ? 5 : 0;  // extra: mode 3 splits wherever it can
  Preferences p;
  p.choice = [&graph, seed, mode, size, replicate](NodeId leader,
                                                   const std::vector<AxisOption>& options) {
    const Node& node = graph.node(leader);
    std::string name = text_of(options);
    name += mode == 1 ? fmt::format("{} {}", node.op->name, node.signature->text())
                      : fmt::format("{}", leader);
    double cost = size * chance(seed, name);
    for (const AxisOption& o : options) {
      if (o.kind == AxisOption::Kind::kReplicate) cost += replicate;
    }
    return cost;
  };
  p.held = [seed, size](Value v, const Placements& placements) {
    std::string name = fmt::format("held {}", v);
    for (const Placement& q : placements) {
      name += fmt::format(" {}/{}/{}", static_cast<int>(q.kind), static_cast<int>(q.atom),
                          static_cast<int>(q.reduction));
    }
    return size * chance(seed, name);
  };
  return p;
}

// Everything that tells two plans apart: the mesh, every op's split, every value's forms.
inline uint64_t fingerprint(const Plan& plan) {
  std::string text;
  for (const MeshAxis& a : plan.mesh.axes) text += fmt::format("{} ", a.size);
  for (const NodePlan& n : plan.nodes) {
    for (const auto& on : n.axes) {
      text += fmt::format("{}/{}{} ", static_cast<int>(on.factor), static_cast<int>(on.atom),
                          on.partial ? 'p' : '-');
    }
  }
  for (const auto& forms : plan.values) {
    for (const Form& f : forms) {
      for (const Placement& q : f.placements) {
        text += fmt::format("{}/{} ", static_cast<int>(q.kind), static_cast<int>(q.atom));
      }
    }
  }
  return stream_of(text);
}

// --- The models and meshes
// -------------------------------------------------------------------------

struct Model {
  const char* label;
  const char* name;
  std::vector<std::string> settings;
  OptimizerOptions::Kind optimizer = OptimizerOptions::Kind::kAdamW;
};

// Two layers each.
inline const std::vector<Model>& models() {
  static const std::vector<Model> table = {
      {"gpt", "gpt2:124m", {"tied=false"}},
      {"gpt_tied_dropout", "gpt2:124m", {"tied=true", "dropout=0.1"}},
      {"llama", "llama:8b", {}},
      {"llama_grouped_dropout", "llama:8b", {"kv_heads=half", "tied=true", "dropout=0.1"}},
      {"bert_dropout", "bert:base", {"tied=true", "dropout=0.1"}},
      {"gpt_sgd", "gpt2:124m", {}, OptimizerOptions::Kind::kSgd},
      {"mixtral", "mixtral:tiny", {"capacity_factor=0", "kv_heads=half", "z_loss=0.01"}},
      {"mixtral_capacity", "mixtral:tiny", {"capacity_factor=1", "dropout=0.1"}},
      {"deepseek", "deepseek:tiny", {}},
  };
  return table;
}

// Sizes that this many devices divide where they can.
inline ModelConfig config_for(const Model& model, int64_t devices) {
  const bool thirds = devices % 3 == 0;
  ModelConfig c = model_named(model.name);
  c.layers = 2;
  c.hidden = thirds ? 24 : 32;
  c.heads = thirds ? 6 : 8;
  c.kv_heads = 0;
  c.ffn = 2 * c.hidden;
  c.vocab = thirds ? 48 : 64;
  c.sequence = thirds ? 12 : 16;
  c.batch = thirds ? 6 : 8;
  c.experts = thirds ? 6 : 8;
  c.expert_ffn = c.hidden;
  c.q_rank = c.kv_rank = c.head_width = c.rotary_width = c.value_width = c.hidden / 2;
  for (const std::string& s : model.settings) {
    if (s == "kv_heads=half") {
      c.kv_heads = c.heads / 2;
    } else {
      set_value(c, s);
    }
  }
  return c;
}

// Every mesh of one or two axes, with the roles left open and given.
inline std::vector<std::string> meshes_of(int64_t devices) {
  std::vector<std::string> meshes;
  for (const char* text : {"{}", "dp={}", "tp={}"}) {
    meshes.push_back(fmt::format(fmt::runtime(text), devices));
  }
  for (int64_t first = 2; first * 2 <= devices; ++first) {
    if (devices % first != 0) continue;
    for (const char* text : {"{}x{}", "dp={},tp={}", "tp={},dp={}"}) {
      meshes.push_back(fmt::format(fmt::runtime(text), first, devices / first));
    }
  }
  return meshes;
}

// The plan that the search finds for this mesh when it is steered by the seed; by none: the best.
inline Plan plan_for(const Graph& graph, const std::string& mesh, std::optional<uint64_t> seed) {
  PlannerOptions options;
  options.mesh = parse_mesh(mesh);
  if (seed) options.preferences = random_preferences(graph, *seed);
  int64_t devices = 1;
  for (int64_t size : options.mesh.sizes) devices *= size;
  auto found = find_plan(graph, parse_cluster(fmt::format("cpu:{}", devices)), options);
  if (!found.plan) throw InternalError("no plan");
  return std::move(*found.plan);
}

inline Curve on_one_device(const Graph& graph, const ModelConfig& config) {
  const Plan plan = plan_for(graph, "1", {});
  return run(lower(graph, plan), config, &plan);
}

inline constexpr double kF64 = 1e-10, kF32 = 1e-4;  // relative, of every loss and gradient norm

// Expects that the model trains like one device by this many different plans. Meshes take turns: on
// each the best plan (unless `random_only`), then random ones. Prints how many there were, and the
// largest difference.
inline void train_by_plans(size_t model, int devices, DType dtype, size_t plans, double tolerance,
                           uint64_t first_seed = 0, bool random_only = false) {
  const Model& m = models()[model];
  const ModelConfig config = config_for(m, devices);
  const Graph graph = training_graph(config, dtype, m.optimizer);
  const Curve one = on_one_device(graph, config);
  ASSERT_LT(one.loss.back(), one.loss.front() - 0.05);
  const std::vector<std::string> meshes = meshes_of(devices);
  std::set<uint64_t> seen;
  double worst = 0;
  for (size_t i = 0; seen.size() < plans && i < 4 * plans; ++i) {
    const std::string& mesh = meshes[i % meshes.size()];
    std::optional<uint64_t> seed;
    if (random_only || i >= meshes.size()) seed = first_seed + 1000 * model + i;
    SCOPED_TRACE(
        fmt::format("{} on {}, seed {}", m.label, mesh, seed ? fmt::to_string(*seed) : "none"));
    try {
      const Plan plan = plan_for(graph, mesh, seed);
      if (!seen.insert(fingerprint(plan)).second) continue;
      const double d = distance(run(lower(graph, plan), config, &plan), one);
      EXPECT_LE(d, tolerance);
      worst = std::max(worst, d);
    } catch (const std::exception& e) {
      ADD_FAILURE() << e.what();
    }
  }
  EXPECT_EQ(seen.size(), plans);
  fmt::print("{} different plans in {}, the worst differs by {:.1e}\n", seen.size(), name_of(dtype),
             worst);
}

}  // namespace cleave::testing
