// cleave calibrate
#include <algorithm>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "cli/calibration.h"
#include "cli/commands.h"
#include "cli/device_options.h"
#include "cli/doctor.h"
#include "cli/format.h"
#include "executor/run_info.h"
#include "graph/error.h"
#include "planner/cluster_toml.h"

namespace cleave {

namespace {

void write(const CalibrateArguments& a, const Cluster& cluster, std::string_view what) {
  if (a.out.empty()) return;
  write_file(a.out, cluster_to_toml(cluster, fmt::format("Measured by cleave calibrate: {}.\n"
                                                         "cleave plan MODEL --cluster FILE",
                                                         what)));
  fmt::print("\nwritten to {}\n", a.out);
}

void calibrate_one_gpu(const CalibrateArguments& a) {
  const std::vector<std::string> kinds = cluster_kinds();
  const bool known = std::find(kinds.begin(), kinds.end(), a.devices) != kinds.end();
  if (!known || !cluster_of_kind(a.devices).device.gpu) {
    fail("--devices {}: write cpu:N, or the kind of this machine's GPU, h100 or h200", a.devices);
  }
  const Calibration c = calibrate_gpu(cluster_of_kind(a.devices), a.quick);
  fmt::print("{}", gpu_calibration_report(c));
  write(a, c.cluster, c.cluster.device.name);
}

// Who has a GPU most likely means it, and would learn late that the file is of the cores.
void tell_gpu_is_left_out() {
  const std::string gpu = first_gpu();
  if (gpu.empty()) return;
  std::string kind = "h100";  // the form, where no kind has its name
  for (const std::string& known : cluster_kinds()) {
    if (gpu.find(cluster_of_kind(known).device.name) != std::string::npos) kind = known;
  }
  fmt::print(stderr,
             "cleave: note: the cores of this machine are measured; its GPU, {}, is by --devices "
             "{}\n",
             gpu, kind);
}

}  // namespace

void calibrate_command(const CalibrateArguments& a) {
  if (!a.out.empty()) {
    expect_writable(a.out);
    if (!a.out.ends_with(".toml") && !a.out.starts_with("/dev/")) {
      fail("--out {0}: a cluster's file is known by its name: write {0}.toml", a.out);
    }
  }
  int64_t devices = usable_cores();
  if (!a.devices.empty()) {
    if (!a.devices.starts_with("cpu:")) {
      calibrate_one_gpu(a);
      return;
    }
    devices = parse_cluster(a.devices).size();
    constexpr int64_t kMost = 256;  // threads
    if (devices > kMost) fail("--devices {}: at most {} are measured", a.devices, kMost);
    tell_shared_cores(a.devices);
  } else {
    tell_gpu_is_left_out();
  }
  const Calibration c = calibrate_cpu(devices, a.quick ? 0.01 : 0.1);
  fmt::print("{}", calibration_report(c));
  write(a, c.cluster, "CPU devices of one machine");
}

}  // namespace cleave
