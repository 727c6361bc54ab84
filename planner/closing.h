// The exact optimum of one graph on one mesh under the memory limit of every stage, by branch and
// bound: for small problems, where the gap that Lagrange multipliers leave is to be closed.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "planner/arrangements.h"
#include "planner/estimate.h"
#include "planner/planner.h"
#include "planner/solver.h"

namespace cleave {

// What a plan takes and holds: its schedule run, updates after it, and by stage the bytes of
// parameters and states and of what micro-batches in flight keep.
struct Measured {
  double seconds = 0;
  std::vector<double> bytes;  // by stage
  std::vector<double> over;   // by stage, above the limit
  bool fits() const;
};

// The costing whose minimum bounds a step's seconds from below when groups count as often as they
// stand on the critical path of this plan's schedule.
Costing critical_costing(const Graph& graph, const Plan& plan, const Arrangement& arrangement,
                         Schedules& schedules);

class Closing {
 public:
  // `prepared` must keep explicitly (PreparedGraph::explicit_keeping). `limit`: bytes a device.
  Closing(const PreparedGraph& prepared, const Cluster& cluster, const Arrangement& arrangement,
          const Pipeline& pipeline, const PlannerOptions& options, double limit,
          Schedules& schedules);

  struct Result {
    std::optional<Plan> plan;  // the fastest that fits, if below `best`
    double bound = 0;          // no plan that fits is faster, or below `best` at least
    int64_t nodes = 0;         // of the search tree
    bool complete = true;      // false: `most_nodes` were not enough
  };
  // `best`: seconds; what is not below is of no interest.
  Result run(double best, int64_t most_nodes) const;

 private:
  struct Node {
    std::vector<Fixed> fixed;
    double bound = 0;
    // The multipliers, where its parent left them: how often groups count, and by stage what a byte
    // costs.
    Costing costing;
    std::vector<double> prices;
    bool bounds = false;  // whether the costing bounds a step's seconds from below
    int paths = 1;        // that it is the mean of
  };
  Measured measure(const Plan& plan) const;
  bool can_fit(const std::vector<Fixed>& fixed, size_t groups) const;

  const PreparedGraph& prepared_;
  const Arrangement& arrangement_;
  const Pipeline& pipeline_;
  const PlannerOptions& options_;
  PlacementSolver solver_;
  double limit_;
  Schedules& schedules_;
};

}  // namespace cleave
