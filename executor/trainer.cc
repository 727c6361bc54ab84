#include "executor/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "checkpoint/async_writer.h"
#include "checkpoint/store.h"
#include "executor/evaluator.h"
#include "executor/lower.h"
#include "executor/run_state.h"
#include "executor/spike_guard.h"
#include "executor/step_bench.h"
#include "executor/step_limits.h"
#include "graph/error.h"

namespace cleave {
namespace {

// So many steps after a run's first one is recorded when it is profiled, and the one before: what
// is made at the first time is made then.
constexpr int64_t kProfiledStep = 3;

Shape tokens_shape(const Graph& graph, const TokenData& data) {
  const Source* tokens = graph.source_named("tokens");
  CLEAVE_ASSERT(tokens != nullptr && graph.type(tokens->value).shape.size() == 2,
                "graph '{}' has no data 'tokens' [batch, sequence]", graph.name);
  const Shape& shape = graph.type(tokens->value).shape;
  CLEAVE_ASSERT(shape[1] == data.sequence(), "the model has sequences of {}, the data of {}",
                shape[1], data.sequence());
  return shape;
}

// Of all steps but the first, which also warms the caches.
double median_seconds(const std::vector<StepRecord>& steps) {
  if (steps.empty()) return 0;
  std::vector<double> seconds;
  for (size_t i = steps.size() > 1 ? 1 : 0; i < steps.size(); ++i)
    seconds.push_back(steps[i].seconds);
  return median(std::move(seconds));
}

// What the program sends between chunks, one rank of every stage together.
void add_sends(const Program& program, std::vector<CollectiveCount>& counts) {
  CollectiveCounter sends;
  for (int32_t s = 0; s < program.stages(); ++s) {
    for (const CollectiveCount& c : count_collectives(program, s)) {
      if (c.kind == InstrKind::kSend)
        sends.add(c.kind, c.axis, c.bytes / static_cast<double>(c.count), c.count);
    }
  }
  counts.insert(counts.end(), sends.counts().begin(), sends.counts().end());
}

// Why the update was left out; empty when it was made.
std::string why_skipped(const StepResult& r, const StepLimits& limits) {
  if (r.value("clip") >= 0) return "";
  if (!std::isfinite(r.value("loss"))) return "loss not finite";
  if (!std::isfinite(r.value("grad_norm"))) return "gradient not finite";
  const bool calm_loss = r.value("loss") <= limits.loss;
  return calm_loss && r.value("grad_norm") > limits.norm ? "gradient spike" : "loss spike";
}

// The checkpoints of one run: written in the background, with what goes wrong told once.
class Saver {
 public:
  Saver(const Checkpoints& options, Telemetry& telemetry)
      : options_(options), telemetry_(telemetry) {
    if (!options.folder.empty()) store_.emplace(options.folder);
  }

  // Makes the folder. Throws Error when it cannot be written or another run writes there.
  void begin() {
    if (!enabled()) return;
    store_->open_for_writing();
    writer_.emplace(*store_, options_.keep);
  }

  bool enabled() const { return store_.has_value(); }
  bool due(int64_t step) const {
    return enabled() && options_.every > 0 && step % options_.every == 0;
  }

  // A run that goes on leaves another future behind; what was set aside.
  std::vector<std::string> set_aside_after(int64_t step) {
    return enabled() ? store_->set_aside_after(step) : std::vector<std::string>();
  }

  void save(const Runtime& runtime, RunState state) {
    state.job = options_.job;
    asked_step_ = state.step;
    try {
      writer_->submit(snapshot_of(runtime, state, writer_->recycled()));
    } catch (const Error& e) {
      warn(e.what());  // of an earlier one; this one is on its way
    }
  }

  // What has been written, and what has failed: training goes on all the same.
  void tell() {
    if (!enabled()) return;
    for (const WrittenCheckpoint& w : writer_->take_written()) {
      telemetry_.note(fmt::format("saved {} ({:.1f} MiB in {:.2f} s)", w.path,
                                  static_cast<double>(w.bytes) / 1048576, w.seconds));
      newest_ = w.path;
      newest_step_ = w.step;
    }
    if (const auto error = writer_->take_error()) warn(*error);
  }

  // Until nothing is being written any more.
  void wait() {
    if (!enabled()) return;
    try {
      writer_->wait();
    } catch (const Error& e) {
      warn(e.what());
    }
    tell();
  }

