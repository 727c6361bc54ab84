// The solver's own part: run the greedy order, fix a hub where a table would be too large, and
// decide the variables in reverse.
#include "planner/elimination.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "graph/error.h"
#include "planner/elimination_network.h"
#include "planner/elimination_order.h"
#include "planner/elimination_run.h"
#include "planner/elimination_tables.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

using Decisions = std::vector<std::pair<int32_t, int32_t>>;  // (variable, index in its choices)

// What eliminating a set of factors comes to.
struct Outcome {
  MinSumStatus status = MinSumStatus::kSolved;
  double cost = 0;
  Decisions decisions;                // of every variable of the factors, except a kept one
  std::vector<ScopedTable> leftover;  // over a kept variable
  double needed_table = 0;
  double needed_total = 0;

  static Outcome without(MinSumStatus status) {
    Outcome outcome;
    outcome.status = status;
    outcome.cost = kInfinity;
    return outcome;
  }
};

double term_cost(const CostTerm& term, std::span<const int32_t> choice) {
  size_t entry = 0;
  for (size_t i = 0; i < term.variables.size(); ++i) {
    entry = entry * term.table->sizes[i] + choice[term.variables[i]];
  }
  return term.table->cost[entry];
}

std::vector<std::vector<ScopedTable>> connected_components(std::vector<ScopedTable> factors) {
  int32_t bound = 0;
  for (const ScopedTable& f : factors) {
    for (const int32_t v : f.scope) bound = std::max(bound, v + 1);
  }
  std::vector<int32_t> parent(bound);
  std::iota(parent.begin(), parent.end(), 0);
  const auto root = [&](int32_t v) {
    while (parent[v] != v) v = parent[v] = parent[parent[v]];
    return v;
  };
  for (const ScopedTable& f : factors) {
    for (const int32_t v : f.scope) parent[root(v)] = root(f.scope[0]);
  }
  std::vector<int32_t> number(bound, -1);
  std::vector<std::vector<ScopedTable>> components;
  for (ScopedTable& f : factors) {
    int32_t& component = number[root(f.scope[0])];
    if (component < 0) {
      component = static_cast<int32_t>(components.size());
      components.emplace_back();
    }
    components[component].push_back(std::move(f));
  }
  return components;
}

class Solver {
 public:
  explicit Solver(const EliminationLimits& limits) : limits_(limits) {}

  MinSumResult solve(const MinSumProblem& problem, const Network& network);
  // The lowest cost for each of the variable's remaining choices; empty when too large.
  std::vector<double> costs_of(const Network& network, int32_t variable);

  TableStore& store() { return store_; }

 private:
  // Both take factors with no empty scope.
  Outcome eliminate(std::vector<ScopedTable> factors, int64_t branches, int32_t kept = -1);
  Outcome split(const EliminationRun& run, int64_t branches);
  Outcome fix_each_choice(const std::vector<ScopedTable>& factors, int32_t hub, int64_t branches);

  EliminationLimits limits_;
  TableStore store_;
  std::vector<int32_t> value_;  // decided so far, as an index in the remaining choices
};

