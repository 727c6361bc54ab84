// cleave train
#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <optional>

#include "checkpoint/checkpoint.h"
#include "checkpoint/store.h"
#include "cli/command.h"
#include "cli/commands.h"
#include "cli/config_file.h"
#include "cli/device_options.h"
#include "cli/format.h"
#include "cli/plan_file.h"
#include "cli/planning.h"
#include "cli/profile.h"
#include "cli/run_folder.h"
#include "cli/what_fits.h"
#include "data/token_data.h"
#include "executor/telemetry.h"
#include "executor/trainer.h"
#include "graph/error.h"

namespace cleave {
namespace {

OptimizerOptions optimizer_of(const TrainArguments& a, OptimizerOptions o) {
  if (a.min_lr > a.lr) fail("--min-lr {}: must not be above --lr {}", a.min_lr, a.lr);
  const bool cosine = a.schedule == "cosine";
  if (a.warmup > a.steps || (cosine && a.warmup == a.steps)) {
    fail("--warmup {}: must be below --steps {}", a.warmup, a.steps);
  }
  o.schedule = cosine ? OptimizerOptions::Schedule::kCosine : OptimizerOptions::Schedule::kConstant;
  o.lr = a.lr;
  o.min_lr = a.min_lr < 0 ? a.lr / 10 : a.min_lr;
  o.warmup = a.warmup < 0 ? std::min<int64_t>(100, a.steps / 10) : a.warmup;
  o.total_steps = a.steps;
  o.weight_decay = a.weight_decay;
  o.max_norm = a.clip;
  return o;
}

// What a plan file fixes and the command line may not say again.
void expect_nothing_fixed(const TrainArguments& a) {
  const ModelArguments& m = a.model;
  const char* twice = !m.set.empty()                                  ? "--set"
                      : m.batch != 0                                  ? "--batch"
                      : !m.precision.empty() && m.precision != "tf32" ? "--precision"
                      : !m.optimizer.empty()                          ? "--optimizer"
                      : !m.moments.empty()                            ? "--moments"
                      : !a.mesh.empty()                               ? "--mesh"
                                                                      : nullptr;
  if (twice != nullptr) {
    fail("{} is fixed by the plan {}; plan again to change it", twice, m.model);
  }
}

LoadedPlan planned(const TrainArguments& a) {
  const Cluster devices = training_devices(a.devices);
  if (a.model.model.ends_with(".json")) {
    expect_nothing_fixed(a);
    const std::string text = read_file(a.model.model);
    ModelSpec spec = spec_in_plan_file(a.model.model, text);
    if (!spec.training) fail("{}: a plan of the forward alone trains nothing", a.model.model);
    if (a.model.precision == "tf32" && spec.dtype != DType::kF32) {
      fail("{}: planned in {}, whose products are in no TF32", a.model.model,
           precision_name(spec.dtype));
    }
    if (is_half(spec.dtype) && !on_gpu(a.devices)) {
      fail("{}: planned in {}, which CPU devices do not compute; plan with --precision fp32",
           a.model.model, precision_name(spec.dtype));
    }
    spec.optimizer = optimizer_of(a, spec.optimizer);
    LoadedPlan loaded = load_plan(a.model.model, text, std::move(spec), a.model.user);
    const int64_t planned_devices = loaded.plan.pipeline.stages * loaded.plan.mesh.size();
    if (planned_devices != devices.size()) {
      fail("{}: a plan for {} devices ({}), not for the {} of --devices {}", a.model.model,
           planned_devices, loaded.plan.cluster.spec, devices.size(), a.devices);
    }
    return loaded;
  }
  ModelArguments asked = a.model;
  asked.precision = precision_of(a.devices, a.model.precision).name;
  ModelSpec spec = spec_of(asked);
  expect_precision(a.devices, spec.dtype);
  spec.optimizer = optimizer_of(a, spec.optimizer);
  LoadedPlan result;
  result.model = trace_model(std::move(spec), a.model.user);
  const PlannerOptions options =
      planner_options(result.model.graph, a.mesh, "", no_fuse_of(a.no_fuse, on_gpu(a.devices)));
  const bool tf32 = precision_of(a.devices, a.model.precision).tf32;
  PlanResult found = find_plan(result.model.graph, tf32 ? devices.with_tf32() : devices, options);
  if (!found.plan) {
    if (!on_gpu(a.devices)) {
      throw_no_plan(result.model.spec.name, result.model.graph, devices, options, found);
    }
    throw_no_plan_here(result.model, a.model.user, devices, options, found);
  }
  result.plan = std::move(*found.plan);
  if (found.graph) result.model.graph = *found.graph;
  return result;
}

// The loss alone, with a plan of its own: on the same mesh, or on any of all devices of a pipeline.
LoadedPlan evaluation_of(const LoadedPlan& training, const UserModel* user) {
  LoadedPlan e;
  ModelSpec spec = training.model.spec;
  spec.training = false;
  e.model = trace_model(std::move(spec), user);
  PlannerOptions options = planner_options(e.model.graph, "", "none");
  const bool pipeline = training.plan.pipeline.stages > 1;
  for (const MeshAxis& axis : pipeline ? std::vector<MeshAxis>() : training.plan.mesh.axes) {
    options.mesh.sizes.push_back(axis.size);
    options.mesh.roles.push_back(AxisRole::kAny);
  }
  PlanResult found = find_plan(e.model.graph, training.plan.cluster, options);
  CLEAVE_ASSERT(found.plan.has_value(), "the loss of {} has no plan", e.model.spec.name);
  e.plan = std::move(*found.plan);
  return e;
}

// Where the run left off, if it does go on.
std::optional<Checkpoint> checkpoint_of(const TrainArguments& a) {
  if (!a.resume) return std::nullopt;
  std::string folder = a.resume->empty() ? a.out : *a.resume;
  if (folder.empty()) fail("--resume: name the run's folder here, or with --out");
  const bool own = folder == a.out;
  folder = checkpoints_in(folder);
  // A run that was ended before its first checkpoint begins anew.
  if (own && CheckpointStore(folder).list().empty()) return std::nullopt;
  std::vector<std::string> problems;
  std::optional<Checkpoint> checkpoint = open_checkpoint(folder, &problems);
  for (const std::string& problem : problems) fmt::print("passed over: {}\n", problem);
  return checkpoint;
}

// What has to be as it was for a run to go on. The batch may change: data are counted in sequences.
void expect_same_job(const Checkpoint& from, const TracedModel& now, const UserModel* user) {
  TrainedJob job = job_in_checkpoint(from.path(), from.run_json());
  const auto differ = [&](std::string_view what, std::string_view then, std::string_view here) {
    fail("{}: its run trains {} {}, and this one {}; --resume goes on with the same model",
         from.path(), what, then, here);
  };
  const ModelSpec& spec = now.spec;
  if (job.model.name != spec.name) differ("the model", job.model.name, spec.name);
  if (job.model.dtype != spec.dtype) {
    differ("in", precision_name(job.model.dtype), precision_name(spec.dtype));
  }
  if (job.model.optimizer.kind != spec.optimizer.kind) {
    differ("with", name_of(job.model.optimizer.kind), name_of(spec.optimizer.kind));
  }
  if (job.model.optimizer.moments != spec.optimizer.moments) {
    differ("with moments in", moments_name(job.model), moments_name(spec));
  }
  const bool own = user != nullptr && user->name == spec.name;
  const std::vector<std::string> then = values_of(config_of(job.model, own ? user : nullptr));
  const std::vector<std::string> here = values_of(now.config);
  for (size_t i = 0; i < here.size(); ++i) {
    if (then[i] != here[i] && !here[i].starts_with("batch=")) {
      differ("a model of", then[i], here[i]);
    }
  }
}

// Whether the run that is in the folder is the one that goes on: another one's is not written over.
bool goes_on_in(const std::string& out, const std::optional<Checkpoint>& from,
                const TrainArguments& a) {
  return a.resume && (!from || lies_in(from->path(), out));
}

// A first SIGINT or SIGTERM asks the run to save and stop after its step; a second one ends it.
std::atomic<int> stop_signal = 0;
static_assert(std::atomic<int>::is_always_lock_free);

class StopSignals {
 public:
  StopSignals() {
    stop_signal = 0;
    struct sigaction ask {};
    ask.sa_handler = [](int signal) { stop_signal = signal; };
    ask.sa_flags = static_cast<int>(SA_RESETHAND);
    for (size_t i = 0; i < kSignals.size(); ++i) {
      ::sigaction(kSignals[i], nullptr, &before_[i]);
      // Who starts a run with the signal ignored (nohup) means it.
      if (before_[i].sa_handler != SIG_IGN) ::sigaction(kSignals[i], &ask, nullptr);
    }
  }
  ~StopSignals() {
    for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &before_[i], nullptr);
  }
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  static int received() { return stop_signal; }

