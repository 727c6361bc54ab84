// The devices a plan is made for: what one can compute and hold, and how fast they talk. Presets
// stand in cluster.cc, files in cluster_toml.h; what work takes on them is cost.h's.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "graph/op.h"
#include "graph/types.h"
#include "planner/mesh.h"

namespace cleave {

// A product whose seconds were taken: so many times what its rate gives.
struct ProductTimes {
  int64_t m = 1, n = 1, k = 1;
  double times = 1;
  bool operator==(const ProductTimes&) const = default;
};

// The rate of matrix products of one element type: of [m, k] by [k, n], 2mnk operations, beside
// what the device's tiles waste, peak * efficiency / (1 + half_m/m + half_n/n + half_k/k). A
// product whose k is half_k (and m, n large) runs at half the rate of a large one.
// Products like one of `measured` take as much longer as that does, those unlike all of them
// nothing.
struct MatrixRate {
  double peak = 0;        // flop/s, of the data sheet; dense
  double efficiency = 1;  // share of the peak that a large product reaches, (0, 1]
  double half_m = 0, half_n = 0, half_k = 0;
  std::vector<ProductTimes> measured = {};
  double sustained() const { return peak * efficiency; }
  bool operator==(const MatrixRate&) const = default;
};

// How a device cuts a product into tiles of its result: `units` of them are computed at once, and
// the last ones leave some units idle. The tile is halved, rows first, down to `smallest` a side,
// as long as that takes less time; one tile alone is shared out along k.
struct Tiling {
  int64_t units = 1;  // multiprocessors
  int64_t rows = 1, columns = 1;
  int64_t smallest = 1;
  bool operator==(const Tiling&) const = default;
};

// Products fused into one kernel, whose intermediate results are never stored (attention): the
// share of the matrix peak is efficiency * w/(w + half_width) * l/(l + half_length), at most
// `most`, for products of width w (a head) and l rows that each row meets; with more than two
// products in the kernel (a backward) `backward` times that.
struct FusedProducts {
  double efficiency = 1;
  double half_width = 0, half_length = 0;
  double backward = 1;
  double most = 1;
  bool operator==(const FusedProducts&) const = default;
};

// An op's kernel as it was measured, where it was: seconds = start + bytes / bandwidth, of the
// bytes that OpDef::bytes counts. Of experts' products: start + the longer of that and of their
// flops at `efficiency`, the share of the matrix peak that they reach; 0: as fused products.
struct OpRate {
  std::string op;  // OpDef::name
  double bandwidth = 0, start = 0;
  double efficiency = 0;
  bool operator==(const OpRate&) const = default;
};

struct Device {
  std::string name;         // "H100"
  double memory = 0;        // bytes that a plan may use
  double bandwidth = 0;     // memory, bytes/s, as measured for a copy
  double vector_flops = 0;  // flop/s of what is no matrix product
  double op_latency = 0;    // seconds to start one op
  MatrixRate f64 = {}, f32 = {}, bf16 = {}, f16 = {};
  MatrixRate tf32 = {};  // of f32 whose products may round to it; a peak of 0: as f32
  Tiling tiling = {};
  FusedProducts fused = {};
  // Of kernels with more than two products, whose `backward` is 1 then; an efficiency of 0: by
  // `fused`.
  FusedProducts fused_backward = {.efficiency = 0};
  std::vector<OpRate> ops = {};  // by name
  double host_bandwidth = 0;     // bytes/s between a device and its node's memory, each way
  double host_latency = 0;       // seconds to start such a copy
  bool overlaps = true;          // it communicates while it computes
  bool gpu = false;              // programs are fused for it, and its kernels are those of GPUs
  bool operator==(const Device&) const = default;
};

// A message of n bytes between neighbours takes latency + n / bandwidth.
struct Link {
  double latency = 0;    // seconds a step of a collective
  double bandwidth = 0;  // bytes/s in each direction
  double start = 0;      // seconds to start a collective at all
  bool operator==(const Link&) const = default;
};

// A level of the network: how devices talk that lie in one unit of it and in no smaller one.
struct Tier {
  std::string name;     // "NVLink"
  int64_t devices = 0;  // of one unit; 0: all there are
  Link link;
  // Links that leave one unit of the tier below, which its devices share; 0: one a device.
  int64_t ports = 0;
  bool operator==(const Tier&) const = default;
};

// Nodes of one size; a cluster may have several.
struct NodeGroup {
  int64_t nodes = 1;
  int64_t devices = 1;  // of each
  bool operator==(const NodeGroup&) const = default;
};

struct Cluster {
  std::string spec;  // as written: "64x8xh100", "rack.toml"
  Device device;
  int64_t nodes = 1;
  int64_t devices_per_node = 1;
  // From the node up: the first is a node's own, the last reaches all. At least one; two when there
  // are several nodes. Units of a tier hold whole units of the one below.
  std::vector<Tier> tiers;
  double host_memory = 0;  // bytes of a node
  // What there is, when nodes are uneven; nodes and devices_per_node are then the part that a plan
  // uses, see use_common_nodes.
  std::vector<NodeGroup> groups;
  std::string description;  // the TOML that it was read from; empty: a preset

  int64_t size() const { return nodes * devices_per_node; }
  int64_t devices_present() const;
  // Empty, or one line that says what of the uneven nodes is used.
  std::string note() const;
  const MatrixRate& matrix_rate(DType dtype) const;
  // Null: the op was not measured.
  const OpRate* op_rate(std::string_view op) const;
  // The same devices with their products of f32 in TF32.
  Cluster with_tf32() const;
  double peak_flops(DType dtype) const { return matrix_rate(dtype).peak; }
  // What is computed in when nothing else is asked for: bf16 where products are faster in it than
  // in f32, f16 where they are only in that, else f32.
  DType default_dtype() const;
  // Devices in one unit of a tier.
  int64_t unit(size_t tier) const;
  // Bytes/s that one device has of a tier when all of its neighbours use it too.
  double share(size_t tier) const;
  // The highest tier that groups along this mesh axis need. The mesh is one stage's: several lie
  // behind each other.
  size_t tier_of(const Mesh& mesh, size_t axis) const;
  const Link& link(const Mesh& mesh, size_t axis) const { return tiers[tier_of(mesh, axis)].link; }
};

// Sets nodes and devices_per_node to the equal nodes that can be cut from the groups: of all sizes,
// the one that leaves fewest devices over, the larger of two that leave as many.
void use_common_nodes(Cluster& cluster);

// The op with this name, or null: planner/ does not know which there are.
using FindOp = const OpDef* (*)(std::string_view name);

// Reads "cpu:4", "h100", "8xh100" or "64x8xh100" (nodes x devices x kind), or the name of a TOML
// file, "rack.toml"; "box.toml:4" has one node of 4 of its devices, "box.toml:2x4" two. Throws
// Error, one line, when there is no such cluster. `find_op`: what a file's rates of ops are checked
// by; null: they are not.
Cluster parse_cluster(std::string_view spec, FindOp find_op = nullptr);
// So many nodes of the devices of a cluster that a file describes, as "box.toml:2x4" has them.
// Throws Error when the file's links do not join them.
Cluster resized_file(const Cluster& cluster, int64_t nodes, int64_t devices_per_node);
std::vector<std::string> cluster_kinds();
// A preset's description: one node of one device. Throws Error listing the kinds.
Cluster cluster_of_kind(std::string_view kind);

}  // namespace cleave