Outcome Solver::eliminate(std::vector<ScopedTable> factors, int64_t branches, int32_t kept) {
  EliminationRun run(store_, std::move(factors), value_.size(), kept);
  Outcome outcome;
  while (const auto next = run.next()) {
    if (limits_.prune_dominated && run.work_of(*next) >= static_cast<double>(limits_.prune_from) &&
        run.prune_around(*next)) {
      continue;
    }
    const double entries = run.entries_after(*next);
    const double total = entries + static_cast<double>(store_.entries_held());
    const bool too_many = total > static_cast<double>(limits_.max_total);
    if (too_many || entries > static_cast<double>(limits_.max_table)) {
      outcome =
          too_many || kept >= 0 ? Outcome::without(MinSumStatus::kTooLarge) : split(run, branches);
      if (outcome.status == MinSumStatus::kTooLarge) {
        const EliminationRehearsal rehearsal = rehearse(run.graph());
        outcome.needed_table = rehearsal.largest_table;
        outcome.needed_total = rehearsal.total + static_cast<double>(store_.entries_held());
      }
      if (outcome.status != MinSumStatus::kSolved) return outcome;
      break;
    }
    run.eliminate(*next);
    if (run.cost() == kInfinity) return Outcome::without(MinSumStatus::kInfeasible);
  }
  outcome.cost += run.cost();
  if (kept >= 0) {
    outcome.leftover = run.remaining();
    return outcome;
  }
  for (const auto& [v, choice] : outcome.decisions) value_[v] = choice;
  run.decide(value_);
  outcome.decisions.clear();
  for (const int32_t v : run.variables()) outcome.decisions.emplace_back(v, value_[v]);
  return outcome;
}

// Parts that no longer touch are solved one by one; a part that is whole has its hub fixed.
Outcome Solver::split(const EliminationRun& run, int64_t branches) {
  std::vector<std::vector<ScopedTable>> components = connected_components(run.remaining());
  if (components.size() == 1) {
    const auto hub = run.graph().hub(branches);
    if (!hub || !fits_with_branches(run.graph(), limits_.max_table, branches)) {
      return Outcome::without(MinSumStatus::kTooLarge);
    }
    return fix_each_choice(components[0], run.variable(*hub), branches);
  }
  Outcome outcome;
  for (auto& component : components) {
    Outcome part = eliminate(std::move(component), branches);
    if (part.status != MinSumStatus::kSolved) return part;
    outcome.cost += part.cost;
    outcome.decisions.insert(outcome.decisions.end(), part.decisions.begin(), part.decisions.end());
  }
  return outcome;
}

Outcome Solver::fix_each_choice(const std::vector<ScopedTable>& factors, int32_t hub,
                                int64_t branches) {
  const auto with_hub = std::find_if(factors.begin(), factors.end(), [&](const ScopedTable& f) {
    return f.axis_of(hub) < static_cast<int32_t>(f.scope.size());
  });
  const int32_t choices = store_.sizes(with_hub->table)[with_hub->axis_of(hub)];
  Outcome best = Outcome::without(MinSumStatus::kInfeasible);
  for (int32_t choice = 0; choice < choices; ++choice) {
    ++store_.statistics.branches;
    double constant = 0;
    std::vector<ScopedTable> rest;
    for (ScopedTable f : factors) {
      const int32_t axis = f.axis_of(hub);
      if (axis < static_cast<int32_t>(f.scope.size())) {
        f.table = store_.slice(f.table, axis, {choice});
        f.scope.erase(f.scope.begin() + axis);
      }
      if (f.scope.empty()) {
        constant += store_.cost(f.table)[0];
      } else {
        rest.push_back(std::move(f));
      }
    }
    if (constant == kInfinity) continue;
    Outcome part = eliminate(std::move(rest), branches / choices);
    if (part.status == MinSumStatus::kTooLarge) return part;
    if (part.cost + constant < best.cost) {
      best = std::move(part);
      best.cost += constant;
      best.decisions.emplace_back(hub, choice);
    }
  }
  return best;
}

std::vector<ScopedTable> factors_with_scope(const Network& network) {
  std::vector<ScopedTable> factors;
  for (const ScopedTable& f : network.factors) {
    if (!f.scope.empty()) factors.push_back(f);
  }
  return factors;
}

