// cleave train
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/plan_file.h"
#include "cli/planning.h"
#include "data/token_data.h"
#include "executor/trainer.h"
#include "graph/error.h"

namespace cleave {
namespace {

OptimizerOptions optimizer_of(const TrainArguments& a, OptimizerOptions::Kind kind) {
  if (a.steps < 1) fail("--steps {}: write at least 1", a.steps);
  if (a.seed < 0) fail("--seed {}: must not be negative", a.seed);
  if (!(a.lr > 0) || !std::isfinite(a.lr)) fail("--lr {}: write a number above 0", a.lr);
  if (a.min_lr > a.lr) fail("--min-lr {}: must not be above --lr {}", a.min_lr, a.lr);
  if (a.warmup > a.steps) fail("--warmup {}: must not be above --steps {}", a.warmup, a.steps);
  if (!(a.weight_decay >= 0)) fail("--weight-decay {}: must not be negative", a.weight_decay);
  if (!(a.clip >= 0)) fail("--clip {}: must not be negative", a.clip);
  if (a.eval_every < 0) fail("--eval-every {}: must not be negative", a.eval_every);
  if (a.log_every < 1) fail("--log-every {}: write at least 1", a.log_every);
  OptimizerOptions o;
  o.kind = kind;
  if (a.schedule == "constant") {
    o.schedule = OptimizerOptions::Schedule::kConstant;
  } else if (a.schedule != "cosine") {
    fail("there is no schedule '{}'; write cosine or constant", a.schedule);
  }
  o.lr = a.lr;
  o.min_lr = a.min_lr < 0 ? a.lr / 10 : a.min_lr;
  o.warmup = a.warmup < 0 ? std::min<int64_t>(100, a.steps / 10) : a.warmup;
  o.total_steps = a.steps;
  o.weight_decay = a.weight_decay;
  o.max_norm = a.clip;
  return o;
}

Cluster devices_of(const TrainArguments& a) {
  const Cluster cluster = parse_cluster(a.devices);
  if (!a.devices.starts_with("cpu:")) {
    fail("--devices {}: this build trains on cpu:N only; plans for other clusters can be made",
         a.devices);
  }
  return cluster;
}

// What a plan file fixes and the command line may not say again.
void expect_nothing_fixed(const TrainArguments& a) {
  const ModelArguments& m = a.model;
  const char* twice = !m.set.empty()         ? "--set"
                      : m.batch != 0         ? "--batch"
                      : !m.precision.empty() ? "--precision"
                      : !m.optimizer.empty() ? "--optimizer"
                      : !a.mesh.empty()      ? "--mesh"
                                             : nullptr;
  if (twice != nullptr) {
    fail("{} is fixed by the plan {}; plan again to change it", twice, m.model);
  }
}

LoadedPlan planned(const TrainArguments& a) {
  const Cluster devices = devices_of(a);
  if (a.model.model.ends_with(".json")) {
    expect_nothing_fixed(a);
    const std::string text = read_file(a.model.model);
    ModelSpec spec = spec_in_plan_file(a.model.model, text);
    if (!spec.training) fail("{}: a plan of the forward alone trains nothing", a.model.model);
    if (spec.dtype == DType::kBF16) {
      fail("{}: planned in bf16, which CPU devices do not compute; plan with --precision fp32",
           a.model.model);
    }
    spec.optimizer = optimizer_of(a, spec.optimizer.kind);
    LoadedPlan loaded = load_plan(a.model.model, text, std::move(spec), a.model.user);
    if (loaded.plan.mesh.size() != devices.size()) {
      fail("{}: a plan for {} devices ({}), not for the {} of --devices {}", a.model.model,
           loaded.plan.mesh.size(), loaded.plan.cluster.spec, devices.size(), a.devices);
    }
    return loaded;
  }
  ModelSpec spec = spec_of(a.model);
  if (spec.dtype == DType::kBF16) {
    fail("--precision bf16: CPU devices compute in fp32 and fp64");
  }
  spec.optimizer = optimizer_of(a, spec.optimizer.kind);
  LoadedPlan result;
  result.model = trace_model(std::move(spec), a.model.user);
  const PlannerOptions options = planner_options(result.model.graph, a.mesh, "");
  PlanResult found = find_plan(result.model.graph, devices, options);
  if (!found.plan) throw_no_plan(result.model.spec.name, devices, options, found);
  result.plan = std::move(*found.plan);
  return result;
}

// The loss alone, with a plan of its own on the same mesh.
LoadedPlan evaluation_of(const LoadedPlan& training, const UserModel* user) {
  LoadedPlan e;
  ModelSpec spec = training.model.spec;
  spec.training = false;
  e.model = trace_model(std::move(spec), user);
  PlannerOptions options = planner_options(e.model.graph, "", "none");
  for (const MeshAxis& axis : training.plan.mesh.axes) {
    options.mesh.sizes.push_back(axis.size);
    options.mesh.roles.push_back(AxisRole::kAny);
  }
  PlanResult found = find_plan(e.model.graph, training.plan.cluster, options);
  CLEAVE_ASSERT(found.plan.has_value(), "the loss of {} has no plan", e.model.spec.name);
  e.plan = std::move(*found.plan);
  return e;
}

}  // namespace

void train_command(const TrainArguments& a) {
  // What cannot be read is noticed before the search.
  const TokenData opened({a.data, a.val_data, a.tokenizer}, /*sequence=*/1);
  const LoadedPlan training = planned(a);
  const ModelConfig& config = training.model.config;
  const TokenData data = opened.with_sequence(config.sequence);
  const LoadedPlan evaluation = evaluation_of(training, a.model.user);

  TrainOptions options;
  options.steps = a.steps;
  options.seed = static_cast<uint64_t>(a.seed);
  options.vocab = config.vocab;
  options.targets = training.model.objective == Objective::kMaskedTokens ? Targets::kMaskedTokens
                                                                         : Targets::kNextToken;
  options.evaluation = {&evaluation.model.graph, &evaluation.plan};
  options.eval_every = a.eval_every;
  options.log_every = a.log_every;
  options.out_dir = a.out;
  options.plan_json = plan_file_text(training.model, training.plan);

  const Mesh& mesh = training.plan.mesh;
  fmt::print("{}\n{} on {}, {} steps, seed {}\n", describe(training.model),
             mesh.size() == 1 ? "one device" : "mesh " + mesh.to_string(), a.devices, a.steps,
             a.seed);
  std::fflush(stdout);
  train(training.model.graph, training.plan, data, options, [](const std::string& line) {
    fmt::print("{}\n", line);
    std::fflush(stdout);
  });
  if (!a.out.empty()) fmt::print("written to {}/metrics.jsonl and plan.json\n", a.out);
}

}  // namespace cleave
