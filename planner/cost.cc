#include "planner/cost.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "graph/error.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A tile of half the size reads its operands more often for what it computes, and starts and ends
// twice as often: one that was half as large would have 0.92 of the rate. Assumed, from the order
// of public CUTLASS sweeps (128 x 128 beside 128 x 256); 2 to 8 % change nothing that is compared.
constexpr double kHalfTile = 1.08;

double ceiling(double x) {
  const auto whole = static_cast<double>(static_cast<int64_t>(x));
  return whole < x ? whole + 1 : whole;
}

}  // namespace

double tile_waste(const Tiling& t, double batch, double m, double n, double k) {
  if (t.units <= 1 && t.rows <= 1 && t.columns <= 1) return 1;
  const double units = static_cast<double>(t.units), work = batch * m * n;
  double rows = static_cast<double>(t.rows), columns = static_cast<double>(t.columns);
  const double least = static_cast<double>(t.smallest);
  double best = kInfinity, price = 1;
  while (true) {
    const double tiles = batch * ceiling(m / rows) * ceiling(n / columns);
    double rounds = ceiling(tiles / units);
    // Too few for all units: each is shared out along k, in parts of as many steps as a tile has
    // rows.
    if (tiles < units) rounds = 1 / std::clamp(std::min(units / tiles, k / rows), 1.0, units);
    best = std::min(best, price * rounds * units * rows * columns / work);
    if (columns > rows && columns > least) {
      columns /= 2;
    } else if (rows > least) {
      rows /= 2;
    } else {
      return std::max(best, 1.0);
    }
    price *= kHalfTile;
  }
}

namespace {

// Sizes of a product of two operands, by where its factors occur.
struct Product {
  double batch = 1, m = 1, n = 1, k = 1;
};

Product product_of(const OpCall& call) {
  Product p;
  const std::span<const ProductRole> roles = call.signature.product_roles();
  for (size_t f = 0; f < roles.size(); ++f) {
    const auto size = static_cast<double>(call.extents[f]);
    switch (roles[f]) {
      case ProductRole::kBatch: p.batch *= size; break;
      case ProductRole::kRows: p.m *= size; break;
      case ProductRole::kColumns: p.n *= size; break;
      case ProductRole::kInner: p.k *= size; break;
    }
  }
  return p;
}

DType computed_in(const OpCall& call) {
  for (const TensorType& t : call.in) {
    if (is_float(t.dtype)) return t.dtype;
  }
  return DType::kF32;
}

double fused_seconds(const Cluster& cluster, int products, double flops, const OpCall& call) {
  const Device& d = cluster.device;
  const bool backward = products > 2;
  const FusedProducts& f = backward && d.fused_backward.efficiency > 0 ? d.fused_backward : d.fused;
  const TensorType& rows = call.in[0];
  const double width = rows.shape.empty() ? 1 : static_cast<double>(rows.shape.back());
  // Every number of the first operand meets so many others in each product.
  const double length = flops / (2.0 * products * static_cast<double>(numel(rows.shape)));
  double share = f.efficiency * width / (width + f.half_width) * length / (length + f.half_length);
  if (backward) share *= f.backward;
  return flops / (cluster.matrix_rate(computed_in(call)).peak * std::min(share, f.most));
}

// How many times longer than its rate's formula a product takes, by those that were measured: the
// nearer one is, in doublings of its sizes, the more it counts.
double as_measured(const MatrixRate& r, double m, double n, double k) {
  if (r.measured.empty()) return 1;
  constexpr double kNone = 1;     // what being like none of them weighs: as one at one doubling
  constexpr double kSame = 0.01;  // keeps the weight of the same product finite
  double sum = 0, weights = kNone;
  for (const ProductTimes& p : r.measured) {
    const double dm = std::log2(m / static_cast<double>(p.m)),
                 dn = std::log2(n / static_cast<double>(p.n)),
                 dk = std::log2(k / static_cast<double>(p.k));
    const double weight = 1 / (dm * dm + dn * dn + dk * dk + kSame);
    sum += weight * std::log(p.times);
    weights += weight;
  }
  return std::exp(sum / weights);
}

}  // namespace

// --- Ops -----------------------------------------------------------------------------------------

double product_seconds(const Cluster& cluster, DType dtype, double batch, double m, double n,
                       double k) {
  const MatrixRate& r = cluster.matrix_rate(dtype);
  const double slower = 1 + r.half_m / m + r.half_n / n + r.half_k / k;
  return 2 * batch * m * n * k * slower * tile_waste(cluster.device.tiling, batch, m, n, k) /
         r.sustained() * as_measured(r, m, n, k);
}

