// Measures what CPU devices of this machine do: the kernels that training runs, and the collectives
// between its rank threads, all ranks at once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/calibration_fit.h"
#include "graph/types.h"
#include "planner/cluster.h"

namespace cleave {

struct MeasuredCollective {
  int64_t ranks = 2;
  double bytes = 0;    // of the tensor that all hold
  double seconds = 0;  // of one all-reduce
};

// A training step of a small model beside what the calibrated cluster says of its program.
struct MeasuredStep {
  std::string model;
  double seconds = 0, predicted = 0;
};

struct Calibration {
  Cluster cluster;  // one node of the devices that were measured
  std::vector<MeasuredProduct> products;
  std::vector<MeasuredCollective> collectives;
  // Of a GPU.
  std::vector<MeasuredFused> attention, attention_backward;
  std::vector<MeasuredOp> ops, experts;
  std::vector<MeasuredStep> steps;
};

// Each device has the machine's cores divided by the devices, as when it trains. `effort`: seconds
// that each single figure takes at most; the least of all its runs counts, so that what else the
// machine does tells little. Takes some 60 times that.
Calibration calibrate_cpu(int64_t devices, double effort);

// This machine's GPU, whose peaks and links are those of `kind`. Throws Error when there is none,
// or this build has no kernels for it.
Calibration calibrate_gpu(const Cluster& kind, bool quick);

// A table for people.
std::string calibration_report(const Calibration& calibration);
std::string gpu_calibration_report(const Calibration& calibration);

}  // namespace cleave