  // Waits, and throws Error when the newest that was asked for could not be saved.
  void finish() {
    wait();
    if (asked_step_ == newest_step_) return;
    fail("the checkpoint of step {} could not be saved: {}{}", asked_step_, last_error_,
         newest_.empty() ? "" : fmt::format("; the newest is {}", newest_));
  }

  int64_t newest_step() const { return newest_step_; }
  const std::string& newest() const { return newest_; }

 private:
  void warn(std::string_view why) {
    last_error_ = why;
    telemetry_.note(fmt::format("warning: checkpoints: {}", why));
  }

  const Checkpoints& options_;
  Telemetry& telemetry_;
  std::optional<CheckpointStore> store_;
  std::optional<AsyncWriter> writer_;           // after the store, which it uses
  int64_t asked_step_ = -1, newest_step_ = -1;  // of the newest that was submitted, and written
  std::string newest_;
  std::string last_error_;
};

class Training {
 public:
  Training(const Graph& graph, const Plan& plan, const TokenData& data, const TrainOptions& options,
           Telemetry& telemetry)
      : graph_(graph),
        plan_(plan),
        data_(data),
        options_(options),
        telemetry_(telemetry),
        shape_(tokens_shape(graph, data)),
        batch_{.batch = shape_[0],
               .vocab = options.vocab,
               .targets = options.targets,
               .seed = options.seed},
        fusing_(options.processor == Processor::kGpu, options.no_fuse, options.f8),
        owned_(make_runtime(
            lower(graph, plan, fusing_), options.processor,
            {.seed = options.seed,
             .compare_ranks = options.compare_ranks,
             .tf32 = options.tf32,
             .tell = [&telemetry](const std::string& line) { telemetry.note(line); }})),
        runtime_(*owned_),
        guard_(options.spike_deviations),
        saver_(options.checkpoints, telemetry) {
    data.check_vocab(options.vocab);
    if (options.evaluation.graph != nullptr) {
      evaluator_.emplace(
          *options.evaluation.graph, *options.evaluation.plan, data, batch_, options.eval_batches,
          options.processor, FuseOptions(fusing_.on, fusing_.off),
          RunOptions{.seed = options.seed, .tf32 = options.tf32, .beside = &runtime_});
    }
    state_.seed = options.seed;
    state_.data = data.fingerprint();
    runtime_.initialize();
    if (options.resume != nullptr) resume(*options.resume);
    result_.planned = planned_collectives(plan);
    add_sends(runtime_.program(), result_.planned);
    result_.arena_bytes = runtime_.allocated_bytes();
  }

  TrainResult run() {
    if (state_.step >= options_.steps) {  // nothing of the run's folder is touched
      for (const std::string& note : notes_) telemetry_.note(note);
      telemetry_.note(
          fmt::format("the run is at step {}, and --steps {} ends there or before: more "
                      "steps train further",
                      state_.step, options_.steps));
      return std::move(result_);
    }
    RunInfo info = run_info(graph_, plan_, options_.processor);
    info.steps = options_.steps;
    info.first_step = first_step_ = state_.step + 1;
    info.arena_bytes = result_.arena_bytes;
    if (evaluator_) info.evaluation_bytes = evaluator_->allocated_bytes();
    result_.tokens_per_step = info.tokens_per_step;
    saver_.begin();
    // Before the metrics of those steps go: a run killed in between does not go on from them.
    for (const std::string& path : saver_.set_aside_after(state_.step)) {
      notes_.push_back(fmt::format("a later checkpoint is set aside: {}", path));
    }
    telemetry_.begin(info);
    for (const std::string& note : notes_) telemetry_.note(note);
    const std::string fused = fusions_text(runtime_.program());
    if (!fused.empty()) telemetry_.note(fmt::format("fused: {}", fused));
    if (options_.ready) options_.ready(runtime_.program());
    if (evaluator_ && !evaluator_->possible()) {
      telemetry_.note(
          fmt::format("no validation loss: '{}' has no sequence to spare", data_.path()));
    }
    while (begun() < options_.steps) {
      if (options_.stop && options_.stop()) {
        result_.stopped = true;
        break;
      }
      step();
      if (!pending_) {
        if (evaluation_due(state_.step)) evaluate();
        if (saver_.due(state_.step)) save();
      }
      saver_.tell();
    }
    settle();
    saver_.wait();
    // Also once more when the last step's own could not be saved.
    const bool missing = saver_.newest_step() != state_.step;
    if (saver_.enabled() && !result_.steps.empty() && missing) save();
    saver_.finish();
    result_.saved = saver_.newest();
    result_.median_seconds = median_seconds(result_.steps);
    telemetry_.summary(result_, plan_);
    return std::move(result_);
  }

