#include "planner/cluster.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <numeric>

#include "graph/error.h"
#include "planner/cluster_toml.h"

namespace cleave {
namespace {

constexpr double kGiga = 1e9, kTera = 1e12, kGiB = 1073741824.0, kMicro = 1e-6;

struct Preset {
  std::string_view kind;
  Device device;
  Tier within, between;
  double host_memory;
};

MatrixRate rate(double peak, double efficiency, double half_k) {
  return {peak, efficiency, 0, 0, half_k};
}

// Where the numbers come from. "Data sheet" is the maker's, of the SXM module where there are two.
//
// memory: the data sheet's, less 4 % for the driver and libraries' own. Its GB are GiB: nvidia-smi
//   shows 81,559 MiB on an H100 of 80 GB, 143,771 on an H200 of 141, and 183,359 on a B200 of 180
//   (eight of a DGX B200 have 1,440 GB, NVIDIA's user guide).
// bandwidth: measured copies where there are any (H100 3.0 of 3.35, H200 4.25 of 4.8 TB/s,
//   benchmarks/results); V100 0.81 of 0.90 TB/s, a public BabelStream run; B200: 0.89 of the data
//   sheet's 8 TB/s, as H100. A100: see below.
// peak: dense data-sheet rates; f32 without TF32, which has half of the rate of 16 bits, and is
//   taken to reach the same share of it: its steps of k are half as long. vector_flops: the data
//   sheet's fp32.
// efficiency: the highest rate of any shape in public sweeps of bf16 products with random numbers
//   (stas00's "maximum achievable matmul flops": H100 792 and H200 778 of 989, B200 1745 of 2250),
//   less what the shape model adds back for the largest (half_k, last wave). A100, V100: see below.
// half_k: filling and emptying a tile's pipeline takes about 2,700 clocks whatever k is (fitted to
//   shapes measured on an H100, see tests/planner_cost_test.cc: 180); a step of k takes tile / rate
//   clocks: 16 on H100, 32 on A100 and V100 with its smaller tile, 8 on B200.
// tiling: cuBLAS's largest common tile, 128 x 256 (V100: 128 x 128), and the multiprocessors.
// fused: cuDNN on H100, causal: 308 TFLOP/s at length 1024 and width 64, 521 at 2048 and 128; 218
//   and 380 backward (benchmarks/results); A100: FlashAttention-2's paper (figures 4 and 5), 172 at
//   2048 and 190 at 8192 and width 128, 150 at 64. V100, B200: no such figures; the shares of
//   A100's and H100's.
// op_latency: between two kernels of one stream, launched ahead: 3-4 us with the ramps at both
// ends. NVLink: 150, 300, 450, 900 GB/s a direction (data sheets), of which NCCL's rings reach
// 0.75-0.8:
//   nccl-tests 123 (V100); A100: see below; H100 340 and 18 us to start: fitted to all-reduces
//   of 1 MiB to 1 GiB on 2 GPUs, NVLS off (benchmarks/results). B200: H100's share.
// InfiniBand: one port a device of 200 (A100) or 400 Gb/s (H100 and later), eight of 100 Gb/s a
//   node for V100 (DGX), at 0.92, which nccl-tests reaches; a message takes 3-4 us, NCCL's proxy
//   20-25 us to start.
// host: PCIe 3 (V100), 4 (A100), 5 x16, of which copies from pinned memory reach 0.8; a device's
//   share of a DGX's memory.
// A100: product efficiency 0.80, 1.6 TB/s and 220 GB/s of NVLink are below the public figures
//   (271 of 312 TFLOP/s and 1.77 TB/s for the largest of one kind, 232 GB/s): with those the nine
//   published runs of benchmarks/megatron_tables.cc came out 8 to 16 % too fast in a prototype. One
//   set was chosen of five, on these same runs, so they are no independent check of it. A100-40G's
//   bandwidth (1.40 public) and V100's efficiency (107 of 125 public, 0.86) are lowered by as much.
// What nobody measured and is taken from a neighbour: of B200, from H100, the share of the memory's
//   bandwidth, attention's rates, op_latency, NCCL's share of NVLink and its start, InfiniBand; of
//   V100, from A100, attention's rates, op_latency, half_k's clocks, how far the product efficiency
//   lies below the public figure. V100's tensor cores have fp16 and no bf16; all others both, at
//   one rate.
// cpu: one core of a desktop or server machine with AVX2, with OpenBLAS (measured: 100-120 GFLOP/s
//   f32); devices are threads that share the memory. `cleave calibrate` measures the machine
//   itself.
const Tier kNvlink3 = {"NVLink", 0, {1 * kMicro, 220 * kGiga, 10 * kMicro}};
const Tier kNvlink4 = {"NVLink", 0, {1 * kMicro, 340 * kGiga, 18 * kMicro}};
const Tier kHdr = {"InfiniBand", 0, {3 * kMicro, 23 * kGiga, 20 * kMicro}};
const Tier kNdr = {"InfiniBand", 0, {3 * kMicro, 46 * kGiga, 20 * kMicro}};

constexpr FusedProducts kHopperFused = {
    .efficiency = 1.07, .half_width = 64, .half_length = 365, .backward = 0.72, .most = 0.72};

// `memory` in GiB, `bandwidth` in GB/s.
Device a100(std::string name, double memory, double bandwidth) {
  return {.name = std::move(name),
          .memory = 0.96 * memory * kGiB,
          .bandwidth = bandwidth * kGiga,
          .vector_flops = 19.5 * kTera,
          .op_latency = 4 * kMicro,
          .f64 = rate(19.5 * kTera, 0.9, 32),
          .f32 = rate(19.5 * kTera, 0.9, 16),
          .bf16 = rate(312 * kTera, 0.8, 85),
          .f16 = rate(312 * kTera, 0.8, 85),
          .tf32 = rate(156 * kTera, 0.8, 42),
          .tiling = {108, 128, 256, 32},
          .fused = {.efficiency = 0.75,
                    .half_width = 24,
                    .half_length = 150,
                    .backward = 0.83,
                    .most = 0.65},
          .host_bandwidth = 25 * kGiga,
          .host_latency = 10 * kMicro,
          .gpu = true};
}

// `efficiency`: of bf16 products.
Device hopper(std::string name, double memory, double bandwidth, double efficiency) {
  return {.name = std::move(name),
          .memory = 0.96 * memory * kGiB,
          .bandwidth = bandwidth * kGiga,
          .vector_flops = 67 * kTera,
          .op_latency = 3 * kMicro,
          .f64 = rate(67 * kTera, 0.9, 64),
          .f32 = rate(67 * kTera, 0.8, 32),
          .bf16 = rate(989 * kTera, efficiency, 180),
          .f16 = rate(989 * kTera, efficiency, 180),
          .tf32 = rate(494 * kTera, efficiency, 90),
          .tiling = {132, 128, 256, 32},
          .fused = kHopperFused,
          .host_bandwidth = 50 * kGiga,
          .host_latency = 10 * kMicro,
          .gpu = true};
}

const std::array<Preset, 7>& presets() {
  static const std::array<Preset, 7> table = {{
      {"cpu",
       {.name = "CPU core",
        .memory = 4 * kGiB,
        .bandwidth = 8 * kGiga,
        .vector_flops = 20 * kGiga,
        .op_latency = 1 * kMicro,
        .f64 = {50 * kGiga, 0.9, 4, 8, 16},
        .f32 = {100 * kGiga, 0.9, 4, 8, 16},
        .bf16 = {100 * kGiga, 0.9, 4, 8, 16},
        .f16 = {100 * kGiga, 0.9, 4, 8, 16},
        .fused = {.efficiency = 0.6, .half_width = 8, .half_length = 16, .backward = 0.9},
        .host_bandwidth = 8 * kGiga,
        .host_latency = 1 * kMicro,
        .overlaps = false},
       {"memory", 0, {1 * kMicro, 4 * kGiga, 10 * kMicro}},
       {"Ethernet", 0, {50 * kMicro, 1 * kGiga, 100 * kMicro}},
       16 * kGiB},
      {"v100",
       {.name = "V100-32G",
        .memory = 0.96 * 32 * kGiB,
        .bandwidth = 810 * kGiga,
        .vector_flops = 15.7 * kTera,
        .op_latency = 4 * kMicro,
        .f64 = rate(7.8 * kTera, 0.9, 16),
        .f32 = rate(15.7 * kTera, 0.9, 16),
        .bf16 = rate(15.7 * kTera, 0.9, 16),  // no tensor cores for it: as f32
        .f16 = rate(125 * kTera, 0.78, 85),
        .tiling = {80, 128, 128, 32},
        .fused =
            {.efficiency = 0.6, .half_width = 24, .half_length = 150, .backward = 0.8, .most = 0.6},
        .host_bandwidth = 12.5 * kGiga,
        .host_latency = 10 * kMicro,
        .gpu = true},
       {"NVLink", 0, {1.5 * kMicro, 123 * kGiga, 12 * kMicro}},
       {"InfiniBand", 0, {4 * kMicro, 11.5 * kGiga, 25 * kMicro}, 8},
       1024 * kGiB},
      {"a100-40g", a100("A100-40G", 40, 1280), kNvlink3, kHdr, 1024 * kGiB},
      {"a100", a100("A100-80G", 80, 1600), kNvlink3, kHdr, 2048 * kGiB},
      {"h100", hopper("H100", 80, 3000, 0.82), kNvlink4, kNdr, 2048 * kGiB},
      {"h200", hopper("H200", 141, 4250, 0.81), kNvlink4, kNdr, 2048 * kGiB},
      {"b200",
       {.name = "B200",
        .memory = 0.96 * 180 * kGiB,
        .bandwidth = 7100 * kGiga,
        .vector_flops = 75 * kTera,
        .op_latency = 3 * kMicro,
        .f64 = rate(37 * kTera, 0.9, 64),
        .f32 = rate(75 * kTera, 0.8, 32),
        .bf16 = rate(2250 * kTera, 0.81, 340),
        .f16 = rate(2250 * kTera, 0.81, 340),
        .tf32 = rate(1125 * kTera, 0.81, 170),
        .tiling = {148, 128, 256, 32},
        .fused = kHopperFused,
        .host_bandwidth = 50 * kGiga,
        .host_latency = 10 * kMicro,
        .gpu = true},
       {"NVLink", 0, {1 * kMicro, 680 * kGiga, 18 * kMicro}},
       kNdr,
       2048 * kGiB},
  }};
  return table;
}

constexpr int64_t kMostDevices = 1'000'000;  // as many meshes as they have are looked at

// `forms`: what may be written instead.
int64_t parse_count(std::string_view text, std::string_view spec, std::string_view forms = "") {
  int64_t n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc() || end != text.data() + text.size() || n < 1 || n > kMostDevices) {
    fail("cluster '{}': '{}' is not a number of devices from 1 to {}{}", spec, text, kMostDevices,
         forms);
  }
  return n;
}

void expect_few(int64_t devices, std::string_view spec) {
  if (devices <= kMostDevices) return;
  fail("cluster '{}': {} devices, and at most {} are planned for", spec, devices, kMostDevices);
}

bool is_file(std::string_view spec) { return spec.ends_with(".toml"); }

// "4" or "2x4" behind a file's name.
Cluster parse_sized_file(std::string_view file, std::string_view size, std::string_view spec,
                         FindOp find_op) {
  const std::string forms =
      fmt::format("; write {0}:8, or {0}:2x8, which is two nodes of eight", file);
  int64_t nodes = 1;
  if (const size_t x = size.find('x'); x != std::string_view::npos) {
    nodes = parse_count(size.substr(0, x), spec, forms);
    size.remove_prefix(x + 1);
  }
  const int64_t devices = parse_count(size, spec, forms);
  expect_few(nodes * devices, spec);
  Cluster c = resized_file(read_cluster(std::string(file), find_op), nodes, devices);
  c.spec = spec;
  return c;
}

}  // namespace

