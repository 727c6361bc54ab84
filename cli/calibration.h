// Measures what CPU devices of this machine do: the kernels that training runs, and the collectives
// between its rank threads, all ranks at once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "graph/types.h"
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

struct MeasuredCollective {
  int64_t ranks = 2;
  double bytes = 0;    // of the tensor that all hold
  double seconds = 0;  // of one all-reduce
};

struct Calibration {
  Cluster cluster;  // one node of the devices that were measured
  std::vector<MeasuredProduct> products;
  std::vector<MeasuredCollective> collectives;
};

// Each device has the machine's cores divided by the devices, as when it trains. `effort`: seconds
// that each single figure takes at most; the least of all its runs counts, so that what else the
// machine does tells little. Takes some 60 times that.
Calibration calibrate_cpu(int64_t devices, double effort);

// The rate that explains the products best: seconds = (2mnk + a mn + b nk + c mk) / peak, all of
// them at least 0, by least squares of relative errors. Of one element type; at least one product.
MatrixRate fitted_rate(const std::vector<MeasuredProduct>& products);

// A table for people.
std::string calibration_report(const Calibration& calibration);

}  // namespace cleave
