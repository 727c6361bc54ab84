#include "executor/step_bench.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <span>
#include <utility>

#include "executor/step_limits.h"
#include "graph/error.h"
#include "graph/philox.h"

namespace cleave {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

}  // namespace

double median(std::vector<double> values) {
  CLEAVE_ASSERT(!values.empty(), "the median of nothing");
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*std::max_element(values.begin(), middle) + *middle) / 2;
}

StepBench::StepBench(const Graph& graph, Program program, int64_t vocab, Processor processor,
                     const RunOptions& options)
    : graph_(graph),
      ahead_(processor == Processor::kGpu && graph.micro_batches == 1),
      runtime_(make_runtime(std::move(program), processor, options)) {
  runtime_->initialize();
  const int64_t tokens = numel(runtime_->source_type("tokens").shape);
  for (int64_t i = 0; i < tokens + 1; ++i) {
    const double u = uniform_at(7, stream_of("tokens"), static_cast<uint64_t>(i));
    tokens_.push_back(static_cast<int32_t>(u * static_cast<double>(vocab)));
  }
}

// All micro-batches get the same data.
void StepBench::start() {
  const size_t n = tokens_.size() - 1;
  for (int64_t m = 0; m < graph_.micro_batches; ++m) {
    runtime_->set_data("tokens", std::as_bytes(std::span(tokens_).first(n)));
    runtime_->set_data("targets", std::as_bytes(std::span(tokens_).last(n)));
    set_limits(*runtime_, graph_, no_limits());
    if (m + 1 < graph_.micro_batches) runtime_->accumulate();
  }
  runtime_->start();
}

double StepBench::finish() { return loss_ = runtime_->finish().value("loss"); }

StepBench::Times StepBench::step() {
  const double cpu = cpu_seconds();
  const Clock::time_point begin = Clock::now();
  start();
  finish();
  const double wall = seconds_since(begin);
  return {wall, cpu_seconds() - cpu};
}

std::vector<double> StepBench::steps(int64_t count) {
  std::vector<double> seconds;
  Clock::time_point last = Clock::now();
  if (ahead_ && count > 0) start();
  for (int64_t i = 0; i < count; ++i) {
    if (!ahead_ || i + 1 < count) start();
    finish();
    const Clock::time_point now = Clock::now();
    seconds.push_back(std::chrono::duration<double>(now - last).count());
    last = now;
  }
  return seconds;
}

StepResult StepBench::recorded() {
  runtime_->record(true);
  start();
  finish();
  start();
  StepResult result = runtime_->finish();
  loss_ = result.value("loss");
  runtime_->record(false);
  return result;
}

}  // namespace cleave
