// What a model's losses are over some steps of training, for benchmarks that compare such curves.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cli/model_spec.h"
#include "cli/planning.h"
#include "executor/lower.h"
#include "executor/runtime.h"
#include "executor/step_limits.h"
#include "graph/error.h"
#include "planner/planner.h"

namespace cleave {

struct Curve {
  std::vector<double> loss, norm, seconds;  // of each step
};

// The plan of one device of this kind.
inline Plan plan_on_one(const TracedModel& model, const std::string& device) {
  PlanResult found =
      find_plan(model.graph, parse_cluster(device), planner_options(model.graph, "", "none"));
  if (!found.plan) fail("{} has no plan for {}", model.spec.name, device);
  return std::move(*found.plan);
}

// Trains from the initial weights, or what `begin` makes of them. `tokens_of(step)`: those of its
// sequences, one after the other, and the one that follows the last.
inline Curve train_curve(const TracedModel& model, const Plan& plan, const FuseOptions& fusing,
                         Processor processor, const RunOptions& options, int64_t steps,
                         const std::function<std::vector<int32_t>(int64_t step)>& tokens_of,
                         const std::function<void(Runtime&)>& begin = nullptr) {
  const auto runtime = make_runtime(lower(model.graph, plan, fusing), processor, options);
  runtime->initialize();
  if (begin) begin(*runtime);
  Curve curve;
  for (int64_t step = 0; step < steps; ++step) {
    const std::vector<int32_t> tokens = tokens_of(step);
    const size_t n = tokens.size() - 1;
    runtime->set_data("tokens", std::as_bytes(std::span(tokens).first(n)));
    runtime->set_data("targets", std::as_bytes(std::span(tokens).last(n)));
    set_limits(*runtime, model.graph, no_limits());
    const StepResult r = runtime->step();
    curve.loss.push_back(r.value("loss"));
    curve.norm.push_back(r.value("grad_norm"));
    curve.seconds.push_back(r.seconds);
  }
  return curve;
}

// The difference of their losses at step i, relative to the second's.
inline double apart_at(const Curve& a, const Curve& b, size_t i) {
  return std::abs(a.loss[i] / b.loss[i] - 1);
}

// The largest of them; NaN when one is.
inline double farthest(const Curve& a, const Curve& b) {
  double most = 0;
  for (size_t i = 0; i < a.loss.size() && !std::isnan(most); ++i) {
    const double apart = apart_at(a, b, i);
    if (!(apart <= most)) most = apart;
  }
  return most;
}

}  // namespace cleave
