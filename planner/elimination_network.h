// A problem as the solver works on it: factors over hash-consed tables, and the choices that each
// variable has left. Every step here keeps the optimum.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/elimination_tables.h"

namespace cleave {

struct Network {
  std::vector<ScopedTable> factors;              // those with an empty scope are in `constant`
  std::vector<std::vector<int32_t>> choices;     // a variable's remaining choices, ascending
  std::vector<std::vector<int32_t>> factors_of;  // which factors a variable is in
  double constant = 0;                           // +infinity: infeasible
};

// Checks the problem and interns its tables, which must outlive the store.
Network make_network(const MinSumProblem& problem, TableStore& store);

// Keeps only the listed of a variable's remaining choices; `keep` counts in those, ascending.
void restrict_choices(Network& network, TableStore& store, int32_t variable,
                      const std::vector<int32_t>& keep);

// Drops the choices that are infinite everywhere in some factor, until there are none.
void prune_impossible(Network& network, TableStore& store);

// Drops the choices that another dominates (TableStore::undominated), until there are none. Spares
// the variable `kept`, and those in tables so large that the comparison would not pay.
void prune_dominated(Network& network, TableStore& store, int32_t kept = -1);

}  // namespace cleave