// --- Cluster ---

const MatrixRate& Cluster::matrix_rate(DType dtype) const {
  switch (dtype) {
    case DType::kF64: return device.f64;
    case DType::kBF16: return device.bf16;
    case DType::kF16: return device.f16;
    default: return device.f32;
  }
}

const OpRate* Cluster::op_rate(std::string_view op) const {
  const auto at =
      std::lower_bound(device.ops.begin(), device.ops.end(), op,
                       [](const OpRate& r, std::string_view name) { return r.op < name; });
  return at == device.ops.end() || at->op != op ? nullptr : &*at;
}

Cluster Cluster::with_tf32() const {
  Cluster c = *this;
  if (c.device.tf32.peak > 0) c.device.f32 = c.device.tf32;
  return c;
}

DType Cluster::default_dtype() const {
  for (DType dtype : {DType::kBF16, DType::kF16}) {
    if (peak_flops(dtype) > peak_flops(DType::kF32)) return dtype;
  }
  return DType::kF32;
}

int64_t Cluster::unit(size_t tier) const {
  if (tier == 0) return devices_per_node;
  const int64_t all = std::max(size(), devices_per_node);
  return tiers[tier].devices > 0 ? std::min(tiers[tier].devices, all) : all;
}

double Cluster::share(size_t tier) const {
  const Tier& t = tiers[tier];
  if (tier == 0 || t.ports == 0) return t.link.bandwidth;
  const double devices = static_cast<double>(unit(tier - 1));
  return t.link.bandwidth * std::min(1.0, static_cast<double>(t.ports) / devices);
}

