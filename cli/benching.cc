#include "cli/benching.h"

#include <algorithm>

#include "cli/device_options.h"
#include "cli/planning.h"
#include "cli/what_fits.h"
#include "executor/lower.h"
#include "graph/error.h"

namespace cleave {

std::string PreparedBench::place() const {
  const std::string mesh = plan.mesh.size() == 1 ? "one device" : "mesh " + plan.mesh.to_string();
  const int32_t stages = plan.pipeline.stages;
  return stages == 1 ? mesh : fmt::format("{} stages of {}", stages, mesh);
}

std::unique_ptr<PreparedBench> prepare_bench(const BenchArguments& a) {
  const bool gpu = on_gpu(a.devices);
  FuseOptions fusing(gpu, no_fuse_of(a.no_fuse, gpu));
  auto p = std::make_unique<PreparedBench>();
  const ComputePrecision precision = precision_of(a.devices, a.model.precision);
  ModelArguments asked = a.model;
  asked.precision = precision.name;
  ModelSpec spec = spec_of(asked);
  expect_precision(a.devices, spec.dtype);
  fusing.f8 = f8_of(a.fp8, gpu, spec.dtype);
  spec.optimizer.schedule = OptimizerOptions::Schedule::kConstant;
  spec.optimizer.warmup = 0;
  spec.optimizer.lr = 1e-4;
  const Cluster devices = training_devices(a.devices);
  const Cluster cluster = precision.tf32 ? devices.with_tf32() : devices;
  p->model = trace_model(std::move(spec), a.model.user);
  const PlannerOptions options = planner_options(p->model.graph, a.mesh, a.memory, fusing.off);
  PlanResult found = find_plan(p->model.graph, cluster, options);
  if (!found.plan) {
    throw_no_plan_here(p->model, a.model.user, cluster, options, found);
  }
  p->plan = std::move(*found.plan);
  if (found.graph) p->model.graph = *found.graph;
  p->info = run_info(p->model.graph, p->plan, gpu ? Processor::kGpu : Processor::kCpu);
  RunOptions run;
  run.threads = static_cast<int>(a.threads);
  run.tf32 = precision.tf32;
  run.tell = [](const std::string& line) { fmt::print(stderr, "{}\n", line); };
  Program program = lower(p->model.graph, p->plan, fusing);
  try {
    p->bench =
        std::make_unique<StepBench>(p->model.graph, std::move(program), p->model.config.vocab,
                                    gpu ? Processor::kGpu : Processor::kCpu, run);
  } catch (const OutOfDeviceMemory& e) {
    throw_out_of_memory(p->model, a.model.user, cluster, e);
  }
  p->info.arena_bytes = p->bench->runtime().allocated_bytes();
  return p;
}

BenchResult measure(PreparedBench& p, int64_t warm_up, int64_t steps) {
  BenchResult result;
  // Before its first step a GPU may try the algorithms of products, which is none of its time.
  if (p.plan.cluster.device.gpu) warm_up = std::max<int64_t>(warm_up, 1);
  if (warm_up > 0) p.bench->steps(warm_up);
  result.seconds = p.bench->steps(steps);
  result.recorded = p.bench->recorded();
  result.classes = class_shares(p.program(), p.plan.cluster, result.recorded);
  constexpr size_t kGaps = 5;
  result.gaps = gaps_of(result.recorded, kGaps);
  return result;
}

}  // namespace cleave
