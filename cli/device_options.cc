#include "cli/device_options.h"

#include <cstdio>

#include "cli/model_spec.h"
#include "executor/fuse.h"
#include "executor/run_info.h"
#include "graph/error.h"
#include "kernels/ops.h"

namespace cleave {

bool on_gpu(const std::string& devices) {
  return !devices.starts_with("cpu") && parse_cluster(devices, ops::find).device.gpu;
}

Cluster training_devices(const std::string& devices) {
  const Cluster cluster = parse_cluster(devices, ops::find);
  if (!on_gpu(devices) || cluster.size() == 1) return cluster;
  fail(
      "--devices {}: this version trains on cpu:N or on one GPU; plans can be made for other "
      "clusters",
      devices);
}

void tell_shared_cores(const std::string& devices) {
  const Cluster cluster = parse_cluster(devices, ops::find);
  const int64_t size = cluster.size(), cores = usable_cores();
  if (cluster.device.gpu || size <= cores) return;
  fmt::print(
      stderr,
      "cleave: note: the {} devices of {} share {} core{}: their steps take longer than on a "
      "core each\n",
      size, devices, cores, cores == 1 ? "" : "s");
}

ComputePrecision precision_of(const std::string& devices, const std::string& name) {
  if (name != "tf32") return {name};
  if (on_gpu(devices)) return {"fp32", true};
  fail(
      "--precision tf32: CPU devices compute in fp32 and fp64; a GPU (--devices h100) does in tf32 "
      "too");
}

void expect_precision(const std::string& devices, DType dtype) {
  if (on_gpu(devices) || !is_half(dtype)) return;
  fail(
      "--precision {}: CPU devices compute in fp32 and fp64; a GPU (--devices h100) does in {} too",
      precision_name(dtype), precision_name(dtype));
}

F8Options f8_of(const std::string& scaling, bool gpu, DType precision) {
  F8Options options;
  if (scaling.empty()) return options;
  if (!gpu) fail("--fp8 {}: floats of 8 bits are for GPUs", scaling);
  if (precision != DType::kBF16) {
    fail("--fp8 {}: it goes with --precision bf16, not {}", scaling, precision_name(precision));
  }
  options.scaling = scaling == "delayed" ? F8Scaling::kDelayed : F8Scaling::kCurrent;
  return options;
}

std::vector<std::string> no_fuse_of(const std::string& list, bool gpu) {
  if (list.empty()) return {};
  try {
    std::vector<std::string> names = fusions_in(list);
    if (gpu) return names;
  } catch (const Error& e) {
    fail("--no-fuse {}: {}", list, e.what());
  }
  fail("--no-fuse {}: only the programs of one GPU are fused", list);
}

}  // namespace cleave