size_t Cluster::tier_of(const Mesh& mesh, size_t axis) const {
  int64_t span = 1;  // a group lies inside an aligned run of so many ranks
  for (size_t a = axis; a < mesh.axes.size(); ++a) span *= mesh.axes[a].size;
  for (size_t tier = 0; tier + 1 < tiers.size(); ++tier) {
    // Stages begin at multiples of the mesh's size.
    if (std::gcd(unit(tier), mesh.size()) % span == 0) return tier;
  }
  return tiers.size() - 1;
}

int64_t Cluster::devices_present() const {
  if (groups.empty()) return size();
  int64_t all = 0;
  for (const NodeGroup& g : groups) all += g.nodes * g.devices;
  return all;
}

std::string Cluster::note() const {
  if (groups.empty()) return "";
  std::vector<std::string> parts;
  for (const NodeGroup& g : groups) parts.push_back(fmt::format("{} of {}", g.nodes, g.devices));
  return fmt::format("uneven nodes ({} devices): {}, planned as {} of {}; {} devices idle",
                     devices_present(), fmt::join(parts, " + "), nodes, devices_per_node,
                     devices_present() - size());
}

void use_common_nodes(Cluster& cluster) {
  int64_t most = 0;
  for (const NodeGroup& candidate : cluster.groups) {
    const int64_t size = candidate.devices;
    int64_t nodes = 0;
    for (const NodeGroup& g : cluster.groups) nodes += g.nodes * (g.devices / size);
    if (nodes * size < most || (nodes * size == most && size < cluster.devices_per_node)) continue;
    most = nodes * size;
    cluster.nodes = nodes;
    cluster.devices_per_node = size;
  }
}

