// The same training three times: on the GPU in bf16 and in fp32, and on the CPU in double, from the
// same weights and data. Prints the losses and how far apart they are, against stated bounds;
// whether second runs on the GPU have the same bits; and what the fixed order of sums costs in
// time. Exit status 1 when a bound is broken.
//
// The CPU takes minutes where the GPU takes seconds, and needs no GPU beside it: --cpu-only FILE
// writes its curves, and --cpu FILE reads them.
#include <fmt/format.h>

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "benchmarks/benchmark.h"
#include "benchmarks/curves.h"
#include "cli/format.h"
#include "executor/step_bench.h"
#include "graph/philox.h"

namespace cleave {
namespace {

// Models of a size that one core of a CPU trains in double, 200 steps, in minutes.
struct Case {
  const char* model;
  int64_t batch, sequence;
  double bf16, fp32;  // bounds: the largest difference of a loss from the CPU's, relative to it
};
constexpr Case kCases[] = {
    {"gpt2:124m", 1, 64, 0.03, 1e-3},
    {"llama:tiny", 8, 64, 0.03, 1e-3},
};

struct Arguments {
  int64_t steps = 200;
  std::vector<std::string> only;
  std::string cpu, cpu_only;
  bool no_cost = false;

  bool wants(const Case& c) const {
    return only.empty() || std::find(only.begin(), only.end(), c.model) != only.end();
  }
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

Curve train(const Case& c, DType dtype, Processor processor, int64_t steps) {
  const bool gpu = processor == Processor::kGpu;
  const TracedModel model = trace_model(spec_of_case(c, dtype, steps), nullptr);
  const Plan plan = plan_on_one(model, gpu ? "h100" : "cpu:1");
  const int64_t n = c.batch * c.sequence;
  return train_curve(model, plan, gpu, processor, {.seed = 5}, steps,
                     [&](int64_t step) { return tokens_of(step, n + 1, model.config.vocab); });
}

// --- Curves of the CPU in a file -----------------------------------------------------------------

constexpr const char* kColumns = "model,batch,sequence,steps,step,loss,grad_norm";

// What opens a case's lines.
std::string key_of(const Case& c, int64_t steps) {
  return fmt::format("{},{},{},{},", c.model, c.batch, c.sequence, steps);
}

void write_cpu_curves(const Arguments& a) {
  std::string text = fmt::format("{}\n", kColumns);
  for (const Case& c : kCases) {
    if (!a.wants(c)) continue;
    const Curve curve = train(c, DType::kF64, Processor::kCpu, a.steps);
    for (size_t i = 0; i < curve.loss.size(); ++i) {
      text += fmt::format("{}{},{:.17g},{:.17g}\n", key_of(c, a.steps), i + 1, curve.loss[i],
                          curve.norm[i]);
    }
    fmt::print(
        "{}, {} steps of {} x {} tokens on the CPU in fp64: {:.0f} ms a step, loss {:.4f} "
        "to {:.4f}\n",
        c.model, a.steps, c.batch, c.sequence, 1e3 * median(curve.seconds), curve.loss.front(),
        curve.loss.back());
    std::fflush(stdout);
  }
  write_file(a.cpu_only, text);
}

Curve read_cpu_curve(const std::string& path, const Case& c, int64_t steps) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line) && line.starts_with('#')) continue;
  if (line != kColumns) {
    fail("{}: not a file that --cpu-only wrote", path);
  }
  const std::string key = key_of(c, steps);
  Curve curve;
  while (std::getline(file, line)) {
    if (!line.starts_with(key)) continue;
    int64_t step = 0;
    double loss = 0, norm = 0;
    const int found =
        std::sscanf(line.c_str() + key.size(), "%" SCNd64 ",%lf,%lf", &step, &loss, &norm);
    if (found != 3 || step != std::ssize(curve.loss) + 1) fail("{}: damaged: {}", path, line);
    curve.loss.push_back(loss);
    curve.norm.push_back(norm);
  }
  if (std::ssize(curve.loss) != steps) {
    fail("{}: {} lines of {} steps of {} with {} x {} tokens", path, curve.loss.size(), steps,
         c.model, c.batch, c.sequence);
  }
  return curve;
}

// --- The comparison ------------------------------------------------------------------------------

// Means over the last tenth.
double last_loss(const Curve& c) {
  double sum = 0;
  const size_t n = std::max<size_t>(c.loss.size() / 10, 1);
  for (size_t i = c.loss.size() - n; i < c.loss.size(); ++i) sum += c.loss[i];
  return sum / static_cast<double>(n);
}

bool report(const Case& c, const Arguments& a) {
  const int64_t steps = a.steps;
  fmt::print("\n{}, {} steps of {} x {} tokens ({} in all), cosine from 3e-4\n", c.model, steps,
             c.batch, c.sequence, steps * c.batch * c.sequence);
  const Curve cpu = a.cpu.empty() ? train(c, DType::kF64, Processor::kCpu, steps)
                                  : read_cpu_curve(a.cpu, c, steps);
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
  for (const auto& [dtype, first] :
       {std::pair(DType::kF32, &fp32), std::pair(DType::kBF16, &bf16)}) {
    const Curve again = train(c, dtype, Processor::kGpu, steps);
    const bool same = again.loss == first->loss && again.norm == first->norm;
    good = good && same;
    fmt::print("a second run in {} has the same bits: {}\n", precision_name(dtype),
               same ? "yes" : "NO");
  }
  return good;
}

// What the fixed order of sums costs at a size that fills the GPU.
void cost_of_order(const char* model) {
  const auto seconds = [&](bool any_order) {
    ModelSpec spec;
    spec.name = model;
    spec.dtype = DType::kBF16;
    const TracedModel traced = trace_model(spec, nullptr);
    const Plan plan = plan_on_one(traced, "h100");
    RunOptions options;
    options.any_order = any_order;
    StepBench bench(traced.graph, lower(traced.graph, plan, true), traced.config.vocab,
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
  Arguments a;
  CLI::App app("Training on the GPU beside the CPU in double");
  app.add_option("--steps", a.steps, "Of each run");
  app.add_option("--only", a.only, "gpt2:124m, llama:tiny");
  app.add_option("--cpu", a.cpu, "A file of --cpu-only, instead of training on the CPU");
  app.add_option("--cpu-only", a.cpu_only, "Write the CPU's curves to this file, and no more");
  app.add_flag("--no-cost", a.no_cost, "Without the cost of the fixed order");
  read_arguments(app, argc, argv);
  if (!a.cpu_only.empty()) {
    write_cpu_curves(a);
    return 0;
  }
  bool good = true;
  for (const Case& c : kCases) {
    if (!a.wants(c)) continue;
    good = report(c, a) && good;
    std::fflush(stdout);
  }
  if (!a.no_cost) {
    fmt::print("\n");
    for (const char* model : {"gpt2:124m", "megatron:1.2b"}) cost_of_order(model);
  }
  return good ? 0 : 1;
}

}  // namespace
}  // namespace cleave

int main(int argc, char** argv) { return cleave::benchmark_main(argc, argv, cleave::run); }
