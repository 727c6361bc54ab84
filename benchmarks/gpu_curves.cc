// The same training three times: on the GPU in bf16 and in fp32, and on the CPU in double, from the
// same weights and data. Prints the losses and how far apart they are, against stated bounds;
// whether a second run on the GPU has the same bits; and what the fixed order of sums costs in
// time. Exit status 1 when a bound is broken.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "cli/model_spec.h"
#include "cli/planning.h"
#include "executor/lower.h"
#include "executor/runtime.h"
#include "executor/step_bench.h"
#include "executor/step_limits.h"
#include "graph/error.h"
#include "graph/philox.h"
#include "planner/planner.h"

namespace cleave {
namespace {

// A model of a size that the CPU can train in double in minutes.
struct Case {
  const char* model;
  int64_t batch, sequence;
  double bf16, fp32;  // bounds: the largest difference of a loss from the CPU's, relative to it
};
constexpr Case kCases[] = {
    {"gpt2:124m", 1, 64, 0.03, 1e-3},
    {"llama:tiny", 8, 64, 0.03, 1e-3},
};

struct Curve {
  std::vector<double> loss, norm;
  double step_seconds = 0;  // the median
};

ModelSpec spec_of_case(const Case& c, DType dtype, int64_t steps) {
  ModelSpec spec;
  spec.name = c.model;
  spec.batch = c.batch;
  spec.dtype = dtype;
  spec.set = {fmt::format("sequence={}", c.sequence)};
  spec.optimizer.schedule = OptimizerOptions::Schedule::kCosine;
  spec.optimizer.lr = 3e-4;
  spec.optimizer.min_lr = 3e-5;
  spec.optimizer.warmup = std::min<int64_t>(20, steps / 2);
  spec.optimizer.total_steps = steps;
  return spec;
}

// A text that can be learnt: most tokens follow from the one before, the rest are drawn.
std::vector<int32_t> tokens_of(int64_t step, int64_t count, int64_t vocab) {
  const int64_t used = std::min<int64_t>(vocab, 1000);
  std::vector<int32_t> tokens;
  int64_t last = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<uint64_t>(step * count + i);
    const double u = uniform_at(11, stream_of("curve"), at);
    last = u < 0.3 ? static_cast<int64_t>(u / 0.3 * static_cast<double>(used))
                   : (last * 31 + 17) % used;
    tokens.push_back(static_cast<int32_t>(last));
  }
  return tokens;
}

Curve train(const Case& c, DType dtype, Processor processor, int64_t steps,
            const RunOptions& asked = {}) {
  const TracedModel model = trace_model(spec_of_case(c, dtype, steps), nullptr);
  const Cluster cluster = parse_cluster(processor == Processor::kGpu ? "h100" : "cpu:1");
  const PlanResult found =
      find_plan(model.graph, cluster, planner_options(model.graph, "", "none"));
  if (!found.plan) fail("{} has no plan", c.model);
  RunOptions options = asked;
  options.seed = 5;
  const auto runtime = make_runtime(lower(model.graph, *found.plan, processor == Processor::kGpu),
                                    processor, options);
  runtime->initialize();
  Curve curve;
  std::vector<double> seconds;
  const int64_t n = c.batch * c.sequence;
  for (int64_t step = 0; step < steps; ++step) {
    const std::vector<int32_t> tokens = tokens_of(step, n + 1, model.config.vocab);
    const auto bytes = std::as_bytes(std::span(tokens));
    const auto size = static_cast<size_t>(n) * sizeof(int32_t);
    runtime->set_data("tokens", bytes.first(size));
    runtime->set_data("targets", bytes.last(size));
    set_limits(*runtime, model.graph, no_limits());
    const StepResult r = runtime->step();
    curve.loss.push_back(r.value("loss"));
    curve.norm.push_back(r.value("grad_norm"));
    seconds.push_back(r.seconds);
  }
  curve.step_seconds = median(seconds);
  return curve;
}

double farthest(const Curve& a, const Curve& b) {
  double most = 0;
  for (size_t i = 0; i < a.loss.size(); ++i) {
    most = std::max(most, std::abs(a.loss[i] - b.loss[i]) / std::abs(b.loss[i]));
  }
  return most;
}

// Means over the last tenth.
double last_loss(const Curve& c) {
  double sum = 0;
  const size_t n = std::max<size_t>(c.loss.size() / 10, 1);
  for (size_t i = c.loss.size() - n; i < c.loss.size(); ++i) sum += c.loss[i];
  return sum / static_cast<double>(n);
}

bool report(const Case& c, int64_t steps) {
  fmt::print("\n{}, {} steps of {} x {} tokens ({} in all), cosine from 3e-4\n", c.model, steps,
             c.batch, c.sequence, steps * c.batch * c.sequence);
  const Curve cpu = train(c, DType::kF64, Processor::kCpu, steps);
  const Curve bf16 = train(c, DType::kBF16, Processor::kGpu, steps);
  const Curve fp32 = train(c, DType::kF32, Processor::kGpu, steps);
  fmt::print("{:>6}{:>12}{:>12}{:>12}\n", "step", "CPU fp64", "GPU fp32", "GPU bf16");
  for (int64_t s = 0; s < steps; s = s + std::max<int64_t>(steps / 8, 1)) {
    const auto i = static_cast<size_t>(s);
    fmt::print("{:>6}{:>12.5f}{:>12.5f}{:>12.5f}\n", s + 1, cpu.loss[i], fp32.loss[i],
               bf16.loss[i]);
  }
  fmt::print("{:>6}{:>12.5f}{:>12.5f}{:>12.5f}   mean of the last tenth\n", "", last_loss(cpu),
             last_loss(fp32), last_loss(bf16));
  bool good = last_loss(cpu) < 0.9 * cpu.loss.front();
  fmt::print("it learns: {}\n", good ? "yes" : "NO");
  const auto bound = [&](const char* name, const Curve& curve, double most) {
    const double apart = farthest(curve, cpu);
    const bool within = apart <= most;
    good = good && within;
    fmt::print("{}: at most {:.2e} from the CPU in fp64, relative; the bound is {:.0e}: {}\n", name,
               apart, most, within ? "within" : "BROKEN");
  };
  bound("fp32", fp32, c.fp32);
  bound("bf16", bf16, c.bf16);
  const Curve again = train(c, DType::kBF16, Processor::kGpu, steps);
  const bool same = again.loss == bf16.loss && again.norm == bf16.norm;
  good = good && same;
  fmt::print("a second run in bf16 has the same bits: {}\n", same ? "yes" : "NO");
  return good;
}

// What the fixed order of sums costs at a size that fills the GPU.
void cost_of_order(const char* model) {
  const auto seconds = [&](bool any_order) {
    ModelSpec spec;
    spec.name = model;
    spec.dtype = DType::kBF16;
    const TracedModel traced = trace_model(spec, nullptr);
    const PlanResult found =
        find_plan(traced.graph, parse_cluster("h100"), planner_options(traced.graph, "", "none"));
    RunOptions options;
    options.any_order = any_order;
    StepBench bench(traced.graph, lower(traced.graph, *found.plan, true), traced.config.vocab,
                    Processor::kGpu, options);
    bench.steps(5);
    return median(bench.steps(20));
  };
  // Taking turns.
  std::vector<double> fixed, any;
  for (int turn = 0; turn < 2; ++turn) {
    fixed.push_back(seconds(false));
    any.push_back(seconds(true));
  }
  const double a = *std::min_element(fixed.begin(), fixed.end());
  const double b = *std::min_element(any.begin(), any.end());
  fmt::print(
      "{}: {:.3f} ms a step with every sum in a fixed order, {:.3f} with attention's backward "
      "by cuDNN in any order and products that may add in any order: determinism costs "
      "{:+.2f} %\n",
      model, a * 1e3, b * 1e3, 100 * (a / b - 1));
}

int run(int argc, char** argv) {
  CLI::App app("Training on the GPU beside the CPU in double");
  int64_t steps = 200;
  std::vector<std::string> only;
  bool no_order = false;
  app.add_option("--steps", steps, "Of each run");
  app.add_option("--only", only, "gpt2:124m, llama:tiny");
  app.add_flag("--no-cost", no_order, "Without the cost of the fixed order");
  CLI11_PARSE(app, argc, argv);
  bool good = true;
  for (const Case& c : kCases) {
    if (!only.empty() && std::find(only.begin(), only.end(), c.model) == only.end()) continue;
    good = report(c, steps) && good;
    std::fflush(stdout);
  }
  if (!no_order) {
    fmt::print("\n");
    for (const char* model : {"gpt2:124m", "megatron:1.2b"}) cost_of_order(model);
  }
  return good ? 0 : 1;
}

}  // namespace
}  // namespace cleave

int main(int argc, char** argv) {
  try {
    return cleave::run(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "gpu_curves: {}\n", e.what());
    return 1;
  }
}