// --- Specs ---

std::vector<std::string> cluster_kinds() {
  std::vector<std::string> kinds;
  for (const Preset& p : presets()) kinds.emplace_back(p.kind);
  return kinds;
}

Cluster cluster_of_kind(std::string_view kind) {
  for (const Preset& p : presets()) {
    if (p.kind != kind) continue;
    Cluster c;
    c.spec = kind;
    c.device = p.device;
    c.tiers = {p.within, p.between};
    c.host_memory = p.host_memory;
    return c;
  }
  fail(
      "unknown cluster '{}': kinds are {}; write 8xh100, 64x8xh100 (64 nodes of 8), cpu:4, or a "
      "file.toml",
      kind, fmt::join(cluster_kinds(), ", "));
}

Cluster resized_file(const Cluster& cluster, int64_t nodes, int64_t devices_per_node) {
  Cluster c = cluster;
  const size_t name = c.spec.rfind(".toml");
  if (name == std::string::npos) fail("cluster '{}' is no file", c.spec);
  c.spec.resize(name + 5);
  c.spec += nodes == 1 ? fmt::format(":{}", devices_per_node)
                       : fmt::format(":{}x{}", nodes, devices_per_node);
  c.groups.clear();
  c.nodes = nodes;
  c.devices_per_node = devices_per_node;
  if (nodes > 1 && c.tiers.size() < 2) {
    fail("cluster '{}': the file has one [[link]], within a node; several nodes need a second",
         c.spec);
  }
  const int64_t second = c.tiers.size() > 1 ? c.tiers[1].devices : 0;
  if (second > 0 && (second <= devices_per_node || second % devices_per_node != 0)) {
    if (nodes > 1) {
      fail(
          "cluster '{}': the file's second [[link]] joins {} devices, which nodes of {} do not "
          "make",
          c.spec, second, devices_per_node);
    }
    c.tiers.resize(1);  // all that one node uses
  }
  const int64_t last = c.tiers.size() > 1 ? c.tiers.back().devices : 0;
  if (last > 0 && last < c.size()) {
    fail("cluster '{}': the file's last [[link]] joins {} of {} devices", c.spec, last, c.size());
  }
  c.description = cluster_to_toml(c);
  return c;
}

Cluster parse_cluster(std::string_view spec, FindOp find_op) {
  if (is_file(spec)) return read_cluster(std::string(spec), find_op);
  std::string_view kind = spec;
  std::vector<int64_t> counts;
  if (const size_t colon = spec.rfind(':'); colon != std::string_view::npos) {
    kind = spec.substr(0, colon);
    if (is_file(kind)) return parse_sized_file(kind, spec.substr(colon + 1), spec, find_op);
    counts.push_back(parse_count(spec.substr(colon + 1), spec));
  } else {
    for (size_t x; (x = kind.find('x')) != std::string_view::npos; kind.remove_prefix(x + 1)) {
      counts.push_back(parse_count(kind.substr(0, x), spec));
    }
  }
  if (counts.size() > 2) fail("cluster '{}': write nodes x devices x kind, as in 64x8xh100", spec);
  if (counts.size() == 2) expect_few(counts[0] * counts[1], spec);
  const std::vector<std::string> kinds = cluster_kinds();
  if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kind = spec;  // as it was written
  Cluster c = cluster_of_kind(kind);
  c.spec = spec;
  c.devices_per_node = counts.empty() ? 1 : counts.back();
  c.nodes = counts.size() == 2 ? counts[0] : 1;
  return c;
}

}  // namespace cleave
