// The optimum of one graph on one mesh, under any costing.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "planner/family.h"
#include "planner/outline.h"
#include "planner/pin_preferences.h"
#include "planner/placement_problem.h"
#include "planner/plan.h"
#include "planner/planner.h"

namespace cleave {

struct Solved {
  std::optional<Plan> plan;           // its certificate.cost without what memory costs
  double minimum = 0;                 // of seconds and priced bytes together; no plan has less
  std::string too_large;              // why there is no plan, when tables would grow too large
  std::vector<int32_t> choice;        // by variable of the placement problem
  std::vector<int32_t> domain_sizes;  // the same
};

// A variable may take these choices only.
struct Fixed {
  int32_t variable = 0;
  std::vector<bool> allowed;  // by choice
};

// What every solve on the mesh shares. Everything referred to must outlive it.
class PlacementSolver {
 public:
  PlacementSolver(const PreparedGraph& prepared, const Cluster& cluster, const Mesh& mesh,
                  const std::vector<AxisRole>& roles, const PlannerOptions& options);

  // Why pins leave no plan on this mesh; empty: not known to.
  const std::string& impossible() const { return pinned_.impossible; }

  // `pipeline`: what the plan is given, and its groups belong to.
  Solved solve(const Costing& costing, const Pipeline& pipeline = {},
               std::span<const Fixed> fixed = {}) const;

 private:
  const PreparedGraph& prepared_;
  const Cluster& cluster_;
  Mesh mesh_;
  std::vector<AxisRole> roles_;
  Families families_;
  PinnedPreferences pinned_;
  const PlannerOptions& options_;
};

}  // namespace cleave
