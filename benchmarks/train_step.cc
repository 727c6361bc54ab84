// Times training steps of a built-in model on this machine's cores. With --serve it is one side of
// benchmarks/train_step.py: it waits for a number on stdin, makes as many steps, and answers with
// "wall cpu" seconds of each: on a machine that others use too, the processor's time says more.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <iostream>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cli/device_options.h"
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
  int64_t devices = 1, steps = 20, warm_up = 5;
  std::string mesh;
  int threads = 0;
  bool serve = false, by_op = false;
  std::string gpu;  // a kind of one: "h100"; empty: the processor's cores
  bool tf32 = false;
  std::string no_fuse;
};

Arguments parse(int argc, char** argv) {
  Arguments a;
  a.spec.optimizer.schedule = OptimizerOptions::Schedule::kConstant;
  a.spec.optimizer.warmup = 0;
  a.spec.optimizer.lr = 1e-4;
  CLI::App app("Times training steps of a built-in model");
  app.add_option("MODEL", a.spec.name, "As for cleave train")->required();
  app.add_option("--set", a.spec.set, "KEY=VALUE ...");
  app.add_option("--batch", a.spec.batch, "Sequences in a step");
  app.add_option("--devices", a.devices, "Threads that stand for devices");
  app.add_option("--mesh", a.mesh, "2x1, dp=2, ...; left out: searched");
  app.add_option("--threads", a.threads, "Of each device; left out: all cores shared out");
  app.add_option("--steps", a.steps, "Timed steps");
  app.add_option("--warm-up", a.warm_up, "Steps before");
  app.add_option("--gpu", a.gpu, "h100, h200: on this machine's GPU, planned for this kind");
  app.add_flag("--tf32", a.tf32, "Of a GPU: products of f32 in TF32");
  app.add_option("--no-fuse", a.no_fuse, "Of a GPU: fusions that are not made, or all");
  std::string precision = "fp32";
  app.add_option("--precision", precision, "fp32, fp64; of a GPU also bf16, fp16");
  app.add_flag("--serve", a.serve, "Take orders from stdin");
  app.add_flag("--by-op", a.by_op, "A table of where time goes");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    std::exit(app.exit(e));
  }
  a.spec.dtype = precision_named(precision);
  return a;
}

// Seconds: of the clock, and of all threads of this process.
struct Times {
  double wall = 0, cpu = 0;
};

double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

constexpr float kNoLimit = std::numeric_limits<float>::infinity();

class Bench {
 public:
  explicit Bench(const Arguments& a)
      : model_(trace_model(a.spec, nullptr)),
        owned_(make_runtime(program(a), a.gpu.empty() ? Processor::kCpu : Processor::kGpu,
                            options(a))),
        runtime_(*owned_) {
    runtime_.initialize();
    const ModelConfig& c = model_.config;
    for (int64_t i = 0; i < c.batch * c.sequence + 1; ++i) {
      const double u = uniform_at(7, stream_of("tokens"), static_cast<uint64_t>(i));
      tokens_.push_back(static_cast<int32_t>(u * static_cast<double>(c.vocab)));
    }
  }

  // One step: data in, all of the program, the loss out.
  Times step() {
    const double cpu = cpu_seconds();
    const auto begin = std::chrono::steady_clock::now();
    const size_t n = tokens_.size() - 1;
    runtime_.set_data("tokens", std::as_bytes(std::span(tokens_).first(n)));
    runtime_.set_data("targets", std::as_bytes(std::span(tokens_).last(n)));
    for (const char* limit : {"loss_limit", "norm_limit"}) {  // above which a step is left out
      runtime_.set_data(limit, std::as_bytes(std::span(&kNoLimit, 1)));
    }
    loss_ = runtime_.step().value("loss");
    const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - begin;
    return {wall.count(), cpu_seconds() - cpu};
  }

  std::string name() const { return fmt::format("{} on {}", describe(model_), mesh_); }
  double loss() const { return loss_; }
  double tokens() const { return tokens_per_step(model_.graph); }
  const Runtime& runtime() const { return runtime_; }

