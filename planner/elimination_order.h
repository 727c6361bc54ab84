// Which variable to eliminate next: the graph of who shares a table with whom, and a greedy order
// on it. Knows scopes only, no costs, so an elimination can also be rehearsed without computing.
#pragma once

#include <cstdint>
#include <optional>
#include <queue>
#include <span>
#include <vector>

namespace cleave {

// Variables are 0 ... n-1, all with at least two choices. Factors are numbered as they are added.
class EliminationGraph {
 public:
  explicit EliminationGraph(std::vector<int32_t> domain_sizes);

  // Returns the factor's number. The scope's variables must not have been eliminated.
  int32_t add(std::span<const int32_t> scope);

  // Never offer this variable for elimination. Call before `next`.
  void keep(int32_t variable) { kept_ = variable; }

  // The variable whose elimination leaves the smallest table; among equals the one with fewest
  // neighbours, then the lowest, so that equal layers are taken apart alike. None at the end.
  std::optional<int32_t> next();

  // The entries of the table that eliminating the variable would leave.
  double entries_after(int32_t variable) const;

  // Removes the variable, and returns the factors it was in, ascending. The caller adds their
  // minimum, a factor over `neighbours` as they were.
  std::vector<int32_t> eliminate(int32_t variable);

  // Removes the variable from every scope, as when it is fixed to a choice.
  void fix(int32_t variable);

  // The variable has fewer choices from now on, but more than one.
  void shrink(int32_t variable, int32_t domain_size);

  // The remaining factors with the variable, ascending.
  std::vector<int32_t> factors_of(int32_t variable) const;
  const std::vector<int32_t>& neighbours(int32_t variable) const { return neighbours_[variable]; }
  int32_t domain_size(int32_t variable) const { return domain_sizes_[variable]; }
  bool is_alive(int32_t factor) const { return factor_alive_[factor]; }
  int32_t factor_count() const { return static_cast<int32_t>(factor_alive_.size()); }

  // The variable in most remaining factors with at most `max_choices` choices; the lowest of
  // equals. None if all that remain have more.
  std::optional<int32_t> hub(int64_t max_choices) const;

 private:
  struct Candidate {
    int64_t size;  // sum of size_log_ over the neighbours
    int32_t degree;
    int32_t variable;
    auto operator<=>(const Candidate&) const = default;
  };

  static int64_t fixed_point_log(int32_t size);
  bool link(int32_t from, int32_t to);
  void unlink(int32_t from, int32_t to);
  void offer(int32_t variable);
  Candidate candidate(int32_t variable) const;

  std::vector<int32_t> domain_sizes_;
  std::vector<int64_t> size_log_;  // log2 of the domain's size in fixed point: sums are exact
  std::vector<int64_t> neighbour_log_;
  std::vector<std::vector<int32_t>> neighbours_;  // ascending
  std::vector<std::vector<int32_t>> factors_of_;  // may hold dead ones
  std::vector<char> variable_alive_;
  std::vector<char> factor_alive_;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue_;
  int32_t kept_ = -1;
  bool started_ = false;  // before the first `next` nothing is offered
};

// What a whole elimination would need, found without computing a table.
struct EliminationRehearsal {
  double largest_table = 0;
  double total = 0;
};
EliminationRehearsal rehearse(EliminationGraph graph);

// Whether fixing hubs in turn, as the solver does, keeps every table within max_table.
bool fits_with_branches(EliminationGraph graph, int64_t max_table, int64_t max_branches);

}  // namespace cleave
