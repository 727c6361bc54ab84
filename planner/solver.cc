#include "planner/solver.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "graph/error.h"

namespace cleave {
namespace {

Restrictions with_roles(Restrictions restrictions, const std::vector<AxisRole>& roles) {
  restrictions.roles = roles;
  return restrictions;
}

}  // namespace

PlacementSolver::PlacementSolver(const PreparedGraph& prepared, const Cluster& cluster,
                                 const Mesh& mesh, const std::vector<AxisRole>& roles,
                                 const PlannerOptions& options)
    : prepared_(prepared),
      cluster_(cluster),
      mesh_(mesh),
      roles_(roles),
      families_(*prepared.graph, *prepared.dimensions, cluster, mesh,
                with_roles(prepared.restrictions, roles)),
      pinned_(pinned_preferences(options.pins, *prepared.graph, *prepared.dimensions, families_,
                                 mesh_, roles_, options.preferences)),
      options_(options) {}

Solved PlacementSolver::solve(const Costing& costing, const Pipeline& pipeline,
                              std::span<const Fixed> fixed) const {
  check_deadline(options_);
  const PlacementProblem problem(*prepared_.graph, *prepared_.dimensions, families_, cluster_,
                                 mesh_, prepared_.grouping(), costing, pinned_.preferences);
  MinSumResult result;
  if (fixed.empty()) {
    result = solve_by_elimination(problem.problem());
  } else {
    MinSumProblem restricted = problem.problem();
    for (const Fixed& f : fixed) {
      auto table = std::make_shared<CostTable>();
      table->sizes = {static_cast<int32_t>(f.allowed.size())};
      for (bool allowed : f.allowed) {
        table->cost.push_back(allowed ? 0 : std::numeric_limits<double>::infinity());
      }
      restricted.terms.push_back({{f.variable}, std::move(table)});
    }
    result = solve_by_elimination(restricted);
  }
  Solved solved;
  solved.domain_sizes = problem.problem().domain_sizes;
  if (result.status == MinSumStatus::kTooLarge) {
    solved.too_large = fmt::format(
        "the search over mesh {} needs tables of {:.2g} entries; fix the mesh's roles, as in "
        "--mesh dp=2,tp=4",
        mesh_.to_string(), std::max(result.needed_table, result.needed_total));
  }
  if (!result.solved()) return solved;
  solved.minimum = result.solution.cost;
  solved.choice = result.solution.choice;
  Plan& plan = solved.plan.emplace();
  plan.mesh = mesh_;
  plan.roles = roles_;
  plan.cluster = cluster_;
  plan.dimensions = prepared_.dimensions;
  plan.pipeline = pipeline;
  problem.read_solution(result.solution.choice, plan);
  const bool free = std::all_of(costing.prices.begin(), costing.prices.end(),
                                [](const MemoryPrice& p) { return p.free(); });
  CLEAVE_ASSERT(!free || !pinned_.preferences.empty() ||
                    std::abs(plan.certificate.cost - solved.minimum) <= 1e-9 * solved.minimum,
                "the plan costs {}, the search found {}", plan.certificate.cost, solved.minimum);
  return solved;
}

}  // namespace cleave
