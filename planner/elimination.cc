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
#include "planner/elimination_tables.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

using Decisions = std::vector<std::pair<int32_t, int32_t>>;  // (variable, index in its choices)

// What eliminating a set of factors comes to.
struct Outcome {
  MinSumStatus status = MinSumStatus::kSolved;
  double cost = 0;
  Decisions decisions;           // of every variable of the factors, except a kept one
  std::vector<Factor> leftover;  // over a kept variable
  double needed_table = 0;
  double needed_total = 0;

  static Outcome without(MinSumStatus status) {
    Outcome outcome;
    outcome.status = status;
    outcome.cost = kInfinity;
    return outcome;
  }
  static Outcome infeasible() { return without(MinSumStatus::kInfeasible); }
  static Outcome too_large() { return without(MinSumStatus::kTooLarge); }
};

double term_cost(const CostTerm& term, std::span<const int32_t> choice) {
  size_t entry = 0;
  for (size_t i = 0; i < term.variables.size(); ++i) {
    entry = entry * term.table->sizes[i] + choice[term.variables[i]];
  }
  return term.table->cost[entry];
}

std::vector<std::vector<Factor>> connected_components(std::vector<Factor> factors) {
  int32_t bound = 0;
  for (const Factor& f : factors) {
    for (const int32_t v : f.scope) bound = std::max(bound, v + 1);
  }
  std::vector<int32_t> parent(bound);
  std::iota(parent.begin(), parent.end(), 0);
  const auto root = [&](int32_t v) {
    while (parent[v] != v) v = parent[v] = parent[parent[v]];
    return v;
  };
  for (const Factor& f : factors) {
    for (const int32_t v : f.scope) parent[root(v)] = root(f.scope[0]);
  }
  std::vector<int32_t> number(bound, -1);
  std::vector<std::vector<Factor>> components;
  for (Factor& f : factors) {
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
  Outcome eliminate(std::vector<Factor> factors, int64_t branches, int32_t kept = -1);
  Outcome split(std::vector<Factor> factors, const EliminationGraph& graph,
                const std::vector<int32_t>& variables, int64_t branches);
  Outcome fix_each_choice(const std::vector<Factor>& factors, int32_t hub, int64_t branches);
  int32_t decide(int32_t variable, std::span<const Factor> factors);

  EliminationLimits limits_;
  TableStore store_;
  std::vector<int32_t> value_;  // decided so far, as an index in the remaining choices
};

// One elimination, remembered for the way back.
struct Step {
  int32_t variable;
  std::vector<Factor> factors;
};

Outcome Solver::eliminate(std::vector<Factor> factors, int64_t branches, int32_t kept) {
  // The graph numbers the variables of these factors 0, 1, ... in the order of the problem's.
  std::vector<int32_t> local(value_.size(), -1), variables, domain_sizes;
  for (const Factor& f : factors) {
    const std::vector<int32_t>& sizes = store_.sizes(f.table);
    for (size_t i = 0; i < sizes.size(); ++i) local[f.scope[i]] = sizes[i];
  }
  for (size_t v = 0; v < local.size(); ++v) {
    if (local[v] < 0) continue;
    domain_sizes.push_back(local[v]);
    local[v] = static_cast<int32_t>(variables.size());
    variables.push_back(static_cast<int32_t>(v));
  }
  EliminationGraph graph(std::move(domain_sizes));
  if (kept >= 0) graph.keep(local[kept]);
  std::vector<int32_t> scope;
  const auto add_to_graph = [&](const Factor& factor) {
    scope.clear();
    for (const int32_t v : factor.scope) scope.push_back(local[v]);
    graph.add(scope);
  };
  for (const Factor& f : factors) add_to_graph(f);

  Outcome outcome;
  std::vector<Step> steps;
  steps.reserve(variables.size());
  std::vector<const Factor*> joined;
  while (const auto next = graph.next()) {
    const double entries = graph.entries_after(*next);
    const bool too_many = entries + static_cast<double>(store_.entries_held()) >
                          static_cast<double>(limits_.max_total);
    if (too_many || entries > static_cast<double>(limits_.max_table)) {
      std::vector<Factor> rest;
      for (size_t f = 0; f < factors.size(); ++f) {
        if (graph.is_alive(static_cast<int32_t>(f))) rest.push_back(std::move(factors[f]));
      }
      Outcome tail = too_many || kept >= 0 ? Outcome::too_large()
                                           : split(std::move(rest), graph, variables, branches);
      if (tail.status == MinSumStatus::kTooLarge) {
        const EliminationRehearsal rehearsal = rehearse(std::move(graph));
        tail.needed_table = rehearsal.largest_table;
        tail.needed_total = rehearsal.total + static_cast<double>(store_.entries_held());
      }
      if (tail.status != MinSumStatus::kSolved) return tail;
      outcome.cost += tail.cost;
      outcome.decisions = std::move(tail.decisions);
      factors.clear();
      break;
    }
    store_.statistics.induced_width = std::max(
        store_.statistics.induced_width, static_cast<int32_t>(graph.neighbours(*next).size()));

    Step step{variables[*next], {}};
    for (const int32_t f : graph.eliminate(*next)) step.factors.push_back(std::move(factors[f]));
    joined.clear();
    for (const Factor& f : step.factors) joined.push_back(&f);
    TableStore::Elimination eliminated = store_.eliminate(step.variable, joined);
    if (eliminated.offset == kInfinity) return Outcome::infeasible();
    outcome.cost += eliminated.offset;
    if (!eliminated.factor.scope.empty()) {
      add_to_graph(eliminated.factor);
      factors.push_back(std::move(eliminated.factor));
    }
    steps.push_back(std::move(step));
  }
  if (kept >= 0) {
    for (size_t f = 0; f < factors.size(); ++f) {
      if (graph.is_alive(static_cast<int32_t>(f))) outcome.leftover.push_back(factors[f]);
    }
    return outcome;
  }

  for (const auto& [v, choice] : outcome.decisions) value_[v] = choice;
  for (size_t s = steps.size(); s-- > 0;) {
    const int32_t choice = decide(steps[s].variable, steps[s].factors);
    value_[steps[s].variable] = choice;
    outcome.decisions.emplace_back(steps[s].variable, choice);
  }
  return outcome;
}

int32_t Solver::decide(int32_t variable, std::span<const Factor> factors) {
  std::vector<double> total;
  for (const Factor& f : factors) {
    const std::vector<int32_t>& sizes = store_.sizes(f.table);
    int64_t at = 0, stride = 1, own_stride = 0;
    int32_t own_size = 0;
    for (size_t i = sizes.size(); i-- > 0; stride *= sizes[i]) {
      if (f.scope[i] == variable) {
        own_stride = stride;
        own_size = sizes[i];
      } else {
        at += value_[f.scope[i]] * stride;
      }
    }
    total.resize(own_size, 0.0);
    const double* entry = store_.cost(f.table).data() + at;
    for (int32_t c = 0; c < own_size; ++c) total[c] += entry[c * own_stride];
  }
  return static_cast<int32_t>(std::min_element(total.begin(), total.end()) - total.begin());
}

// Parts that no longer touch are solved one by one; a part that is whole has its hub fixed.
Outcome Solver::split(std::vector<Factor> factors, const EliminationGraph& graph,
                      const std::vector<int32_t>& variables, int64_t branches) {
  std::vector<std::vector<Factor>> components = connected_components(std::move(factors));
  if (components.size() == 1) {
    const auto hub = graph.hub(branches);
    if (!hub || !fits_with_branches(graph, limits_.max_table, branches)) {
      return Outcome::too_large();
    }
    return fix_each_choice(components[0], variables[*hub], branches);
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

Outcome Solver::fix_each_choice(const std::vector<Factor>& factors, int32_t hub, int64_t branches) {
  const auto axis_of_hub = [&](const Factor& f) {
    return static_cast<int32_t>(std::find(f.scope.begin(), f.scope.end(), hub) - f.scope.begin());
  };
  const auto with_hub = std::find_if(factors.begin(), factors.end(), [&](const Factor& f) {
    return axis_of_hub(f) < static_cast<int32_t>(f.scope.size());
  });
  const int32_t choices = store_.sizes(with_hub->table)[axis_of_hub(*with_hub)];
  Outcome best = Outcome::infeasible();
  for (int32_t choice = 0; choice < choices; ++choice) {
    ++store_.statistics.branches;
    double constant = 0;
    std::vector<Factor> rest;
    for (Factor f : factors) {
      const int32_t axis = axis_of_hub(f);
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

std::vector<Factor> factors_with_scope(const Network& network) {
  std::vector<Factor> factors;
  for (const Factor& f : network.factors) {
    if (!f.scope.empty()) factors.push_back(f);
  }
  return factors;
}

MinSumResult Solver::solve(const MinSumProblem& problem, const Network& network) {
  MinSumResult result;
  Outcome outcome = Outcome::infeasible();
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
      for (const Factor& f : outcome.leftover) {
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
                                ? Outcome::infeasible()
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
