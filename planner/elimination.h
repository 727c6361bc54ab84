// The exact minimum of a sum of cost tables over discrete variables, by variable elimination.
// It knows nothing of graphs or devices: the planner's placement problem is one of its uses.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace cleave {

// A cost for every combination of choices of a few variables, row-major. May hold +infinity for
// what is forbidden, never -infinity or NaN. Immutable, and shared between repeated layers: work
// done on one table is not done again for the next layer that points to it (nor, for the price of
// a hash, for a layer that points to an equal one).
struct CostTable {
  std::vector<int32_t> sizes;  // one a variable; empty for a constant
  std::vector<double> cost;    // as many as the product of the sizes
};

struct CostTerm {
  std::vector<int32_t> variables;  // all different; variables[i] has table->sizes[i] choices
  std::shared_ptr<const CostTable> table;
};

// Choose a number in [0, domain_sizes[v]) for each variable v so that the terms' sum is smallest.
struct MinSumProblem {
  std::vector<int32_t> domain_sizes;
  std::vector<CostTerm> terms;
};

struct EliminationLimits {
  int64_t max_table = int64_t{1} << 24;  // entries of one table
  int64_t max_total = int64_t{1} << 27;  // entries of all tables held at once, 8 bytes each
  // When the next table would be too large, a variable is fixed to each of its choices in turn.
  // This bounds the number of combinations tried; 1 switches it off.
  int64_t max_branches = 4096;
  // Drop a choice when another is at least as good whatever the other variables do: before the
  // first elimination, and before each that would visit at least `prune_from` entries. Keeps one
  // optimum, not always the same one as without.
  bool prune_dominated = true;
  int64_t prune_from = int64_t{1} << 14;
};

struct EliminationStatistics {
  int64_t largest_table = 0;    // entries
  int64_t tables_computed = 0;  // eliminations carried out
  int64_t tables_reused = 0;    // eliminations answered by an equal one before
  int64_t work = 0;             // entries visited while minimising
  int64_t choices_pruned = 0;   // impossible or dominated
  int64_t branches = 0;         // combinations of fixed variables; 0 if none had to be fixed
  int32_t induced_width = 0;    // most variables that one elimination joined, without its own
};

enum class MinSumStatus : uint8_t { kSolved, kInfeasible, kTooLarge };

// `choice` is an optimum, the same one each time. Among optima of equal cost it is found thus:
// variables are decided in the reverse of the order of elimination, and each takes the lowest
// choice that is best.
struct MinSumSolution {
  double cost = 0;  // evaluate(problem, choice)
  std::vector<int32_t> choice;
};

struct MinSumResult {
  MinSumStatus status = MinSumStatus::kInfeasible;
  MinSumSolution solution;  // when solved
  double needed_table = 0;  // when too large: entries of the largest table on the way
  double needed_total = 0;  // when too large: entries of all tables, counting no reuse
  EliminationStatistics statistics;

  bool solved() const { return status == MinSumStatus::kSolved; }
};

// Infeasible if every combination costs +infinity. A malformed problem is an InternalError.
MinSumResult solve_by_elimination(const MinSumProblem& problem,
                                  const EliminationLimits& limits = {});

// The sum of the terms for one choice a variable.
double evaluate(const MinSumProblem& problem, std::span<const int32_t> choice);

// For each choice of one variable, the lowest total cost with it (+infinity if there is none):
// what the optimum's choice beat, and by how much. Empty when the problem is too large.
std::vector<double> alternatives(const MinSumProblem& problem, int32_t variable,
                                 const EliminationLimits& limits = {});

}  // namespace cleave
