// Times training steps of a built-in model on this machine, each by itself, as `cleave bench` does
// steps in a row. With --serve it is one side of benchmarks/train_step.py: it waits for a number on
// stdin, makes as many steps, and answers with "wall cpu" seconds of each: on a machine that others
// use too, the processor's time says more.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "benchmarks/benchmark.h"
#include "cli/benching.h"
#include "executor/fuse.h"
#include "executor/prediction.h"

namespace cleave {
namespace {

struct Arguments {
  BenchArguments bench;
  bool serve = false, by_op = false;
};

Arguments parse(int argc, char** argv) {
  Arguments a;
  BenchArguments& b = a.bench;
  b.memory = "none";
  int64_t devices = 1;
  std::string gpu;
  bool tf32 = false;
  CLI::App app("Times training steps of a built-in model");
  app.add_option("MODEL", b.model.model, "As for cleave train")->required();
  app.add_option("--set", b.model.set, "KEY=VALUE ...");
  app.add_option("--batch", b.model.batch, "Sequences in a micro-batch");
  app.add_option("--accumulate", b.model.accumulate, "Micro-batches in a step");
  app.add_option("--devices", devices, "Threads that stand for devices");
  app.add_option("--mesh", b.mesh, "2x1, dp=2, ...; left out: searched");
  app.add_option("--threads", b.threads, "Of each device; left out: all cores shared out");
  app.add_option("--steps", b.steps, "Timed steps");
  app.add_option("--warm-up", b.warm_up, "Steps before");
  app.add_option("--gpu", gpu, "h100, h200: on this machine's GPU, planned for this kind");
  app.add_flag("--tf32", tf32, "Of a GPU: products of f32 in TF32");
  app.add_option("--fp8", b.fp8, "Of a GPU: linear layers in 8 bits, current or delayed");
  app.add_option("--no-fuse", b.no_fuse, "Of a GPU: fusions that are not made, or all");
  app.add_option("--precision", b.model.precision, "fp32, fp64; of a GPU also bf16, fp16, tf32");
  app.add_flag("--serve", a.serve, "Take orders from stdin");
  app.add_flag("--by-op", a.by_op, "A table of where time goes");
  read_arguments(app, argc, argv);
  if (tf32) b.model.precision = "tf32";
  b.devices = gpu.empty() ? fmt::format("cpu:{}", devices) : gpu;
  return a;
}

void serve(StepBench& bench, const std::string& name) {
  fmt::print("ready {}\n", name);
  std::fflush(stdout);
  for (int64_t n = 0; std::cin >> n;) {
    for (int64_t i = 0; i < n; ++i) {
      const StepBench::Times t = bench.step();
      fmt::print("{:.6g} {:.6g} ", t.wall, t.cpu);
    }
    fmt::print("\n");
    std::fflush(stdout);
  }
}

void report(PreparedBench& p, int64_t steps, const std::string& name) {
  std::vector<double> wall, cpu;
  for (int64_t i = 0; i < steps; ++i) {
    const StepBench::Times t = p.bench->step();
    wall.push_back(t.wall);
    cpu.push_back(t.cpu);
  }
  fmt::print("{}: {} steps, median {:.3f} ms, least {:.3f} ms, cpu {:.3f} ms, loss {:.4f}\n", name,
             steps, 1e3 * median(wall), 1e3 * *std::min_element(wall.begin(), wall.end()),
             1e3 * median(cpu), p.bench->loss());
  const double in_a_row = median(p.bench->steps(steps));
  fmt::print("{:.0f} tokens/s, in a row {:.3f} ms and {:.0f} tokens/s, arena {:.2f} GiB\n",
             p.info.tokens_per_second(median(wall)), 1e3 * in_a_row,
             p.info.tokens_per_second(in_a_row),
             static_cast<double>(p.program().arena_bytes) / 1073741824);
  fmt::print("{}\n", prediction_line(p.plan.predicted.step_seconds, p.plan.predicted.peak_bytes,
                                     in_a_row, p.bench->runtime().allocated_bytes()));
  const std::string fused = fusions_text(p.program());
  if (!fused.empty()) fmt::print("fused: {}\n", fused);
}

int run(int argc, char** argv) {
  const Arguments a = parse(argc, argv);
  const auto prepared = prepare_bench(a.bench);
  const std::string name = fmt::format("{} on {}", describe(prepared->model), prepared->place());
  for (int64_t i = 0; i < a.bench.warm_up; ++i) prepared->bench->step();
  if (a.serve) {
    serve(*prepared->bench, name);
  } else {
    report(*prepared, a.bench.steps, name);
  }
  if (a.by_op) {
    fmt::print("{}", ops_table(prepared->program(), prepared->bench->recorded(), false));
  }
  return 0;
}

}  // namespace
}  // namespace cleave

int main(int argc, char** argv) { return cleave::benchmark_main(argc, argv, cleave::run); }