 private:
  Program program(const Arguments& a) {
    const Cluster cluster = parse_cluster(a.gpu.empty() ? fmt::format("cpu:{}", a.devices) : a.gpu);
    const PlannerOptions options = planner_options(model_.graph, a.mesh, "none");
    const PlanResult found = find_plan(model_.graph, cluster, options);
    if (!found.plan) fail("{} has no plan for {}", a.spec.name, cluster.spec);
    mesh_ = found.plan->mesh.size() == 1 ? "one device" : "mesh " + found.plan->mesh.to_string();
    return lower(model_.graph, *found.plan,
                 {!a.gpu.empty(), no_fuse_of(a.no_fuse, !a.gpu.empty())});
  }
  static RunOptions options(const Arguments& a) {
    RunOptions o;
    o.threads = a.threads;
    o.time_instructions = a.by_op;
    o.tf32 = a.tf32;
    return o;
  }

  TracedModel model_;
  std::string mesh_;
  std::unique_ptr<Runtime> owned_;
  Runtime& runtime_;
  std::vector<int32_t> tokens_;
  double loss_ = 0;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Mean milliseconds of a step by op or kind of instruction, over the ranks; the largest first.
void print_by_op(const Runtime& runtime, int64_t steps) {
  const Program& p = runtime.program();
  struct Row {
    double seconds = 0;
    int64_t calls = 0;
  };
  std::map<std::string, Row> rows;
  double total = 0;
  for (int64_t rank = 0; rank < p.mesh.size(); ++rank) {
    const std::vector<double>& seconds = runtime.instruction_seconds(rank);
    for (size_t i = 0; i < p.instrs.size(); ++i) {
      const Instr& instr = p.instrs[i];
      Row& row = rows[std::string(instr.op != nullptr ? instr.op->name : name_of(instr.kind))];
      row.seconds += seconds[i];
      row.calls += rank == 0 ? 1 : 0;
      total += seconds[i];
    }
  }
  std::vector<std::pair<std::string, Row>> sorted(rows.begin(), rows.end());
  std::sort(sorted.begin(), sorted.end(),
            [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  const double scale = 1e3 / static_cast<double>(steps * p.mesh.size());
  fmt::print("{:<24}{:>8}{:>10}{:>8}\n", "op", "calls", "ms/step", "share");
  for (const auto& [name, row] : sorted) {
    fmt::print("{:<24}{:>8}{:>10.3f}{:>7.1f}%\n", name, row.calls, row.seconds * scale,
               100 * row.seconds / total);
  }
  fmt::print("{:<24}{:>8}{:>10.3f}\n", "all, of one rank", "", total * scale);
}

int run(const Arguments& a) {
  Bench bench(a);
  for (int64_t i = 0; i < a.warm_up; ++i) bench.step();
  if (a.serve) {
    fmt::print("ready {}\n", bench.name());
    std::fflush(stdout);
    for (int64_t n = 0; std::cin >> n;) {
      for (int64_t i = 0; i < n; ++i) {
        const Times t = bench.step();
        fmt::print("{:.6g} {:.6g} ", t.wall, t.cpu);
      }
      fmt::print("\n");
      std::fflush(stdout);
    }
  } else {
    std::vector<double> wall, cpu;
    for (int64_t i = 0; i < a.steps; ++i) {
      const Times t = bench.step();
      wall.push_back(t.wall);
      cpu.push_back(t.cpu);
    }
    fmt::print("{}: {} steps, median {:.3f} ms, least {:.3f} ms, cpu {:.3f} ms, loss {:.4f}\n",
               bench.name(), a.steps, 1e3 * median(wall),
               1e3 * *std::min_element(wall.begin(), wall.end()), 1e3 * median(cpu), bench.loss());
    fmt::print("{:.0f} tokens/s, arena {:.2f} GiB\n", bench.tokens() / median(wall),
               static_cast<double>(bench.runtime().program().arena_bytes) / 1073741824);
    const std::string fused = fusions_text(bench.runtime().program());
    if (!fused.empty()) fmt::print("fused: {}\n", fused);
  }
  if (a.by_op) print_by_op(bench.runtime(), a.serve ? 1 : a.warm_up + a.steps);
  return 0;
}

}  // namespace
}  // namespace cleave

int main(int argc, char** argv) {
  try {
    return cleave::run(cleave::parse(argc, argv));
  } catch (const std::exception& e) {
    fmt::print(stderr, "train_step: {}\n", e.what());
    return 1;
  }
}
