// An oracle for the min-sum solver: the same problem as a 0/1 linear program, solved by CBC.
#pragma once

#include <optional>

#include "planner/elimination.h"

namespace cleave {

// Whether this build found CBC.
bool cbc_available();

struct CbcAnswer {
  double cost = 0;
  int nodes = 0;  // of the branch-and-bound tree; 0 if the relaxation was integral
};

// The optimum, or none if the problem is infeasible. One 0/1 variable a choice; for a term of
// several variables, one for each finite entry, whose sums over an entry's choice equal it.
std::optional<CbcAnswer> solve_with_cbc(const MinSumProblem& problem);

}  // namespace cleave
