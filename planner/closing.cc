#include "planner/closing.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "graph/error.h"
#include "planner/estimate.h"
#include "planner/pipeline_seconds.h"
#include "planner/schedule.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kAscents = 40;     // of the multipliers, at the root of the tree
constexpr double kEqual = 1e-9;  // of two costs
constexpr int kMoreAscents = 4;  // at every other node, from its parent's

}  // namespace

bool Measured::fits() const {
  return std::all_of(over.begin(), over.end(), [](double x) { return x <= 0; });
}

Costing critical_costing(const Graph& graph, const Plan& plan, const Arrangement& arrangement,
                         Schedules& schedules) {
  const auto groups = plan.loads.size();
  Costing costing;
  costing.runs.assign(groups, {0, 0, 0});
  costing.prices.assign(groups, {});
  costing.in_flight.assign(groups, 1);
  const double m = static_cast<double>(arrangement.micro_batches);
  if (arrangement.stages == 1) {
    costing.runs.assign(groups, {m, m, 1});
    return costing;
  }
  costing.sends.assign(groups, {0, 0, 0});
  const std::vector<ChunkSeconds> chunks = chunk_seconds(graph, plan, true);
  const Schedules::Facts& facts = schedules.of(arrangement);
  const Schedule& schedule = facts.schedule;
  const SimulatedSchedule run = simulate(schedule, chunks);
  costing.in_flight = facts.in_flight;
  const std::vector<double> updates = update_seconds(plan, arrangement.stages, true);
  // From the stage that ends last.
  size_t stage = 0;
  for (size_t s = 1; s < updates.size(); ++s) {
    if (run.end[s] + updates[s] > run.end[stage] + updates[stage]) stage = s;
  }
  for (size_t c = stage; c < groups; c += updates.size()) {
    costing.runs[c][2] = costing.sends[c][2] = 1;
  }
  const UnitChain chain = critical_chain(schedule, chunks, run, static_cast<int32_t>(stage));
  const bool halves = arrangement.schedule == ScheduleKind::kZeroBubble;
  for (size_t c = 0; c < groups; ++c) {
    costing.runs[c][0] += chain.forward[c];
    // The two halves of a backward are not told apart: both count as often as the rarer.
    costing.runs[c][1] +=
        halves ? std::min(chain.backward[c], chain.weights[c]) : chain.backward[c];
    costing.sends[c][0] += chain.sent_forward[c];
    costing.sends[c][1] += chain.sent_backward[c];
  }
  return costing;
}

Closing::Closing(const PreparedGraph& prepared, const Cluster& cluster,
                 const Arrangement& arrangement, const Pipeline& pipeline,
                 const PlannerOptions& options, double limit, Schedules& schedules)
    : prepared_(prepared),
      arrangement_(arrangement),
      pipeline_(pipeline),
      options_(options),
      solver_(prepared, cluster, arrangement.mesh, arrangement.roles, options),
      limit_(limit),
      schedules_(schedules) {}

Measured Closing::measure(const Plan& plan) const {
  Measured m;
  const auto stages = static_cast<size_t>(arrangement_.stages);
  const std::vector<ChunkSeconds> chunks = chunk_seconds(*prepared_.graph, plan, true);
  m.seconds = step_seconds(arrangement_, chunks, update_seconds(plan, arrangement_.stages, true),
                           schedules_);
  m.bytes.assign(stages, 0);
  const std::vector<double>& in_flight = schedules_.of(arrangement_).in_flight;
  for (size_t c = 0; c < plan.loads.size(); ++c) {
    m.bytes[c % stages] += static_cast<double>(plan.loads[c].state_bytes) +
                           in_flight[c] * static_cast<double>(plan.loads[c].kept_bytes);
  }
  for (double b : m.bytes) m.over.push_back(std::max(0.0, b - limit_));
  if (!m.fits() || !options_.live_bytes) return m;
  // What is held fits; what is live may not.
  const std::vector<int64_t> live = options_.live_bytes(*prepared_.graph, plan);
  for (size_t s = 0; s < stages; ++s) {
    m.over[s] = std::max(0.0, static_cast<double>(live[s]) - limit_);
  }
  return m;
}

// Whether each stage by itself has a choice that holds no more than the limit.
bool Closing::can_fit(const std::vector<Fixed>& fixed, size_t groups) const {
  if (std::isinf(limit_)) return true;
  const auto stages = static_cast<size_t>(arrangement_.stages);
  Costing costing;
  costing.runs.assign(groups, {0, 0, 0});
  costing.in_flight = schedules_.of(arrangement_).in_flight;
  for (size_t s = 0; s < stages; ++s) {
    costing.prices.assign(groups, {});
    for (size_t g = s; g < groups; g += stages)
      costing.prices[g] = {.low = 1, .high = 1, .split = 0};
    const Solved least = solver_.solve(costing, pipeline_, fixed);
    if (least.too_large.empty() && (!least.plan || least.minimum > limit_)) return false;
  }
  return true;
}

