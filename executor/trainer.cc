#include "executor/trainer.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "executor/cpu_runtime.h"
#include "executor/lower.h"
#include "executor/metrics.h"
#include "graph/error.h"

namespace cleave {
namespace {

void feed(CpuRuntime& runtime, const Batch& batch) {
  runtime.set_data("tokens", std::as_bytes(std::span<const int32_t>(batch.tokens)));
  runtime.set_data("targets", std::as_bytes(std::span<const int32_t>(batch.targets)));
}

// The loss on the tail of the data, by a program of its own.
class Evaluator {
 public:
  Evaluator(const Evaluation& evaluation, const TokenData& data, const BatchOptions& batch,
            int64_t most_batches)
      : data_(data),
        batch_(batch),
        batches_(std::min(data.validation_batches(batch.batch), most_batches)),
        runtime_(lower(*evaluation.graph, *evaluation.plan), {.seed = batch.seed}) {}

  bool possible() const { return batches_ > 0; }

  // Takes the weights as they are now. A mean over targets: batches may have different numbers.
  double loss(const CpuRuntime& trained) {
    for (const ProgramSource& s : runtime_.program().sources) {
      if (s.kind != SourceKind::kData) runtime_.write_source(s.name, trained.read_source(s.name));
    }
    double sum = 0, count = 0;
    for (int64_t b = 0; b < batches_; ++b) {
      const Batch batch = data_.validation_batch(b, batch_);
      feed(runtime_, batch);
      const auto left_out = std::count(batch.targets.begin(), batch.targets.end(), kNoTarget);
      const auto targets = static_cast<double>(static_cast<int64_t>(batch.targets.size()) -
                                               static_cast<int64_t>(left_out));
      sum += runtime_.step().value("loss") * targets;
      count += targets;
    }
    return sum / count;
  }

 private:
  const TokenData& data_;
  const BatchOptions batch_;
  const int64_t batches_;
  CpuRuntime runtime_;
};

Shape tokens_shape(const Graph& graph, const TokenData& data) {
  const Source* tokens = graph.source_named("tokens");
  CLEAVE_ASSERT(tokens != nullptr && graph.type(tokens->value).shape.size() == 2,
                "graph '{}' has no data 'tokens' [batch, sequence]", graph.name);
  const Shape& shape = graph.type(tokens->value).shape;
  CLEAVE_ASSERT(shape[1] == data.sequence(), "the model has sequences of {}, the data of {}",
                shape[1], data.sequence());
  return shape;
}

void stop_unless_finite(const StepRecord& r, const TrainResult& so_far, int64_t steps) {
  const bool loss_is_sound = std::isfinite(r.loss);
  if (loss_is_sound && std::isfinite(r.grad_norm)) return;
  const std::string before = so_far.steps.empty() ? ""
                                                  : fmt::format(" (loss {:.4f} the step before)",
                                                                so_far.steps.back().loss);
  fail("step {}/{}: the {} is {}{}; try a smaller learning rate or a longer warm-up", r.step, steps,
       loss_is_sound ? "gradient's norm" : "loss", loss_is_sound ? r.grad_norm : r.loss, before);
}

// Of all steps but the first, which also warms the caches.
double median_seconds(const std::vector<StepRecord>& steps) {
  if (steps.empty()) return 0;
  std::vector<double> seconds;
  for (size_t i = steps.size() > 1 ? 1 : 0; i < steps.size(); ++i)
    seconds.push_back(steps[i].seconds);
  const auto middle = seconds.begin() + static_cast<int64_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

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
  CLEAVE_ASSERT(std::equal(executed.begin(), executed.end(), planned.begin(), planned.end(), same),
                "a step executed {}, but the plan has {}", to_string(executed, plan.mesh),
                to_string(planned, plan.mesh));
}

TrainResult train(const Graph& graph, const Plan& plan, const TokenData& data,
                  const TrainOptions& options, const LogSink& log) {
  const Shape shape = tokens_shape(graph, data);
  const BatchOptions batch{shape[0], options.vocab, options.targets, options.seed};
  data.check_vocab(options.vocab);
  MetricsWriter metrics(options.out_dir, options.plan_json);

  CpuRuntime runtime(lower(graph, plan),
                     {.seed = options.seed, .compare_ranks = options.compare_ranks});
  runtime.initialize();
  std::optional<Evaluator> evaluator;
  if (options.evaluation.graph != nullptr) {
    evaluator.emplace(options.evaluation, data, batch, options.eval_batches);
    if (!evaluator->possible()) {
      log(fmt::format("no validation loss: '{}' has no sequence to spare", data.path()));
    }
  }

  TrainResult result;
  result.planned = planned_collectives(plan);
  result.arena_bytes = runtime.program().arena_bytes;
  result.tokens_per_step = static_cast<double>(numel(shape));
  for (int64_t step = 1; step <= options.steps; ++step) {
    feed(runtime, data.training_batch((step - 1) * batch.batch, batch));
    const StepResult r = runtime.step();
    expect_planned(r.collectives, plan);
    result.executed = r.collectives;
    const StepRecord record{.step = step,
                            .loss = r.value("loss"),
                            .grad_norm = r.value("grad_norm"),
                            .lr = r.value("lr"),
                            .seconds = r.seconds,
                            .tokens_per_second = result.tokens_per_step / r.seconds};
    stop_unless_finite(record, result, options.steps);
    result.steps.push_back(record);
    metrics.write(record);
    const bool last = step == options.steps;
    if (last || (options.log_every > 0 && step % options.log_every == 0)) {
      log(log_line(record, options.steps));
    }
    const bool due = last || (options.eval_every > 0 && step % options.eval_every == 0);
    if (!due || !evaluator || !evaluator->possible()) continue;
    result.evaluations.push_back({step, evaluator->loss(runtime)});
    metrics.write(result.evaluations.back());
    log(log_line(result.evaluations.back(), options.steps));
  }
  result.median_seconds = median_seconds(result.steps);
  metrics.write_summary(result, plan);
  for (const std::string& line : log_summary(result, plan)) log(line);
  return result;
}

}  // namespace cleave
