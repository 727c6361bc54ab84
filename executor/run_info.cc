#include "executor/run_info.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <thread>

#include "graph/error.h"
#include "planner/planner.h"

namespace cleave {

PeakRate cpu_peak(const Cluster& cluster, int64_t devices, DType dtype, int64_t cores) {
  CLEAVE_ASSERT(devices > 0 && cores > 0, "{} devices on {} cores", devices, cores);
  const double device = cluster.peak_flops(dtype);
  const std::string shared =
      devices > cores ? fmt::format("; {} devices share {} cores here", devices, cores) : "";
  if (cluster.description.empty()) {
    return {0, fmt::format("{}, a preset of {:.0f} GFLOP/s a device, not this machine{}",
                           cluster.spec, device / 1e9, shared)};
  }
  const int64_t working = std::min(devices, cores);
  return {device * static_cast<double>(working),
          fmt::format("{} x {:.0f} GFLOP/s, a device's {} rate in {}{}", working, device / 1e9,
                      name_of(dtype), cluster.spec, shared)};
}

int64_t usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  return std::max<int64_t>(1, std::thread::hardware_concurrency());
}

double RunInfo::mfu(double step_seconds) const {
  return peak.flops > 0 && step_seconds > 0 ? work.causal / step_seconds / peak.flops : 0;
}

double RunInfo::tokens_per_second(double step_seconds) const {
  return step_seconds > 0 ? tokens_per_step / step_seconds : 0;
}

PeakRate gpu_peak(const Cluster& cluster, int64_t devices, DType dtype) {
  const double device = cluster.peak_flops(dtype);
  return {device * static_cast<double>(devices),
          fmt::format("{}, dense, in {}", cluster.device.name, name_of(dtype))};
}

RunInfo run_info(const Graph& graph, const Plan& plan, Processor processor) {
  RunInfo info;
  info.tokens_per_step = tokens_per_step(graph);
  info.work = {model_flops(graph, false), model_flops(graph, true)};
  const int64_t devices = plan.pipeline.stages * plan.mesh.size();
  const DType dtype = product_dtype(graph);
  info.peak = processor == Processor::kGpu ? gpu_peak(plan.cluster, devices, dtype)
                                           : cpu_peak(plan.cluster, devices, dtype, usable_cores());
  return info;
}

int64_t peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (!line.starts_with("VmHWM:")) continue;
    return 1024 * std::strtoll(line.c_str() + 6, nullptr, 10);  // "VmHWM:     5120 kB"
  }
  return 0;
}

}  // namespace cleave
