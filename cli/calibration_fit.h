// From measured seconds to the numbers of a cluster's description, by least squares of relative
// errors.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "planner/cluster.h"

namespace cleave {

struct MeasuredProduct {
  DType dtype = DType::kF32;
  int64_t m = 1, n = 1, k = 1;
  double seconds = 0;  // of one call on one device
  double rate() const {
    return 2 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k) / seconds;
  }
};

// The rate that explains the products best: seconds = (2mnk + a mn + b nk + c mk) / peak, each
// times what the tiles waste, and all of the numbers at least 0; the peak is at most `most`. Of one
// element type; at least one product.
MatrixRate fitted_rate(const std::vector<MeasuredProduct>& products, const Tiling& tiling = {},
                       double most = std::numeric_limits<double>::infinity());

// The same below a peak that is known: the rate's share of it; and each product's own seconds
// beside what that gives. `latency`: what it takes to start one.
MatrixRate measured_rate(const std::vector<MeasuredProduct>& products, const Cluster& cluster,
                         double peak, double latency);

// A kernel of fused products (attention).
struct MeasuredFused {
  double width = 1, length = 1;  // as in FusedProducts; the length that is not masked
  double flops = 0, seconds = 0;
};
// The shares of the peak that explain them best. At least one; `backward` is 1.
FusedProducts fitted_fused(const std::vector<MeasuredFused>& calls, double peak);

struct MeasuredOp {
  std::string op;  // its name
  double bytes = 0, seconds = 0;
  double flops = 0;  // of experts' products
};
// A rate for every op that is there: seconds = start + bytes / bandwidth, both at least 0. Ops of
// which all calls move about the same bytes are taken to start in `latency`. The bandwidth is that
// of the larger calls: a cache may serve the others.
std::vector<OpRate> fitted_ops(const std::vector<MeasuredOp>& calls, double latency);

// The same of experts' products, by the median share of the peak that each op's calls reach; they
// start and read as any op of the device.
std::vector<OpRate> fitted_experts(const std::vector<MeasuredOp>& calls, const Device& device,
                                   double peak);

}  // namespace cleave
