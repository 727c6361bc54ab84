// One run of variable elimination over a set of factors, forward and back.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "planner/elimination_order.h"
#include "planner/elimination_tables.h"

namespace cleave {

// Variables are the problem's, below `variable_count`; the run is over those in the factors, none
// of which may have an empty scope. `kept` is never eliminated, nor loses a choice.
class EliminationRun {
 public:
  EliminationRun(TableStore& store, std::vector<ScopedTable> factors, size_t variable_count,
                 int32_t kept = -1);

  // The variable to eliminate next; none at the end.
  std::optional<int32_t> next();
  // Entries of the table that its elimination would leave, and that it would visit.
  double entries_after(int32_t variable) const;
  double work_of(int32_t variable) const;

  void eliminate(int32_t variable);

  // Drops choices of the variable and its neighbours that others dominate, where finding them
  // costs no more than eliminating the variable. Returns whether there were any.
  bool prune_around(int32_t variable);

  // What has been taken out of the factors: added to the minimum of the remaining ones, that is
  // the minimum of all. +infinity: no combination is possible.
  double cost() const { return cost_; }
  std::vector<ScopedTable> remaining() const;
  const EliminationGraph& graph() const { return graph_; }
  // The variable that the graph knows by this number.
  int32_t variable(int32_t number) const { return variables_[number]; }

  // Given the remaining factors' variables, as choices that they have now, sets all that the run
  // decided, and turns everything into choices as they were at the start.
  void decide(std::vector<int32_t>& value) const;
  const std::vector<int32_t>& variables() const { return variables_; }

 private:
  // What was done to a variable: it was eliminated from the factors, or, if there are none, kept
  // only the listed of its choices.
  struct Step {
    int32_t variable;
    std::vector<ScopedTable> factors;
    std::vector<int32_t> keep;
  };

  void add_to_graph(const ScopedTable& factor);
  void keep_choices(int32_t variable, const std::vector<int32_t>& keep);

  TableStore& store_;
  std::vector<ScopedTable> factors_;  // by their number in the graph; moved out when eliminated
  std::vector<int32_t> variables_;    // by their number in the graph, ascending
  std::vector<int32_t> number_;       // the inverse; -1 for those that are not in the run
  int32_t kept_;
  EliminationGraph graph_;
  std::vector<Step> steps_;
  double cost_ = 0;
};

}  // namespace cleave
