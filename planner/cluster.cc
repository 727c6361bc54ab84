#include "planner/cluster.h"

#include <array>
#include <charconv>

#include "graph/error.h"

namespace cleave {
namespace {

constexpr double kGiga = 1e9, kTera = 1e12, kGiB = 1073741824.0, kMicro = 1e-6;

struct Preset {
  std::string_view kind;
  Device device;
  Link within, between;
};

// Memory: the data sheet's, less 4 % for the driver and libraries' own. Bandwidth: data sheet x 0.9
// (measured copies: H100 3.0 of 3.35, H200 4.3 of 4.8 TB/s). Peaks: dense data-sheet rates (f32:
// plain, no TF32). Matrix efficiency: 0.79 measured for 8192^3 in bf16 on H100 and H200; 0.80 for
// A100 (public cuBLAS sweeps), 0.75 for V100. NVLink: 450/300/150 GB/s a direction, of which a ring
// reaches about 82 % (370 GB/s measured on H200, NVLS off). Networks: one HCA a device for H100 and
// H200 (400 Gb/s) and A100 (200 Gb/s), eight 100 Gb/s ports a node for V100, at 90 %. Starting a
// collective: about 10 us within a node, 20 us across (NCCL's small-message latencies).
// cpu: one core of a desktop or server machine with AVX2 (measured: 100-120 GFLOP/s f32 with
// OpenBLAS); devices are threads that share the memory.
const std::array<Preset, 6>& presets() {
  static const std::array<Preset, 6> table = {{
      {"cpu",
       {"CPU core", 4 * kGiB, 8 * kGiga, 50 * kGiga, 100 * kGiga, 100 * kGiga, 0.9, 1 * kMicro},
       {1 * kMicro, 4 * kGiga, 10 * kMicro},
       {50 * kMicro, 1 * kGiga, 100 * kMicro}},
      {"v100",
       {"V100-32G", 0.96 * 32 * kGiB, 810 * kGiga, 7.8 * kTera, 15.7 * kTera, 125 * kTera, 0.75,
        4 * kMicro},
       {1.5 * kMicro, 123 * kGiga, 12 * kMicro},
       {4 * kMicro, 11.2 * kGiga, 25 * kMicro}},
      {"a100-40g",
       {"A100-40G", 0.96 * 40 * kGiB, 1400 * kGiga, 9.7 * kTera, 19.5 * kTera, 312 * kTera, 0.8,
        4 * kMicro},
       {1 * kMicro, 246 * kGiga, 10 * kMicro},
       {3 * kMicro, 22.5 * kGiga, 20 * kMicro}},
      {"a100",
       {"A100-80G", 0.96 * 80 * kGiB, 1830 * kGiga, 9.7 * kTera, 19.5 * kTera, 312 * kTera, 0.8,
        4 * kMicro},
       {1 * kMicro, 246 * kGiga, 10 * kMicro},
       {3 * kMicro, 22.5 * kGiga, 20 * kMicro}},
      {"h100",
       {"H100", 0.96 * 80 * kGiB, 3000 * kGiga, 34 * kTera, 67 * kTera, 989 * kTera, 0.79,
        3 * kMicro},
       {1 * kMicro, 370 * kGiga, 10 * kMicro},
       {3 * kMicro, 45 * kGiga, 20 * kMicro}},
      {"h200",
       {"H200", 0.96 * 141 * kGiB, 4300 * kGiga, 34 * kTera, 67 * kTera, 989 * kTera, 0.79,
        3 * kMicro},
       {1 * kMicro, 370 * kGiga, 10 * kMicro},
       {3 * kMicro, 45 * kGiga, 20 * kMicro}},
  }};
  return table;
}

constexpr int64_t kMostDevices = 1'000'000;  // as many meshes as they have are looked at

int64_t parse_count(std::string_view text, std::string_view spec) {
  int64_t n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc() || end != text.data() + text.size() || n < 1 || n > kMostDevices) {
    fail("cluster '{}': '{}' is not a number of devices from 1 to {}", spec, text, kMostDevices);
  }
  return n;
}

}  // namespace

double Cluster::peak_flops(DType dtype) const {
  switch (dtype) {
    case DType::kF64: return device.flops_f64;
    case DType::kBF16: return device.flops_bf16;
    default: return device.flops_f32;
  }
}

const Link& Cluster::link(const Mesh& mesh, size_t axis) const {
  int64_t span = 1;  // a group lies inside an aligned run of so many ranks
  for (size_t a = axis; a < mesh.axes.size(); ++a) span *= mesh.axes[a].size;
  return devices_per_node % span == 0 ? within : between;
}

std::vector<std::string> cluster_kinds() {
  std::vector<std::string> kinds;
  for (const Preset& p : presets()) kinds.emplace_back(p.kind);
  return kinds;
}

Cluster parse_cluster(std::string_view spec) {
  std::string_view kind = spec;
  std::vector<int64_t> counts;
  if (const size_t colon = spec.find(':'); colon != std::string_view::npos) {
    kind = spec.substr(0, colon);
    counts.push_back(parse_count(spec.substr(colon + 1), spec));
  } else {
    for (size_t x; (x = kind.find('x')) != std::string_view::npos; kind.remove_prefix(x + 1)) {
      counts.push_back(parse_count(kind.substr(0, x), spec));
    }
  }
  if (counts.size() > 2) fail("cluster '{}': write nodes x devices x kind, as in 64x8xh100", spec);
  if (counts.size() == 2 && counts[0] * counts[1] > kMostDevices) {
    fail("cluster '{}': {} devices, and at most {} are planned for", spec, counts[0] * counts[1],
         kMostDevices);
  }
  for (const Preset& p : presets()) {
    if (p.kind != kind) continue;
    Cluster c;
    c.spec = spec;
    c.device = p.device;
    c.within = p.within;
    c.between = p.between;
    c.devices_per_node = counts.empty() ? 1 : counts.back();
    c.nodes = counts.size() == 2 ? counts[0] : 1;
    return c;
  }
  fail("unknown cluster '{}': kinds are {}; write 8xh100, 64x8xh100 (64 nodes of 8) or cpu:4", spec,
       fmt::join(cluster_kinds(), ", "));
}

}  // namespace cleave