double product_efficiency(const Cluster& cluster, DType dtype, double batch, double m, double n,
                          double k) {
  return 2 * batch * m * n * k /
         (product_seconds(cluster, dtype, batch, m, n, k) * cluster.peak_flops(dtype));
}

double op_seconds(const Cluster& cluster, const OpDef& op, const OpCall& call,
                  std::span<const TensorType> out) {
  const double bytes = op.bytes(call, out), flops = op.flops(call);
  if (bytes == 0 && flops == 0) return 0;
  double arithmetic = 0;
  if (op.fused_products > 0 && flops > 0) {
    const OpRate* const rate = cluster.op_rate(op.name);
    if (rate != nullptr && rate->efficiency > 0) {
      const double peak = cluster.matrix_rate(computed_in(call)).peak * rate->efficiency;
      return rate->start + std::max(flops / peak, bytes / rate->bandwidth);
    }
    arithmetic = fused_seconds(cluster, op.fused_products, flops, call);
  } else if (!call.signature.product_roles().empty() && flops > 0) {
    const Product p = product_of(call);
    // A few rows or columns are summed by the vector units.
    arithmetic = std::min(flops / cluster.device.vector_flops,
                          product_seconds(cluster, computed_in(call), p.batch, p.m, p.n, p.k));
  } else if (const OpRate* rate = cluster.op_rate(op.name)) {
    return rate->start + bytes / rate->bandwidth;
  } else {
    arithmetic = flops / cluster.device.vector_flops;
  }
  const double after = op.bytes_after(call, out);
  return std::max(arithmetic, (bytes - after) / cluster.device.bandwidth) +
         after / cluster.device.bandwidth + cluster.device.op_latency;
}

// --- Collectives ---------------------------------------------------------------------------------

std::string_view name_of(StepKind kind) {
  switch (kind) {
    case StepKind::kAllReduce: return "all-reduce";
    case StepKind::kAllGather: return "all-gather";
    case StepKind::kReduceScatter: return "reduce-scatter";
    case StepKind::kAllToAll: return "all-to-all";
    case StepKind::kShift: return "shift";
    case StepKind::kSlice: return "local slice";
    case StepKind::kMask: return "local mask";
  }
  return "?";
}

bool is_collective(StepKind kind) { return kind != StepKind::kSlice && kind != StepKind::kMask; }

double AxisLinks::ring_bandwidth() const {
  double bandwidth = kInfinity, below = 1;
  for (size_t t = 0; t < tiers; ++t) {
    if (members[t] > 1) bandwidth = std::min(bandwidth, share[t] * below);
    below *= static_cast<double>(members[t]);
  }
  return bandwidth;
}

double AxisLinks::ring_latency() const {
  double seconds = 0, units = static_cast<double>(ranks);
  for (size_t t = 0; t < tiers; ++t) {
    const double larger = units / static_cast<double>(members[t]);
    seconds += (units - larger) * latency[t];
    units = larger;
  }
  return seconds;
}

AxisLinks axis_links(const Cluster& cluster, const Mesh& mesh, size_t axis) {
  CLEAVE_ASSERT(!cluster.tiers.empty() && cluster.tiers.size() <= AxisLinks::kMostTiers,
                "a cluster of {} tiers", cluster.tiers.size());
  AxisLinks links;
  links.ranks = mesh.axes[axis].size;
  int64_t stride = 1;
  for (size_t a = axis + 1; a < mesh.axes.size(); ++a) stride *= mesh.axes[a].size;
  links.tiers = cluster.tier_of(mesh, axis) + 1;
  links.start = cluster.tiers[links.tiers - 1].link.start;
  int64_t below = 1;  // ranks of a group in one unit of the tier below
  for (size_t t = 0; t < links.tiers; ++t) {
    // Where groups and units do not begin together, the smaller unit is what can be relied upon.
    const int64_t unit = std::gcd(cluster.unit(t), mesh.size());
    int64_t inside = t + 1 == links.tiers                      ? links.ranks
                     : unit % stride == 0 && unit / stride > 1 ? unit / stride
                                                               : below;
    if (links.ranks % inside != 0 || inside % below != 0) inside = below;
    links.members[t] = inside / below;
    links.latency[t] = cluster.tiers[t].link.latency;
    links.share[t] = cluster.share(t);
    below = inside;
  }
  return links;
}

