// The devices a plan is made for: what one can compute and hold, and how fast they talk.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "graph/types.h"
#include "planner/mesh.h"

namespace cleave {

struct Device {
  std::string name;      // "H100"
  double memory = 0;     // bytes that a plan may use
  double bandwidth = 0;  // memory, bytes/s, as measured for a copy
  double flops_f64 = 0;  // peak matrix rates, flop/s
  double flops_f32 = 0;
  double flops_bf16 = 0;
  double matmul_efficiency = 1;  // share of the peak that a large matrix product reaches
  double op_latency = 0;         // seconds to start one op
};

// A level of the network: a message of n bytes between neighbours takes latency + n / bandwidth.
struct Link {
  double latency = 0;    // seconds a step of a collective
  double bandwidth = 0;  // bytes/s of one device, in each direction
  double start = 0;      // seconds to start a collective at all
};

struct Cluster {
  std::string spec;  // as written: "64x8xh100"
  Device device;
  int64_t nodes = 1;
  int64_t devices_per_node = 1;
  Link within;   // between devices of one node
  Link between;  // between nodes

  int64_t size() const { return nodes * devices_per_node; }
  double peak_flops(DType dtype) const;
  // The link that a group along this mesh axis uses: `within` when every group lies in one node.
  const Link& link(const Mesh& mesh, size_t axis) const;
};

// Reads "cpu:4", "h100", "8xh100" or "64x8xh100" (nodes x devices x kind). Throws Error listing the
// kinds when there is no such cluster.
Cluster parse_cluster(std::string_view spec);
std::vector<std::string> cluster_kinds();

}  // namespace cleave
