// cleave calibrate
#include <cstdio>

#include "cli/calibration.h"
#include "cli/commands.h"
#include "cli/format.h"
#include "executor/run_info.h"
#include "graph/error.h"
#include "planner/cluster_toml.h"

namespace cleave {

void calibrate_command(const CalibrateArguments& a) {
  if (a.devices.starts_with("cuda")) {
    fail("--devices {}: GPUs are measured by the CUDA executor, which is not built yet; here cpu:N",
         a.devices);
  }
  int64_t devices = usable_cores();
  if (!a.devices.empty()) {
    if (!a.devices.starts_with("cpu:")) fail("--devices {}: write cpu:N", a.devices);
    devices = parse_cluster(a.devices).size();
    constexpr int64_t kMost = 256;  // threads
    if (devices > kMost) fail("--devices {}: at most {} are measured", a.devices, kMost);
  }
  const Calibration c = calibrate_cpu(devices, a.quick ? 0.01 : 0.1);
  fmt::print("{}", calibration_report(c));
  if (a.out.empty()) return;
  write_file(a.out, cluster_to_toml(c.cluster,
                                    "Measured by cleave calibrate: CPU devices of one "
                                    "machine.\ncleave plan MODEL --cluster FILE"));
  fmt::print("\nwritten to {}\n", a.out);
}

}  // namespace cleave