 private:
  static constexpr std::array<int, 2> kSignals = {SIGINT, SIGTERM};
  std::array<struct sigaction, 2> before_{};
};

}  // namespace

void train_command(const TrainArguments& a) {
  if (a.checkpoint_every > 0 && a.out.empty()) {
    fail("--checkpoint-every {}: name the run's folder with --out", a.checkpoint_every);
  }
  if (!a.profile.empty()) expect_writable(a.profile);
  const std::vector<std::string> no_fuse = no_fuse_of(a.no_fuse, on_gpu(a.devices));
  const std::optional<Checkpoint> resume = checkpoint_of(a);
  Telemetry telemetry({.out_dir = a.out,
                       .resume = goes_on_in(a.out, resume, a),
                       .tensorboard = a.tensorboard,
                       .log_every = a.log_every,
                       .progress = progress_named(a.progress),
                       .lines = nullptr});
  // What cannot be read is noticed before the search.
  const TokenData opened({a.data, a.val_data, a.tokenizer}, /*sequence=*/1);
  const LoadedPlan training = planned(a);
  const F8Options f8 = f8_of(a.fp8, on_gpu(a.devices), training.model.spec.dtype);
  if (resume) expect_same_job(*resume, training.model, a.model.user);
  const ModelConfig& config = training.model.config;
  const TokenData data = opened.with_sequence(config.sequence);
  const LoadedPlan evaluation = evaluation_of(training, a.model.user);
  telemetry.put("config.toml", config_text(a));
  telemetry.put("plan.json", plan_file_text(training.model, training.plan));

  TrainOptions options;
  options.steps = a.steps;
  options.seed = static_cast<uint64_t>(a.seed);
  options.vocab = config.vocab;
  options.targets = training.model.objective == Objective::kMaskedTokens ? Targets::kMaskedTokens
                                                                         : Targets::kNextToken;
  options.evaluation = {&evaluation.model.graph, &evaluation.plan};
  options.eval_every = a.eval_every;
  options.eval_batches = a.eval_batches;
  options.checkpoints = {.folder = a.out.empty() ? "" : a.out + "/checkpoints",
                         .every = a.checkpoint_every,
                         .keep = a.keep,
                         .job = job_text(training.model, a.tokenizer)};
  options.processor = on_gpu(a.devices) ? Processor::kGpu : Processor::kCpu;
  options.resume = resume ? &*resume : nullptr;
  options.spike_deviations = a.skip_spikes;
  options.find_nonfinite = a.find_nan;
  options.no_fuse = no_fuse;
  options.f8 = f8;
  options.late = on_gpu(a.devices);
  options.tf32 = precision_of(a.devices, a.model.precision).tf32;
  if (!a.profile.empty()) {
    options.profiled = [&](const Program& program, const StepResult& step) {
      write_profile(a.profile, program, training.plan, step);
    };
  }
  options.ready = [&](const Program& p) {
    if (!a.dump.empty()) write_file(a.dump, to_text(p));
    tell_shared_cores(a.devices);
  };
  options.stop = [] { return StopSignals::received() != 0; };

  const Mesh& mesh = training.plan.mesh;
  telemetry.note(describe(training.model));
  const int32_t stages = training.plan.pipeline.stages;
  std::string where = mesh.size() == 1 ? "one device" : "mesh " + mesh.to_string();
  if (stages > 1) where = fmt::format("{} stages of {}", stages, where);
  telemetry.note(fmt::format("{} on {}, {} steps, seed {}", where, a.devices, a.steps, a.seed));
  for (const MeshAxis& axis : mesh.axes) {
    if (!axis.name.starts_with("rep") || axis.size == 1) continue;
    telemetry.note(fmt::format(
        "warning: {} times the same work is done: nothing of the model divides by {} any further; "
        "try another --batch, or fewer devices",
        axis.size, axis.size));
  }
  if (a.resume && !resume) telemetry.note("no checkpoint was written so far: begins at step 1");
  const StopSignals signals;
  TrainResult result;
  try {
    result = train(training.model.graph, training.plan, data, options, telemetry);
  } catch (const OutOfDeviceMemory& e) {
    throw_out_of_memory(training.model, a.model.user, training.plan.cluster, e);
  }
  if (!result.stopped) return;
  const std::string saved = !result.saved.empty()
                                ? fmt::format("saved step {}; goes on with: train --resume {}",
                                              result.steps.back().step, a.out)
                            : a.out.empty() ? "nothing was saved: there is no --out"
                                            : "no step was made";
  throw Interrupted(StopSignals::received(), fmt::format("stopped by a signal; {}", saved));
}

}  // namespace cleave
