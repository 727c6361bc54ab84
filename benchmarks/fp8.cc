// What linear layers in floats of 8 bits change: the losses of so many steps from the same weights
// and data in bf16, and with either scaling, and the time of a step.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "benchmarks/benchmark.h"
#include "benchmarks/curves.h"
#include "executor/step_bench.h"
#include "graph/philox.h"

namespace cleave {
namespace {

struct Arguments {
  ModelSpec spec;
  int64_t steps = 200, every = 25;
  std::string gpu = "h100";
  std::vector<std::string> scalings = {"none", "current", "delayed"};
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

Arguments parse(int argc, char** argv) {
  Arguments a;
  a.spec.dtype = DType::kBF16;
  a.spec.optimizer.lr = 3e-4, a.spec.optimizer.min_lr = 3e-5;
  CLI::App app("Trains in bf16 and in 8 bits, side by side");
  app.add_option("MODEL", a.spec.name, "As for cleave train")->required();
  app.add_option("--batch", a.spec.batch, "Sequences in a step")->check(CLI::Range(1, 1'000'000));
  app.add_option("--steps", a.steps, "Of each run")->check(CLI::Range(1, 1'000'000));
  app.add_option("--every", a.every, "Steps between the losses that are printed")
      ->check(CLI::Range(1, 1'000'000));
  app.add_option("--gpu", a.gpu)->check(CLI::IsMember({"h100", "h200"}));
  app.add_option("--scalings", a.scalings, "none: bf16")
      ->check(CLI::IsMember({"none", "current", "delayed"}));
  read_arguments(app, argc, argv);
  a.spec.optimizer.warmup = a.steps / 10;
  a.spec.optimizer.total_steps = a.steps;
  return a;
}

int run(int argc, char** argv) {
  const Arguments a = parse(argc, argv);
  const TracedModel model = trace_model(a.spec, nullptr);
  const Plan plan = plan_on_one(model, a.gpu);
  fmt::print("{}, {} steps\n", describe(model), a.steps);
  std::vector<Curve> curves;
  for (const std::string& name : a.scalings) {
    FuseOptions fusing(true);
    fusing.f8.scaling = name == "none"      ? F8Scaling::kNone
                        : name == "current" ? F8Scaling::kCurrent
                                            : F8Scaling::kDelayed;
    curves.push_back(train_curve(model, plan, fusing, Processor::kGpu, {.seed = 1}, a.steps,
                                 [&](int64_t step) { return tokens_of(model.config, step); }));
    const Curve& c = curves.back();
    fmt::print("{:<8} median {:.2f} ms, losses within {:.2e} of the first's:", name,
               1e3 * median(c.seconds), farthest(c, curves[0]));
    for (size_t s = 0; s < c.loss.size(); ++s) {
      const auto step = static_cast<int64_t>(s) + 1;
      if (step == 1 || step % a.every == 0) fmt::print(" {:.4f}", c.loss[s]);
    }
    fmt::print("\n");
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace cleave

int main(int argc, char** argv) { return cleave::benchmark_main(argc, argv, cleave::run); }
