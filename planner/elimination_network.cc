// Both prunings go by work list: a variable that lost choices has its factors, or its neighbours,
// looked at again. Tables are sliced through the store, so equal layers are pruned once.
#include "planner/elimination_network.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "graph/error.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr size_t kMostComparisons = size_t{1} << 24;  // a table; more is not worth the pruning

void check_term(const MinSumProblem& problem, const CostTerm& term) {
  CLEAVE_ASSERT(term.table != nullptr, "a term has no table");
  CLEAVE_ASSERT(term.variables.size() == term.table->sizes.size(),
                "a term over {} variables has a table of {} axes", term.variables.size(),
                term.table->sizes.size());
  for (size_t i = 0; i < term.variables.size(); ++i) {
    const int32_t v = term.variables[i];
    CLEAVE_ASSERT(v >= 0 && v < static_cast<int32_t>(problem.domain_sizes.size()),
                  "a term's variable {} does not exist", v);
    CLEAVE_ASSERT(term.table->sizes[i] == problem.domain_sizes[v],
                  "variable {} has {} choices, a term's table {}", v, problem.domain_sizes[v],
                  term.table->sizes[i]);
    CLEAVE_ASSERT(std::find(term.variables.begin(), term.variables.begin() + i, v) ==
                      term.variables.begin() + i,
                  "a term has variable {} twice", v);
  }
}

// Indices waiting for their turn, each at most once.
class WorkList {
 public:
  explicit WorkList(size_t size) : waiting_(size, 1), items_(size) {
    std::iota(items_.rbegin(), items_.rend(), 0);
  }
  void push(int32_t item) {
    if (!std::exchange(waiting_[item], 1)) items_.push_back(item);
  }
  bool empty() const { return items_.empty(); }
  int32_t pop() {
    const int32_t item = items_.back();
    items_.pop_back();
    waiting_[item] = 0;
    return item;
  }

 private:
  std::vector<char> waiting_;
  std::vector<int32_t> items_;
};

}  // namespace

Network make_network(const MinSumProblem& problem, TableStore& store) {
  Network network;
  const size_t count = problem.domain_sizes.size();
  network.choices.resize(count);
  network.factors_of.resize(count);
  for (size_t v = 0; v < count; ++v) {
    CLEAVE_ASSERT(problem.domain_sizes[v] >= 0, "variable {} has {} choices", v,
                  problem.domain_sizes[v]);
    network.choices[v].resize(problem.domain_sizes[v]);
    std::iota(network.choices[v].begin(), network.choices[v].end(), 0);
    if (network.choices[v].empty()) network.constant = kInfinity;
  }
  for (const CostTerm& term : problem.terms) {
    check_term(problem, term);
    ScopedTable factor{store.intern(term.table), {}};
    for (const int32_t v : term.variables) {
      if (problem.domain_sizes[v] != 1) factor.scope.push_back(v);
    }
    if (factor.scope.empty()) {
      network.constant += store.cost(factor.table)[0];
      continue;
    }
    for (const int32_t v : factor.scope) {
      network.factors_of[v].push_back(static_cast<int32_t>(network.factors.size()));
    }
    network.factors.push_back(std::move(factor));
  }
  return network;
}

void restrict_choices(Network& network, TableStore& store, int32_t variable,
                      const std::vector<int32_t>& keep) {
  std::vector<int32_t>& choices = network.choices[variable];
  store.statistics.choices_pruned += static_cast<int64_t>(choices.size() - keep.size());
  for (size_t i = 0; i < keep.size(); ++i) choices[i] = choices[keep[i]];
  choices.resize(keep.size());
  if (keep.empty()) {
    network.constant = kInfinity;
    return;
  }
  for (const int32_t f : network.factors_of[variable]) {
    ScopedTable& factor = network.factors[f];
    const int32_t axis = factor.axis_of(variable);
    factor.table = store.slice(factor.table, axis, keep);
    if (keep.size() > 1) continue;
    factor.scope.erase(factor.scope.begin() + axis);
    if (factor.scope.empty()) network.constant += store.cost(factor.table)[0];
  }
  if (keep.size() == 1) network.factors_of[variable].clear();
}

void prune_impossible(Network& network, TableStore& store) {
  WorkList work(network.factors.size());
  while (!work.empty() && network.constant < kInfinity) {
    const int32_t f = work.pop();
    if (!store.has_infinite(network.factors[f].table)) continue;
    for (size_t axis = 0; axis < network.factors[f].scope.size(); ++axis) {
      const ScopedTable& factor = network.factors[f];
      const int32_t v = factor.scope[axis];
      const std::vector<int32_t>& possible = store.possible_choices(factor.table)[axis];
      if (possible.size() == network.choices[v].size()) continue;
      for (const int32_t other : network.factors_of[v]) work.push(other);
      restrict_choices(network, store, v, possible);
      break;  // the factor's turn comes again
    }
  }
}

void prune_dominated(Network& network, TableStore& store, int32_t kept) {
  WorkList work(network.choices.size());
  while (!work.empty() && network.constant < kInfinity) {
    const int32_t v = work.pop();
    const size_t n = network.choices[v].size();
    if (v == kept || n == 1 || network.factors_of[v].empty()) continue;
    TableStore::Places places;
    size_t comparisons = 0;
    for (const int32_t f : network.factors_of[v]) {
      const ScopedTable& factor = network.factors[f];
      places.emplace_back(factor.table, factor.axis_of(v));
      comparisons = std::max(comparisons, store.cost(factor.table).size() * n);
    }
    if (comparisons > kMostComparisons) continue;
    const std::vector<int32_t>& keep = store.undominated(std::move(places));
    if (keep.size() == n) continue;
    for (const int32_t f : network.factors_of[v]) {
      for (const int32_t u : network.factors[f].scope) work.push(u);
    }
    restrict_choices(network, store, v, keep);
  }
}

}  // namespace cleave
