// The best plan on one mesh, without a pipeline, that fits in memory.
#pragma once

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "planner/planner.h"
#include "planner/solver.h"

namespace cleave {

// Solves one mesh: first without pricing memory; when that does not fit, at the price at which the
// plan that is too large and one that fits cost the same (the dual's maximum is reached in a few
// such steps), and at last with the cheaper price for as many pieces of the model as fit. For every
// price the minimum of (seconds + price * (held bytes - limit)) is a lower bound on the seconds of
// any plan that fits, since what is held is never more than the peak.
class MeshSearch {
 public:
  // Everything referred to must outlive the search. `limit`: bytes a device.
  MeshSearch(const PreparedGraph& prepared, const Cluster& cluster, const Mesh& mesh,
             std::vector<AxisRole> roles, const PlannerOptions& options, double limit);

  // `best_so_far`: seconds; a mesh whose bound is not below is given up.
  std::optional<Plan> search(double best_so_far, Candidate& report);

  // The plan at one price, without looking at the limit.
  std::optional<Plan> solve(const MemoryPrice& price);

 private:
  void describe(Plan& plan, Candidate& report) const;
  bool fits(Plan& plan) const;
  std::optional<Plan> squeeze(Plan over, Candidate& report);
  template <class Consider>
  void mix(double price, const Consider& consider, const std::optional<Plan>& best);

  const PreparedGraph& prepared_;
  const Graph& graph_;
  const PlannerOptions& options_;
  PlacementSolver solver_;
  double limit_;
  double lower_bound_ = 0;
  std::string too_large_;  // why elimination gave up, if it did
};

}  // namespace cleave