 private:
  void resume(const Checkpoint& checkpoint) {
    const std::string data = state_.data;
    state_ = run_state_from(checkpoint.run_json());
    if (state_.seed != options_.seed) {
      fail("{}: its run has seed {}, and this one {}: give it --seed {}", checkpoint.path(),
           state_.seed, options_.seed, state_.seed);
    }
    notes_.push_back(fmt::format("goes on from {}, step {}", checkpoint.path(), state_.step));
    if (state_.data != data) {
      notes_.push_back(fmt::format(
          "warning: '{}' is another text than the run was trained on so far", data_.path()));
    }
    state_.data = data;
    restore(runtime_, checkpoint);
    guard_.restore(state_.losses, state_.norms);
  }

  // A step that was started and whose results have not been read.
  struct Pending {
    int64_t first_sample = 0;
    StepLimits limits;
  };
  int64_t begun() const { return state_.step + (pending_ ? 1 : 0); }
  bool evaluation_due(int64_t step) const {
    return step == options_.steps || (options_.eval_every > 0 && step % options_.eval_every == 0);
  }

  // All micro-batches of the step that begins with this sample, and the update.
  void start(const Pending& p) {
    for (int64_t m = 0; m < graph_.micro_batches; ++m) {
      feed(runtime_, data_.training_batch(p.first_sample + m * batch_.batch, batch_));
      set_limits(runtime_, graph_, p.limits);
      if (m + 1 < graph_.micro_batches) runtime_.accumulate();
    }
    runtime_.start();
  }

  // Starts the next step, and reads the results of the one before; also its own, unless they may
  // come late: not when what the next one does goes by them, or somebody looks at the weights.
  void step() {
    const int64_t number = begun() + 1, samples = graph_.micro_batches * batch_.batch;
    const Pending next = {state_.samples + (pending_ ? samples : 0), guard_.limits()};
    const int64_t profiled = std::min(first_step_ + kProfiledStep, options_.steps);
    const bool record = options_.profiled && (number == profiled || number + 1 == profiled);
    runtime_.record(record);
    start(next);
    settle();
    pending_ = next;
    const bool late = options_.late && options_.spike_deviations == 0 && !options_.find_nonfinite;
    if (!late || record || evaluation_due(number) || saver_.due(number)) settle();
  }

  void settle() {
    if (!pending_) return;
    const Pending p = *std::exchange(pending_, std::nullopt);
    const StepResult r = runtime_.finish();
    expect_planned(r.collectives, plan_);
    result_.executed = r.collectives;
    ++state_.step;
    state_.samples += graph_.micro_batches * batch_.batch;
    const RunInfo& info = telemetry_.info();
    StepRecord record{.step = state_.step,
                      .loss = r.value("loss"),
                      .grad_norm = r.value("grad_norm"),
                      .lr = r.value("lr"),
                      .seconds = r.seconds,
                      .tokens_per_second = info.tokens_per_second(r.seconds),
                      .mfu = info.mfu(r.seconds),
                      .skipped = why_skipped(r, p.limits)};
    telemetry_.step(record);
    if (!r.runs.empty() && options_.profiled) {
      try {
        options_.profiled(runtime_.program(), r);
      } catch (const Error& e) {
        telemetry_.note(fmt::format("warning: no profile: {}", e.what()));
      }
    }
    if (record.skipped.empty()) {
      guard_.add(record.loss, record.grad_norm);
      state_.skipped_in_a_row = 0;
    } else {
      skipped(record, p);
    }
    result_.steps.push_back(std::move(record));
  }

