#include "planner/mesh_search.h"

#include <fmt/format.h>

#include <algorithm>

#include "planner/roles.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double held(const Plan& plan) { return static_cast<double>(plan.predicted.held_bytes); }

}  // namespace

MeshSearch::MeshSearch(const PreparedGraph& prepared, const Cluster& cluster, const Mesh& mesh,
                       std::vector<AxisRole> roles, const PlannerOptions& options, double limit)
    : prepared_(prepared),
      graph_(*prepared.graph),
      options_(options),
      solver_(prepared, cluster, mesh, roles, options),
      limit_(limit) {}

std::optional<Plan> MeshSearch::search(double best_so_far, Candidate& report) {
  if (!solver_.impossible().empty()) {
    report.cost = report.lower_bound = kInfinity;
    report.why_not = solver_.impossible();
    return std::nullopt;
  }
  auto plan = solve({});
  report.lower_bound = lower_bound_;
  if (!plan) {
    // What was not searched has no bound; what is impossible, no cost.
    report.cost = kInfinity;
    report.lower_bound = too_large_.empty() ? kInfinity : 0;
    report.why_not = too_large_.empty() ? "no placement works" : too_large_;
    return std::nullopt;
  }
  describe(*plan, report);
  if (report.cost >= best_so_far) {
    report.why_not = fmt::format("slower by {:.1f} %", 100 * (report.cost / best_so_far - 1));
    return std::nullopt;
  }
  if (!fits(*plan)) {
    plan = squeeze(std::move(*plan), report);
    if (!plan) return std::nullopt;
    describe(*plan, report);
    report.lower_bound = lower_bound_;
    if (report.cost >= best_so_far) {
      report.why_not = "slower once it fits in memory";
      return std::nullopt;
    }
  }
  report.peak_bytes = plan->predicted.peak_bytes;
  plan->certificate.lower_bound = std::min(lower_bound_, plan->certificate.cost);
  return plan;
}

std::optional<Plan> MeshSearch::solve(const MemoryPrice& price) {
  Solved solved = solver_.solve(Costing::plain(graph_.micro_batches, price));
  if (!solved.too_large.empty()) too_large_ = solved.too_large;
  if (!solved.plan) return std::nullopt;
  if (price.split == 0) {
    lower_bound_ = std::max(lower_bound_,
                            price.free() ? solved.minimum : solved.minimum - price.high * limit_);
  }
  Plan& plan = *solved.plan;
  plan.predicted.peak_bytes =
      options_.live_bytes ? options_.live_bytes(graph_, plan)[0] : plan.predicted.held_bytes;
  return std::move(solved.plan);
}

void MeshSearch::describe(Plan& plan, Candidate& report) const {
  name_axes(graph_, plan);
  report.mesh = plan.mesh;
  report.cost = plan.certificate.cost;
  report.planned = true;
  report.compute_seconds = plan.predicted.compute_seconds;
  report.communication_seconds = plan.predicted.communication_seconds;
}

// Asks for the exact peak only where the quick one would do.
bool MeshSearch::fits(Plan& plan) const {
  if (static_cast<double>(plan.predicted.peak_bytes) > limit_) return false;
  if (options_.peak_bytes) plan.predicted.peak_bytes = options_.peak_bytes(graph_, plan)[0];
  return static_cast<double>(plan.predicted.peak_bytes) <= limit_;
}

std::optional<Plan> MeshSearch::squeeze(Plan over, Candidate& report) {
  std::optional<Plan> best;
  report.peak_bytes = over.predicted.peak_bytes;
  const auto consider = [&](Plan& plan) {
    report.peak_bytes = std::min(report.peak_bytes, plan.predicted.peak_bytes);
    if (!fits(plan)) return false;
    if (!best || plan.certificate.cost < best->certificate.cost) best = plan;
    return true;
  };
  // From a price at which the excess would cost as much as the step, upwards until it fits.
  const double excess = static_cast<double>(over.predicted.peak_bytes) - limit_;
  double price = 4 * over.certificate.cost / excess;
  std::optional<Plan> under;
  for (int tries = 0; tries < 6 && !best; ++tries) {
    if (tries > 0) price *= 64;
    under = solve({.low = price, .high = price});
    if (!under) break;
    if (!consider(*under)) over = *under;
  }
  if (!best) {
    report.cost = kInfinity;
    report.why_not = "does not fit in memory";
    return std::nullopt;
  }
  for (int i = 0; i < 12 && held(over) > held(*under); ++i) {
    const double slope =
        (under->certificate.cost - over.certificate.cost) / (held(over) - held(*under));
    if (slope <= 0) break;
    price = slope;
    auto middle = solve({.low = price, .high = price});
    if (!middle) break;
    const double known = over.certificate.cost + price * held(over);
    const double found = middle->certificate.cost + price * held(*middle);
    const bool same = found >= known * (1 - 1e-9);
    if (consider(*middle)) {
      under = std::move(middle);
    } else {
      over = std::move(*middle);
    }
    if (same) break;
  }
  mix(price, consider, best);
  return best;
}

// As many pieces as fit at a slightly lower price than the others.
template <class Consider>
void MeshSearch::mix(double price, const Consider& consider, const std::optional<Plan>& best) {
  const auto& pieces = prepared_.piece_of;
  const int32_t count = pieces.empty() ? 1 : *std::max_element(pieces.begin(), pieces.end()) + 1;
  int32_t fit = 0, over = count + 1;
  while (over - fit > 1 && best->certificate.cost > lower_bound_ * (1 + 1e-3)) {
    const int32_t middle = (fit + over) / 2;
    auto plan = solve({.low = price * (1 - 1e-3), .high = price * (1 + 1e-3), .split = middle});
    if (!plan) break;
    (consider(*plan) ? fit : over) = middle;
  }
}

}  // namespace cleave
