// What work takes on a cluster, in seconds: ops by a roofline whose matrix rate depends on the
// product's shape, collectives by the fastest algorithm for their size, messages and host copies.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "graph/op.h"
#include "planner/cluster.h"
#include "planner/mesh.h"

namespace cleave {

// --- Ops -----------------------------------------------------------------------------------------

// Seconds of one op on one device: the longer of its arithmetic and its memory traffic, and the
// time to start it; 0 for what moves and computes nothing (views). Products of two operands are
// known by their factors, fused ones by OpDef::fused_products; anything else computes at the rate
// of the vector units, or takes what its kernel was measured to take (OpRate).
double op_seconds(const Cluster& cluster, const OpDef& op, const OpCall& call,
                  std::span<const TensorType> out);

// Seconds of `batch` products of [m, k] by [k, n], arithmetic alone; all sizes at least 1.
double product_seconds(const Cluster& cluster, DType dtype, double batch, double m, double n,
                       double k);
// How many times larger the work of a product is made by cutting it into tiles: full tiles for
// parts of tiles, and units that wait for the last ones.
double tile_waste(const Tiling& tiling, double batch, double m, double n, double k);
// The share of the peak that they reach, in (0, 1].
double product_efficiency(const Cluster& cluster, DType dtype, double batch, double m, double n,
                          double k);

// --- Collectives ---------------------------------------------------------------------------------

enum class StepKind : uint8_t {
  kAllReduce,
  kAllGather,
  kReduceScatter,
  kAllToAll,
  kShift,  // every rank sends its part to the next one: inside ops only
  kSlice,
  kMask
};
std::string_view name_of(StepKind kind);  // "all-reduce"
bool is_collective(StepKind kind);

// How the groups along one mesh axis lie on the tiers: a group has ranks of `members[0]` in a node,
// of so many nodes `members[1]` in a unit of the next tier, and so on.
struct AxisLinks {
  static constexpr size_t kMostTiers = 4;
  size_t tiers = 0;                           // how many are used
  int64_t ranks = 1;                          // product of the members
  std::array<int64_t, kMostTiers> members{};  // by tier
  std::array<double, kMostTiers> latency{};   // seconds a message
  std::array<double, kMostTiers> share{};     // bytes/s of one device, its neighbours sending too
  double start = 0;                           // seconds to start a collective

  // A ring through all ranks that leaves each node by as many links as the group has ranks there.
  double ring_bandwidth() const;  // bytes/s of one rank
  double ring_latency() const;    // seconds once around: members - 1 messages
};
AxisLinks axis_links(const Cluster& cluster, const Mesh& mesh, size_t axis);

enum class Algorithm : uint8_t { kRing, kTree, kHierarchical };

// Seconds of a collective that sends `bytes` from each rank when done as a ring (see Step::bytes),
// by one algorithm; infinite when it does not do this kind.
//   ring: once around (all-reduce: twice), and the bytes over ring_bandwidth().
//   tree (all-reduce): up and down a tree, 2N over ring_bandwidth().
//   hierarchical: tier by tier from the node up, of a reduction's N bytes what the tiers below have
//     left over, N / (members below), and down again; an all-to-all in two rounds, its bytes to
//     every rank at the same place in other units.
double collective_seconds(StepKind kind, double bytes, const AxisLinks& links, Algorithm algorithm);
// By the fastest.
double collective_seconds(StepKind kind, double bytes, const AxisLinks& links);
double collective_seconds(StepKind kind, double bytes, const Cluster& cluster, const Mesh& mesh,
                          size_t axis);
// Seconds a byte of a collective so large that nothing else counts: what bundled values cost. Never
// more than collective_seconds(kind, bytes, links) / bytes.
double seconds_a_byte(StepKind kind, const AxisLinks& links);

// --- Messages, local copies, the host ------------------------------------------------------------

// Seconds of a message of so many bytes from each rank of a stage to its twin in another: rank r of
// stage s is device s * mesh.size() + r. All of them send at once.
double transfer_seconds(const Cluster& cluster, const Mesh& mesh, int64_t from_stage,
                        int64_t to_stage, double bytes);
// Reads `bytes` and writes them, without the time to start.
double local_copy_seconds(const Cluster& cluster, double bytes);
// A copy between a device and its node's memory, one way; all devices of the node at once.
double host_copy_seconds(const Cluster& cluster, double bytes);

}  // namespace cleave