namespace {

// The bytes that a reduction or a gathering works on, N, from those that one rank sends.
double whole_bytes(StepKind kind, double bytes, int64_t ranks) {
  const double n = static_cast<double>(ranks);
  return bytes * n / (n - 1) / (kind == StepKind::kAllReduce ? 2 : 1);
}

// Tier by tier: what one byte that each rank sends costs, and the messages.
struct Tiered {
  double seconds_a_byte = 0, latency = 0;
};

Tiered tiered(StepKind kind, const AxisLinks& links) {
  Tiered result;
  const double times = kind == StepKind::kAllReduce ? 2 : 1;
  const double all = static_cast<double>(links.ranks);
  double below = 1;
  for (size_t t = 0; t < links.tiers; ++t) {
    const double members = static_cast<double>(links.members[t]);
    if (members == 1) continue;
    result.latency += times * (members - 1) * links.latency[t];
    // Of an all-to-all every round moves all that does not stay in its place; of the others, each
    // tier what those below have left.
    const double part = (members - 1) / members / (kind == StepKind::kAllToAll ? 1 : below);
    result.seconds_a_byte += part * all / (all - 1) / links.share[t];
    below *= members;
  }
  return result;
}

// All-to-all straight to every rank: the part for each tier over its links, all at once.
double straight_seconds_a_byte(const AxisLinks& links) {
  double most = 0, below = 1;
  const double all = static_cast<double>(links.ranks);
  for (size_t t = 0; t < links.tiers; ++t) {
    const double inside = below * static_cast<double>(links.members[t]);
    most = std::max(most, (inside - below) / (all - 1) / links.share[t]);
    below = inside;
  }
  return most;
}

}  // namespace

double collective_seconds(StepKind kind, double bytes, const AxisLinks& links,
                          Algorithm algorithm) {
  if (links.ranks <= 1 || !is_collective(kind)) return 0;
  if (kind == StepKind::kShift) {  // one message, of all ranks at once
    if (algorithm != Algorithm::kRing) return kInfinity;
    double latency = 0;
    for (size_t t = 0; t < links.tiers; ++t) {
      if (links.members[t] > 1) latency = std::max(latency, links.latency[t]);
    }
    return links.start + latency + bytes / links.ring_bandwidth();
  }
  switch (algorithm) {
    case Algorithm::kRing: {
      const double times = kind == StepKind::kAllReduce ? 2 : 1;
      const double a_byte =
          kind == StepKind::kAllToAll ? straight_seconds_a_byte(links) : 1 / links.ring_bandwidth();
      return links.start + times * links.ring_latency() + bytes * a_byte;
    }
    case Algorithm::kTree: {
      if (kind != StepKind::kAllReduce) return kInfinity;
      double depth = 0;  // seconds from a leaf to the root
      for (size_t t = 0; t < links.tiers; ++t) {
        depth += std::ceil(std::log2(static_cast<double>(links.members[t]))) * links.latency[t];
      }
      return links.start + 2 * depth +
             2 * whole_bytes(kind, bytes, links.ranks) / links.ring_bandwidth();
    }
    case Algorithm::kHierarchical: {
      const Tiered t = tiered(kind, links);
      return links.start + t.latency + bytes * t.seconds_a_byte;
    }
  }
  return kInfinity;
}

double collective_seconds(StepKind kind, double bytes, const AxisLinks& links) {
  double best = collective_seconds(kind, bytes, links, Algorithm::kRing);
  for (const Algorithm a : {Algorithm::kTree, Algorithm::kHierarchical}) {
    best = std::min(best, collective_seconds(kind, bytes, links, a));
  }
  return best;
}

double collective_seconds(StepKind kind, double bytes, const Cluster& cluster, const Mesh& mesh,
                          size_t axis) {
  return collective_seconds(kind, bytes, axis_links(cluster, mesh, axis));
}

double seconds_a_byte(StepKind kind, const AxisLinks& links) {
  if (links.ranks <= 1 || !is_collective(kind)) return 0;
  const double ring =
      kind == StepKind::kAllToAll ? straight_seconds_a_byte(links) : 1 / links.ring_bandwidth();
  return std::min(ring, tiered(kind, links).seconds_a_byte);
}

// --- Messages, local copies, the host ------------------------------------------------------------

double transfer_seconds(const Cluster& cluster, const Mesh& mesh, int64_t from_stage,
                        int64_t to_stage, double bytes) {
  if (from_stage == to_stage) return 0;
  const int64_t first = std::min(from_stage, to_stage) * mesh.size();
  const int64_t last = (std::max(from_stage, to_stage) + 1) * mesh.size() - 1;
  size_t tier = 0;
  while (tier + 1 < cluster.tiers.size() &&
         first / cluster.unit(tier) != last / cluster.unit(tier)) {
    ++tier;
  }
  const Link& link = cluster.tiers[tier].link;
  return link.start + link.latency + bytes / cluster.share(tier);
}

double local_copy_seconds(const Cluster& cluster, double bytes) {
  return 2 * bytes / cluster.device.bandwidth;
}

double host_copy_seconds(const Cluster& cluster, double bytes) {
  return cluster.device.host_latency + bytes / cluster.device.host_bandwidth;
}

}  // namespace cleave
