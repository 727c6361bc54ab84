// The same training three times: on the GPU in bf16 and in fp32, and on the CPU in double, from the
// same weights and data. Prints the losses and how far apart they are, against stated bounds;
// whether second runs on the GPU have the same bits; and what the fixed order of sums costs in
// time. Exit status 1 when a bound is broken.
//
// The CPU takes minutes where the GPU takes seconds, and needs no GPU beside it: --cpu-only FILE
// writes its curves, and --cpu FILE reads them.
//
// How far roundings alone move a curve: --nudge SEED begins from other weights, each off by up to a
// unit in the last place; --precision fp32 trains the CPU in fp32; --no-fuse leaves fusions of the
// GPU's out.
#include <fmt/format.h>

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "benchmarks/benchmark.h"
#include "benchmarks/curves.h"
#include "cli/device_options.h"
#include "cli/format.h"
#include "executor/step_bench.h"
#include "graph/philox.h"

namespace cleave {
namespace {

// Models of a size that one core of a CPU trains in double, 200 steps, in a quarter of an hour, at
// rates at which they train steadily: gpt2:124m on 64 tokens at 3e-4, the rate for some hundred
// thousand, makes so much of the roundings on its way that its curve tells nothing about kernels
// (benchmarks/results/gpu_curves-2026-11-28.txt).
struct Case {
  std::string model;
  int64_t batch, sequence;
  double lr;
};
const Case kCases[] = {{"gpt2:124m", 4, 64, 3e-5}, {"llama:tiny", 8, 64, 3e-4}};

// Bounds: the largest difference of a loss from the CPU's, relative to it.
constexpr double kMostFp32 = 1e-5, kMostBf16 = 1e-2;

struct Arguments {
  int64_t steps = 200;
  std::vector<std::string> only;
  std::optional<int64_t> batch;  // of all cases
  std::optional<double> lr;
  std::string cpu, cpu_only, save, no_fuse;
  std::string cpu_precision = "fp64";
  std::optional<uint64_t> nudge;
  bool no_cost = false;

