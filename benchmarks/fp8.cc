// What linear layers in floats of 8 bits change: the losses of so many steps from the same weights
// and data in bf16, and with either scaling, and the time of a step.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "cli/model_spec.h"
#include "cli/planning.h"
#include "executor/lower.h"
#include "executor/runtime.h"
#include "graph/error.h"
#include "graph/philox.h"
#include "planner/planner.h"

namespace cleave {
namespace {

struct Arguments {
  ModelSpec spec;
  int64_t steps = 200, every = 25;
  std::string gpu = "h100";
  std::vector<std::string> scalings = {"none", "current", "delayed"};
};

struct Curve {
  std::vector<double> losses, seconds;
  double median() const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
};

// Tokens that follow each other by a rule, with noise, so that there is something to learn.
std::vector<int32_t> tokens_of(const ModelConfig& c, int64_t step) {
  std::vector<int32_t> tokens;
  int64_t token = step % c.vocab;
  for (int64_t i = 0; i < c.batch * c.sequence + 1; ++i) {
    tokens.push_back(static_cast<int32_t>(token));
    const double u =
        uniform_at(7, stream_of("data") + static_cast<uint64_t>(step), static_cast<uint64_t>(i));
    token = u < 0.3 ? static_cast<int64_t>(u / 0.3 * static_cast<double>(c.vocab))
                    : (token * 5 + 3) % c.vocab;
  }
  return tokens;
}

Curve curve_of(const Arguments& a, const TracedModel& model, const Plan& plan, F8Scaling scaling) {
  FuseOptions fusing(true);
  fusing.f8.scaling = scaling;
  const auto runtime = make_runtime(lower(model.graph, plan, fusing), Processor::kGpu, {.seed = 1});
  runtime->initialize();
  constexpr float kNoLimit = std::numeric_limits<float>::infinity();
  Curve curve;
  for (int64_t step = 0; step < a.steps; ++step) {
    const std::vector<int32_t> tokens = tokens_of(model.config, step);
    const size_t n = tokens.size() - 1;
    runtime->set_data("tokens", std::as_bytes(std::span(tokens).first(n)));
    runtime->set_data("targets", std::as_bytes(std::span(tokens).last(n)));
    for (const char* limit : {"loss_limit", "norm_limit"}) {
      runtime->set_data(limit, std::as_bytes(std::span(&kNoLimit, 1)));
    }
    const StepResult r = runtime->step();
    curve.losses.push_back(r.value("loss"));
    curve.seconds.push_back(r.seconds);
  }
  return curve;
}

Arguments parse(int argc, char** argv) {
  Arguments a;
  a.spec.dtype = DType::kBF16;
  a.spec.optimizer.lr = 3e-4, a.spec.optimizer.min_lr = 3e-5;
  CLI::App app("Trains in bf16 and in 8 bits, side by side");
  app.add_option("MODEL", a.spec.name, "As for cleave train")->required();
  app.add_option("--batch", a.spec.batch, "Sequences in a step");
  app.add_option("--steps", a.steps, "Of each run");
  app.add_option("--every", a.every, "Steps between the losses that are printed");
  app.add_option("--gpu", a.gpu, "h100, h200");
  app.add_option("--scalings", a.scalings, "none (bf16), current, delayed");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    std::exit(app.exit(e));
  }
  a.spec.optimizer.warmup = a.steps / 10;
  a.spec.optimizer.total_steps = a.steps;
  return a;
}

int run(const Arguments& a) {
  const TracedModel model = trace_model(a.spec, nullptr);
  const PlanResult found =
      find_plan(model.graph, parse_cluster(a.gpu), planner_options(model.graph, "", "none"));
  if (!found.plan) fail("{} has no plan for {}", a.spec.name, a.gpu);
  fmt::print("{}, {} steps\n", describe(model), a.steps);
  std::vector<Curve> curves;
  for (const std::string& name : a.scalings) {
    const F8Scaling scaling = name == "none"      ? F8Scaling::kNone
                              : name == "current" ? F8Scaling::kCurrent
                                                  : F8Scaling::kDelayed;
    curves.push_back(curve_of(a, model, *found.plan, scaling));
    const Curve& c = curves.back();
    double apart = 0;
    for (size_t s = 0; s < c.losses.size(); ++s) {
      apart = std::max(apart, std::abs(c.losses[s] / curves[0].losses[s] - 1));
    }
    fmt::print("{:<8} median {:.2f} ms, losses within {:.2e} of the first's:", name,
               1e3 * c.median(), apart);
    for (size_t s = 0; s < c.losses.size(); ++s) {
      const auto step = static_cast<int64_t>(s) + 1;
      if (step == 1 || step % a.every == 0) fmt::print(" {:.4f}", c.losses[s]);
    }
    fmt::print("\n");
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace cleave

int main(int argc, char** argv) {
  try {
    return cleave::run(cleave::parse(argc, argv));
  } catch (const std::exception& e) {
    fmt::print(stderr, "fp8: {}\n", e.what());
    return 1;
  }
}