Closing::Result Closing::run(double best, int64_t most_nodes) const {
  Result result;
  result.bound = kInfinity;  // the least of nodes that were given up
  if (!solver_.impossible().empty()) return result;
  const auto stages = static_cast<size_t>(arrangement_.stages);
  std::vector<Node> open = {{}};
  while (!open.empty()) {
    Node node = std::move(open.back());
    open.pop_back();
    if (node.bound >= best * (1 - kEqual)) {
      result.bound = std::min(result.bound, best);
      continue;
    }
    if (result.nodes++ >= most_nodes) {
      result.complete = false;
      result.bound = std::min(result.bound, node.bound);
      continue;
    }
    const auto groups = pipeline_.chunk_of.empty()
                            ? size_t{1}
                            : static_cast<size_t>(pipeline_.stages * pipeline_.chunks);
    const bool root = node.prices.empty();
    if (root) {
      const double m = static_cast<double>(arrangement_.micro_batches);
      node.costing.runs.assign(groups, {m, m, 1});
      node.costing.prices.assign(groups, {});
      node.costing.in_flight.assign(groups, 1);
      node.prices.assign(stages, 0);
      node.bounds = arrangement_.stages == 1;
    }
    Costing& costing = node.costing;
    std::vector<double>& prices = node.prices;
    bool& bounds = node.bounds;
    if (!can_fit(node.fixed, groups)) continue;
    std::vector<int32_t> first;  // one solution
    int32_t branch = -1;
    bool solved = false, unknown = false;
    std::vector<int32_t> sizes;
    for (int step = 0; step < (root ? kAscents : kMoreAscents); ++step) {
      for (size_t g = 0; g < groups; ++g) {
        costing.prices[g] = {.low = prices[g % stages], .high = prices[g % stages]};
      }
      Solved s = solver_.solve(costing, pipeline_, node.fixed);
      unknown |= !s.too_large.empty();
      if (!s.plan) break;
      solved = true;
      sizes = s.domain_sizes;
      double bound = s.minimum;
      for (double p : prices) {
        if (p > 0) bound -= p * limit_;  // the limit may be infinite
      }
      if (bounds) node.bound = std::max(node.bound, bound);
      const Measured found = measure(*s.plan);
      if (found.fits() && found.seconds < best * (1 - kEqual)) {
        best = found.seconds;
        s.plan->certificate.cost = best;
        result.plan = *s.plan;
      }
      if (node.bound >= best * (1 - kEqual)) break;
      if (first.empty()) first = s.choice;
      for (size_t v = 0; v < first.size() && branch < 0; ++v) {
        if (first[v] != s.choice[v]) branch = static_cast<int32_t>(v);
      }
      // A step up: Polyak's, towards the best known, or what would double the cost.
      double norm = 0;
      std::vector<double> slope;
      for (size_t t = 0; t < stages; ++t) {
        const double excess = found.bytes[t] - limit_;
        slope.push_back(excess > 0 || prices[t] > 0 ? excess : 0);
        norm += slope.back() * slope.back();
      }
      const Costing next = critical_costing(*prepared_.graph, *s.plan, arrangement_, schedules_);
      const bool same = bounds && next.runs == costing.runs;
      if (arrangement_.stages > 1) {
        costing.in_flight = next.in_flight;
        // Averages of critical paths bound as well as each of them.
        const double share = bounds ? 1.0 / (++node.paths) : 1;
        if (!bounds) costing.sends = next.sends;
        for (size_t g = 0; g < groups; ++g) {
          for (size_t p = 0; p < 3; ++p) {
            costing.runs[g][p] += share * (next.runs[g][p] - costing.runs[g][p]);
            costing.sends[g][p] += share * (next.sends[g][p] - costing.sends[g][p]);
          }
        }
        bounds = true;
      }
      if (norm <= 0) {
        if (same) break;
        continue;
      }
      const double goal = std::isfinite(best) ? best : 2 * found.seconds;
      const double length = std::max(goal - node.bound, 1e-3 * goal) / norm / (1 + 0.1 * step);
      for (size_t t = 0; t < stages; ++t) {
        prices[t] = std::max(0.0, prices[t] + length * slope[t]);
      }
    }
    if (unknown) {
      result.complete = false;
      result.bound = std::min(result.bound, node.bound);
    }
    if (!solved) continue;  // nothing is left here
    if (node.bound >= best * (1 - kEqual)) {
      result.bound = std::min(result.bound, best);
      continue;
    }
    // Branch where solutions differed, else on the first variable that is open.
    const auto is_fixed = [&](int32_t v) {
      return std::any_of(node.fixed.begin(), node.fixed.end(), [&](const Fixed& f) {
        return f.variable == v && std::count(f.allowed.begin(), f.allowed.end(), true) == 1;
      });
    };
    if (branch >= 0 && is_fixed(branch)) branch = -1;
    for (size_t v = 0; v < sizes.size() && branch < 0; ++v) {
      if (sizes[v] > 1 && !is_fixed(static_cast<int32_t>(v))) branch = static_cast<int32_t>(v);
    }
    if (branch < 0) continue;  // a leaf: it was measured
    // What solved the relaxed problem is looked at first.
    const int32_t size = sizes[static_cast<size_t>(branch)];
    const int32_t likely = first[static_cast<size_t>(branch)];
    for (int32_t i = size; i-- > 0;) {
      const int32_t c = (likely + i) % size;
      Node child = node;
      std::vector<bool> allowed(static_cast<size_t>(sizes[static_cast<size_t>(branch)]), false);
      allowed[static_cast<size_t>(c)] = true;
      child.fixed.push_back({branch, std::move(allowed)});
      open.push_back(std::move(child));
    }
  }
  result.bound = std::min(result.bound, best);
  return result;
}

}  // namespace cleave
