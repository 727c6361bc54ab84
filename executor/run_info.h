// What is known of a run when it begins: its size, and what its devices can do at most.
#pragma once

#include <cstdint>
#include <string>

#include "executor/runtime.h"
#include "graph/graph.h"
#include "graph/types.h"
#include "planner/cluster.h"
#include "planner/plan.h"

namespace cleave {

// The most that the devices of a run can compute.
struct PeakRate {
  double flops = 0;   // flop/s of all devices; 0: not known
  std::string basis;  // where the number is from, or why there is none, in a few words
};

// Of CPU devices, which are threads: those beyond the cores share them, so it is the rate of one
// device of the plan's cluster for each of min(devices, cores). A preset's rate is not this
// machine's: only a cluster that a file describes, as `cleave calibrate` writes it, has one.
PeakRate cpu_peak(const Cluster& cluster, int64_t devices, DType dtype, int64_t cores);

// Cores that this process may run on.
int64_t usable_cores();

// Of one step, all its micro-batches: the contractions of the forward, three times (planner.h).
struct ModelWork {
  double causal = 0;  // flop; what attention masks is not counted
  double full = 0;    // flop; as if it masked nothing
};

struct RunInfo {
  int64_t steps = 0;           // of the whole run
  int64_t first_step = 1;      // that is made now; above 1: the run goes on
  double tokens_per_step = 0;  // in all micro-batches
  ModelWork work;
  PeakRate peak;                 // 0: not known, and there is no MFU
  int64_t arena_bytes = 0;       // of one rank: the program's memory
  int64_t evaluation_bytes = 0;  // and that of the program of the validation loss, beside it

  // Model flops utilisation: the share of the peak that the model's own work is, when a step takes
  // so long. What attention masks is not counted.
  double mfu(double step_seconds) const;
  double tokens_per_second(double step_seconds) const;
};

// The dense rate that is stated for the plan's GPUs.
PeakRate gpu_peak(const Cluster& cluster, int64_t devices, DType dtype);

// Of a plan's graph on devices of this machine; steps and memory are for the caller to fill in.
RunInfo run_info(const Graph& graph, const Plan& plan, Processor processor = Processor::kCpu);

// The most memory that this process has had resident so far, in bytes; 0 where the system does not
// tell.
int64_t peak_resident_bytes();

}  // namespace cleave