MinSumResult Solver::solve(const MinSumProblem& problem, const Network& network) {
  MinSumResult result;
  Outcome outcome = Outcome::without(MinSumStatus::kInfeasible);
  value_.assign(network.choices.size(), 0);
  if (network.constant < kInfinity) {
    outcome = eliminate(factors_with_scope(network), limits_.max_branches);
  }
  result.status = outcome.status;
  result.needed_table = outcome.needed_table;
  result.needed_total = outcome.needed_total;
  result.statistics = store_.statistics;
  if (outcome.status != MinSumStatus::kSolved) return result;

  std::vector<int32_t>& choice = result.solution.choice;
  for (const auto& choices : network.choices) choice.push_back(choices[0]);
  for (const auto& [v, index] : outcome.decisions) choice[v] = network.choices[v][index];
  result.solution.cost = evaluate(problem, choice);
  double magnitude = 0;  // of the numbers added up, which may cancel
  for (const CostTerm& term : problem.terms) {
    magnitude += std::abs(term_cost(term, choice));
  }
  const double claimed = outcome.cost + network.constant;
  CLEAVE_ASSERT(std::abs(claimed - result.solution.cost) <= 1e-9 * magnitude,
                "elimination found {}, its choices cost {}", claimed, result.solution.cost);
  return result;
}

std::vector<double> Solver::costs_of(const Network& network, int32_t variable) {
  const size_t count = network.choices[variable].size();
  if (network.constant == kInfinity) return std::vector<double>(count, kInfinity);
  value_.assign(network.choices.size(), 0);
  if (!network.factors_of[variable].empty()) {
    const Outcome outcome = eliminate(factors_with_scope(network), limits_.max_branches, variable);
    if (outcome.status == MinSumStatus::kInfeasible) return std::vector<double>(count, kInfinity);
    if (outcome.status == MinSumStatus::kSolved) {
      std::vector<double> costs(count, network.constant + outcome.cost);
      for (const ScopedTable& f : outcome.leftover) {
        for (size_t c = 0; c < count; ++c) costs[c] += store_.cost(f.table)[c];
      }
      return costs;
    }
  }
  // It has no factors, or keeping it to the end makes tables too large: fix it to each choice.
  std::vector<double> costs;
  for (size_t c = 0; c < count; ++c) {
    Network fixed = network;
    if (count > 1) restrict_choices(fixed, store_, variable, {static_cast<int32_t>(c)});
    const Outcome outcome = fixed.constant == kInfinity
                                ? Outcome::without(MinSumStatus::kInfeasible)
                                : eliminate(factors_with_scope(fixed), limits_.max_branches);
    if (outcome.status == MinSumStatus::kTooLarge) return {};
    costs.push_back(outcome.cost + fixed.constant);
  }
  return costs;
}

}  // namespace

MinSumResult solve_by_elimination(const MinSumProblem& problem, const EliminationLimits& limits) {
  Solver solver(limits);
  Network network = make_network(problem, solver.store());
  prune_impossible(network, solver.store());
  if (limits.prune_dominated) prune_dominated(network, solver.store());
  return solver.solve(problem, network);
}

double evaluate(const MinSumProblem& problem, std::span<const int32_t> choice) {
  CLEAVE_ASSERT(choice.size() == problem.domain_sizes.size(), "{} choices for {} variables",
                choice.size(), problem.domain_sizes.size());
  double cost = 0;
  for (const CostTerm& term : problem.terms) cost += term_cost(term, choice);
  return cost;
}

std::vector<double> alternatives(const MinSumProblem& problem, int32_t variable,
                                 const EliminationLimits& limits) {
  CLEAVE_ASSERT(variable >= 0 && variable < static_cast<int32_t>(problem.domain_sizes.size()),
                "no variable {}", variable);
  Solver solver(limits);
  Network network = make_network(problem, solver.store());
  prune_impossible(network, solver.store());
  if (limits.prune_dominated) prune_dominated(network, solver.store(), variable);
  const std::vector<double> costs = solver.costs_of(network, variable);
  if (costs.empty() && network.constant < kInfinity) return {};
  std::vector<double> all(problem.domain_sizes[variable], kInfinity);
  for (size_t c = 0; c < costs.size(); ++c) all[network.choices[variable][c]] = costs[c];
  return all;
}

}  // namespace cleave