  std::vector<Case> cases() const {
    std::vector<Case> wanted;
    for (Case c : kCases) {
      if (!only.empty() && std::find(only.begin(), only.end(), c.model) == only.end()) continue;
      if (batch) c.batch = *batch;
      if (lr) c.lr = *lr;
      wanted.push_back(c);
    }
    return wanted;
  }
};

ModelSpec spec_of_case(const Case& c, DType dtype, int64_t steps) {
  ModelSpec spec;
  spec.name = c.model;
  spec.batch = c.batch;
  spec.dtype = dtype;
  spec.set = {fmt::format("sequence={}", c.sequence)};
  spec.optimizer.schedule = OptimizerOptions::Schedule::kCosine;
  spec.optimizer.lr = c.lr;
  spec.optimizer.min_lr = c.lr / 10;
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

// Every weight is multiplied by 1 + u / 2^23, u drawn from -1 to 1: off by up to a unit in the last
// place of fp32, in which about half of them move.
template <class T>
void nudge(std::vector<std::byte>& bytes, uint64_t seed, const std::string& name) {
  T* const weights = reinterpret_cast<T*>(bytes.data());
  const uint64_t stream = stream_of(name);
  for (size_t i = 0; i < bytes.size() / sizeof(T); ++i) {
    const double u = 2 * uniform_at(seed, stream, i) - 1;
    weights[i] = static_cast<T>(static_cast<double>(weights[i]) * (1 + u * 0x1p-23));
  }
}

void nudge_weights(Runtime& runtime, uint64_t seed) {
  for (const ProgramSource& source : runtime.program().sources) {
    if (source.kind != SourceKind::kParameter) continue;
    std::vector<std::byte> bytes = runtime.read_source(source.name);
    if (runtime.source_type(source.name).dtype == DType::kF64) {
      nudge<double>(bytes, seed, source.name);
    } else {
      nudge<float>(bytes, seed, source.name);
    }
    runtime.write_source(source.name, bytes);
  }
}

Curve train(const Case& c, DType dtype, Processor processor, const Arguments& a,
            std::optional<uint64_t> seed) {
  const bool gpu = processor == Processor::kGpu;
  const TracedModel model = trace_model(spec_of_case(c, dtype, a.steps), nullptr);
  const Plan plan = plan_on_one(model, gpu ? "h100" : "cpu:1");
  const int64_t n = c.batch * c.sequence;
  const FuseOptions fusing(gpu, no_fuse_of(gpu ? a.no_fuse : "", gpu));
  return train_curve(
      model, plan, fusing, processor, {.seed = 5}, a.steps,
      [&](int64_t step) { return tokens_of(step, n + 1, model.config.vocab); },
      [&](Runtime& runtime) {
        if (seed) nudge_weights(runtime, *seed);
      });
}

// --- Curves in a file ----------------------------------------------------------------------------

constexpr const char* kColumns = "model,batch,sequence,lr,steps,run,step,loss,grad_norm";
constexpr const char* kCpu = "CPU fp64";  // the run that the others are compared with

// What opens the lines of a run.
std::string key_of(const Case& c, int64_t steps, const std::string& run) {
  return fmt::format("{},{},{},{},{},{},", c.model, c.batch, c.sequence, c.lr, steps, run);
}

// That of a run whose weights are nudged, if any are.
std::string run_name(const std::string& run, const Arguments& a) {
  return a.nudge ? fmt::format("{} nudged {}", run, *a.nudge) : run;
}

std::string lines_of(const Case& c, const std::string& run, const Curve& curve) {
  std::string text;
  for (size_t i = 0; i < curve.loss.size(); ++i) {
    text += fmt::format("{}{},{:.17g},{:.17g}\n", key_of(c, std::ssize(curve.loss), run), i + 1,
                        curve.loss[i], curve.norm[i]);
  }
  return text;
}

void write_cpu_curves(const Arguments& a) {
  const std::string run = run_name("CPU " + a.cpu_precision, a);
  std::string text = fmt::format("{}\n", kColumns);
  for (const Case& c : a.cases()) {
    const DType dtype = a.cpu_precision == "fp32" ? DType::kF32 : DType::kF64;
    const Curve curve = train(c, dtype, Processor::kCpu, a, a.nudge);
    text += lines_of(c, run, curve);
    fmt::print("{}, {} steps of {} x {} tokens, {}: {:.0f} ms a step, loss {:.4f} to {:.4f}\n",
               c.model, a.steps, c.batch, c.sequence, run, 1e3 * median(curve.seconds),
               curve.loss.front(), curve.loss.back());
    std::fflush(stdout);
  }
  write_file(a.cpu_only, text);
}

Curve read_cpu_curve(const std::string& path, const Case& c, int64_t steps) {
  std::istringstream file(read_file(path));
  std::string line;
  while (std::getline(file, line) && line.starts_with('#')) continue;
  if (line != kColumns) {
    fail("{}: its columns are not {}; write it by --cpu-only once more", path, kColumns);
  }
  const std::string key = key_of(c, steps, kCpu);
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
    fail("{}: {} of the {} lines that begin with {}", path, curve.loss.size(), steps, key);
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

// Adds the curves to `saved`, as lines. The GPU's come first: that there is none is said at once.
bool report(const Case& c, const Arguments& a, std::string& saved) {
  const int64_t steps = a.steps;
  fmt::print("\n{}, {} steps of {} x {} tokens ({} in all), cosine from {}\n", c.model, steps,
             c.batch, c.sequence, steps * c.batch * c.sequence, c.lr);
  const Curve bf16 = train(c, DType::kBF16, Processor::kGpu, a, a.nudge);
  const Curve fp32 = train(c, DType::kF32, Processor::kGpu, a, a.nudge);
  const Curve cpu = a.cpu.empty() ? train(c, DType::kF64, Processor::kCpu, a, {})
                                  : read_cpu_curve(a.cpu, c, steps);
  saved += lines_of(c, kCpu, cpu) + lines_of(c, run_name("GPU fp32", a), fp32) +
           lines_of(c, run_name("GPU bf16", a), bf16);
  fmt::print("{:>6}{:>12}{:>12}{:>12}{:>12}{:>12}\n", "step", kCpu, "GPU fp32", "GPU bf16",
             "fp32 apart", "bf16 apart");
  for (int64_t s = 0; s < steps; s = s + std::max<int64_t>(steps / 8, 1)) {
    const auto i = static_cast<size_t>(s);
    fmt::print("{:>6}{:>12.5f}{:>12.5f}{:>12.5f}{:>12.1e}{:>12.1e}\n", s + 1, cpu.loss[i],
               fp32.loss[i], bf16.loss[i], apart_at(fp32, cpu, i), apart_at(bf16, cpu, i));
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
  bound("fp32", fp32, kMostFp32);
  bound("bf16", bf16, kMostBf16);
  for (const auto& [dtype, first] :
       {std::pair(DType::kF32, &fp32), std::pair(DType::kBF16, &bf16)}) {
    const Curve again = train(c, dtype, Processor::kGpu, a, a.nudge);
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
  constexpr int64_t kMost = int64_t{1} << 40;
  std::vector<std::string> models;
  for (const Case& c : kCases) models.push_back(c.model);
  app.add_option("--steps", a.steps, "Of each run")->check(CLI::Range(int64_t{1}, kMost));
  app.add_option("--only", a.only, "These models")->delimiter(',')->check(CLI::IsMember(models));
  app.add_option("--batch", a.batch, "Sequences a step, instead of each case's")
      ->check(CLI::Range(int64_t{1}, kMost));
  app.add_option("--lr", a.lr, "The highest learning rate, instead of each case's");
  app.add_option("--nudge", a.nudge,
                 "A seed: begin from weights off by up to a unit in the last place of fp32 (the "
                 "GPU's; with --cpu-only the CPU's)")
      ->check(CLI::Range(int64_t{0}, kMost));
  const auto cpu_only =
      app.add_option("--cpu-only", a.cpu_only, "Write the CPU's curves to this file, and no more");
  app.add_option("--precision", a.cpu_precision, "Of --cpu-only: fp64 (if none is said) or fp32")
      ->check(CLI::IsMember({"fp64", "fp32"}))
      ->needs(cpu_only);
  app.add_option("--cpu", a.cpu, "A file of --cpu-only, instead of training on the CPU")
      ->excludes(cpu_only);
  app.add_option("--save", a.save,
                 "Write every step of the GPU's curves and the CPU's to this file")
      ->excludes(cpu_only);
  app.add_option("--no-fuse", a.no_fuse, "Fusions that the GPU's programs go without, or all")
      ->excludes(cpu_only);
  app.add_flag("--no-cost", a.no_cost, "Without the cost of the fixed order")->excludes(cpu_only);
  read_arguments(app, argc, argv);
  if (a.lr && !(*a.lr > 0 && *a.lr < 1)) fail("--lr {}: write a number between 0 and 1", *a.lr);
  if (cpu_only->count() > 0 && a.cpu_only.empty()) fail("--cpu-only: the file has no name");
  no_fuse_of(a.no_fuse, true);
  for (const std::string& path : {a.cpu_only, a.save}) {
    if (!path.empty()) expect_writable(path);
  }
  if (!a.cpu_only.empty()) {
    write_cpu_curves(a);
    return 0;
  }
  if (!a.cpu.empty()) {
    for (const Case& c : a.cases()) read_cpu_curve(a.cpu, c, a.steps);
  }
  bool good = true;
  std::string saved = fmt::format("{}\n", kColumns);
  for (const Case& c : a.cases()) {
    good = report(c, a, saved) && good;
    std::fflush(stdout);
    if (!a.save.empty()) write_file(a.save, saved);
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
