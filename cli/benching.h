// Plans a model for this machine and times its training steps: for `cleave bench` and
// benchmarks/train_step.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cli/arguments.h"
#include "cli/model_spec.h"
#include "executor/measured.h"
#include "executor/run_info.h"
#include "executor/step_bench.h"
#include "planner/plan.h"

namespace cleave {

// A model that is ready for steps.
struct PreparedBench {
  TracedModel model;
  Plan plan;
  RunInfo info;  // its tokens, its work, the devices' peak
  std::unique_ptr<StepBench> bench;

  const Program& program() const { return bench->runtime().program(); }
  std::string place() const;  // "one device", "mesh dp 2 x tp 2"
};
// Throws Error, or DoesNotFit, as training does.
std::unique_ptr<PreparedBench> prepare_bench(const BenchArguments& arguments);

// What was measured.
struct BenchResult {
  std::vector<double> seconds;  // of each step
  StepResult recorded;          // one more
  std::vector<ClassShare> classes;
  Gaps gaps;

  double median_seconds() const { return median(seconds); }
};
BenchResult measure(PreparedBench& prepared, int64_t warm_up, int64_t steps);

std::string bench_report(const PreparedBench& prepared, const BenchResult& result, bool colour);
std::string bench_json(const PreparedBench& prepared, const BenchResult& result);
// A table of the recorded step by ops, the longest first.
std::string ops_table(const Program& program, const StepResult& step, bool colour);

}  // namespace cleave