  void skipped(const StepRecord& record, const Pending& step) {
    const bool finite = std::isfinite(record.loss) && std::isfinite(record.grad_norm);
    if (!finite && options_.find_nonfinite) {
      telemetry_.note(fmt::format("step {}: {}", record.step, first_nonfinite(step)));
    }
    if (++state_.skipped_in_a_row < kMostSkipped) return;
    saver_.wait();
    const std::string saved = saver_.newest().empty()
                                  ? ""
                                  : fmt::format("; the newest checkpoint is {}", saver_.newest());
    fail(
        "step {}/{}: {} updates in a row were left out, the last for: {}; try a smaller learning "
        "rate or a longer warm-up{}{}",
        record.step, options_.steps, state_.skipped_in_a_row, record.skipped,
        finite || options_.find_nonfinite ? "" : ", and --find-nan to see where it begins", saved);
  }

  // The step again, which changes nothing, with an eye on every op.
  std::string first_nonfinite(const Pending& step) {
    std::vector<std::byte> passes;
    if (graph_.source_named("pass") != nullptr) {
      // As many passes were done before the step as dropout has to draw from again.
      passes = runtime_.read_source("pass");
      int32_t count = 0;
      std::memcpy(&count, passes.data(), sizeof count);
      count -= static_cast<int32_t>(graph_.micro_batches);
      runtime_.write_source("pass", std::as_bytes(std::span(&count, 1)));
    }
    runtime_.watch(true);
    start(step);
    const StepResult again = runtime_.finish();
    runtime_.watch(false);
    return again.first_nonfinite.empty() ? "no op makes the first number that is not finite"
                                         : again.first_nonfinite;
  }

  void evaluate() {
    if (!evaluator_ || !evaluator_->possible()) return;
    result_.evaluations.push_back({state_.step, evaluator_->loss(runtime_)});
    telemetry_.evaluation(result_.evaluations.back());
    if (std::isfinite(result_.evaluations.back().loss)) return;
    telemetry_.note(
        "warning: the validation loss is not finite: the weights have diverged; go on from an "
        "earlier "
        "checkpoint with a smaller learning rate");
  }

  void save() {
    state_.losses = guard_.losses();
    state_.norms = guard_.norms();
    saver_.save(runtime_, state_);
  }

  const Graph& graph_;
  const Plan& plan_;
  const TokenData& data_;
  const TrainOptions& options_;
  Telemetry& telemetry_;
  const Shape shape_;         // of "tokens"
  const BatchOptions batch_;  // of one micro-batch
  const FuseOptions fusing_;
  const std::unique_ptr<Runtime> owned_;
  Runtime& runtime_;
  std::optional<Evaluator> evaluator_;
  SpikeGuard guard_;
  RunState state_;  // after the last step whose results have been read
  std::optional<Pending> pending_;
  int64_t first_step_ = 1;  // that this run makes
  Saver saver_;
  std::vector<std::string> notes_;  // told once the run begins
  TrainResult result_;
};

}  // namespace

std::vector<CollectiveCount> planned_collectives(const Plan& plan) {
  std::map<std::pair<InstrKind, int32_t>, CollectiveCount> sums;
  for (const PlannedCollectives& c : plan.collectives) {
    CLEAVE_ASSERT(is_collective(c.kind), "{} is no collective", name_of(c.kind));
    CollectiveCount& sum = sums[{kind_of(c.kind), c.axis}];
    sum.kind = kind_of(c.kind), sum.axis = c.axis;
    sum.count += c.count;
    sum.bytes += c.bytes;
  }
  std::vector<CollectiveCount> result;
  for (const auto& [key, sum] : sums) result.push_back(sum);
  return result;
}

void expect_planned(const std::vector<CollectiveCount>& executed, const Plan& plan) {
  const auto same = [](const CollectiveCount& a, const CollectiveCount& b) {
    return a.kind == b.kind && a.axis == b.axis && a.count == b.count &&
           std::abs(a.bytes - b.bytes) <= 1e-9 * std::abs(b.bytes);
  };
  const auto planned = planned_collectives(plan);
  std::vector<CollectiveCount> inside = executed;  // the stages
  std::erase_if(inside, [](const CollectiveCount& c) { return c.kind == InstrKind::kSend; });
  CLEAVE_ASSERT(std::equal(inside.begin(), inside.end(), planned.begin(), planned.end(), same),
                "a step executed {}, but the plan has {}", to_string(executed, plan.mesh),
                to_string(planned, plan.mesh));
}

TrainResult train(const Graph& graph, const Plan& plan, const TokenData& data,
                  const TrainOptions& options, Telemetry& telemetry) {
  return Training(graph, plan, data, options, telemetry).run();
}

}  // namespace cleave
