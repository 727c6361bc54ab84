// What each instruction of a program takes on a cluster, by the planner's cost functions.
#pragma once

#include <vector>

#include "executor/program.h"
#include "planner/cluster.h"
#include "planner/cost.h"
#include "planner/plan.h"

namespace cleave {

class InstrCosts {
 public:
  // Program and cluster must outlive it. `plan`: the program's, on this cluster: its seconds of ops
  // that became one instruction are taken, as they know what a rank does not see by itself (that
  // a causal mask leaves more work to the ranks with the later queries), but for a program of a
  // GPU, which is fused. Null: none.
  InstrCosts(const Program& program, const Cluster& cluster, const Plan* plan = nullptr);

  // Seconds of a whole instruction; 0 for a view, a receive and what is kept from step to step. Of
  // a send: until it arrives.
  double seconds(size_t instr) const { return seconds_[instr]; }
  // Bytes that one rank sends for one pair of a collective.
  double bytes(size_t instr, size_t pair) const;
  // Seconds of a collective that moves pairs which send these bytes.
  double collective_seconds(size_t instr, double bytes) const;

 private:
  double compute_seconds(const Instr& instr) const;
  double whole(size_t i) const;

  const Program& program_;
  const Cluster& cluster_;
  std::vector<AxisLinks> links_;  // by mesh axis
  std::vector<double> seconds_;
};

// The planner's name of a collective or local step. The instruction is no compute and no copy.
StepKind step_kind(InstrKind kind);

}  // namespace cleave
