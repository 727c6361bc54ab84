// Steps are undone in reverse, so a choice means at each step what it meant when that was taken.
#include "planner/elimination_run.h"

#include <algorithm>
#include <span>
#include <utility>

namespace cleave {
namespace {

// The lowest of the variable's best choices, the other variables being decided.
int32_t best_choice(const TableStore& store, int32_t variable, std::span<const ScopedTable> factors,
                    const std::vector<int32_t>& value) {
  std::vector<double> total;
  for (const ScopedTable& f : factors) {
    const std::vector<int32_t>& sizes = store.sizes(f.table);
    int64_t at = 0, stride = 1, own_stride = 0;
    int32_t own_size = 0;
    for (size_t i = sizes.size(); i-- > 0; stride *= sizes[i]) {
      if (f.scope[i] == variable) {
        own_stride = stride;
        own_size = sizes[i];
      } else {
        at += value[f.scope[i]] * stride;
      }
    }
    total.resize(own_size, 0.0);
    const double* entry = store.cost(f.table).data() + at;
    for (int32_t c = 0; c < own_size; ++c) total[c] += entry[c * own_stride];
  }
  return static_cast<int32_t>(std::min_element(total.begin(), total.end()) - total.begin());
}

}  // namespace

EliminationRun::EliminationRun(TableStore& store, std::vector<ScopedTable> factors,
                               size_t variable_count, int32_t kept)
    : store_(store),
      factors_(std::move(factors)),
      number_(variable_count, -1),
      kept_(kept),
      graph_({}) {
  for (const ScopedTable& f : factors_) {
    const std::vector<int32_t>& sizes = store_.sizes(f.table);
    for (size_t i = 0; i < sizes.size(); ++i) number_[f.scope[i]] = sizes[i];
  }
  std::vector<int32_t> domain_sizes;
  for (size_t v = 0; v < variable_count; ++v) {
    if (number_[v] < 0) continue;
    domain_sizes.push_back(number_[v]);
    number_[v] = static_cast<int32_t>(variables_.size());
    variables_.push_back(static_cast<int32_t>(v));
  }
  graph_ = EliminationGraph(std::move(domain_sizes));
  if (kept_ >= 0) graph_.keep(number_[kept_]);
  for (const ScopedTable& f : factors_) add_to_graph(f);
  steps_.reserve(variables_.size());
}

void EliminationRun::add_to_graph(const ScopedTable& factor) {
  std::vector<int32_t> scope;
  for (const int32_t v : factor.scope) scope.push_back(number_[v]);
  graph_.add(scope);
}

std::optional<int32_t> EliminationRun::next() {
  const auto number = graph_.next();
  return number ? std::optional(variables_[*number]) : std::nullopt;
}

double EliminationRun::entries_after(int32_t variable) const {
  return graph_.entries_after(number_[variable]);
}

double EliminationRun::work_of(int32_t variable) const {
  return entries_after(variable) * graph_.domain_size(number_[variable]);
}

void EliminationRun::eliminate(int32_t variable) {
  const int32_t number = number_[variable];
  int32_t& width = store_.statistics.induced_width;
  width = std::max(width, static_cast<int32_t>(graph_.neighbours(number).size()));
  Step step{variable, {}, {}};
  std::vector<const ScopedTable*> joined;
  for (const int32_t f : graph_.eliminate(number)) step.factors.push_back(std::move(factors_[f]));
  for (const ScopedTable& f : step.factors) joined.push_back(&f);
  TableStore::Elimination eliminated = store_.eliminate(variable, joined);
  cost_ += eliminated.offset;
  if (!eliminated.factor.scope.empty()) {
    add_to_graph(eliminated.factor);
    factors_.push_back(std::move(eliminated.factor));
  }
  steps_.push_back(std::move(step));
}

bool EliminationRun::prune_around(int32_t variable) {
  const double affordable = work_of(variable);
  bool dropped = false;
  std::vector<int32_t> around = graph_.neighbours(number_[variable]);
  around.push_back(number_[variable]);
  for (const int32_t number : around) {
    if (variables_[number] == kept_) continue;
    const int32_t n = graph_.domain_size(number);
    TableStore::Places places;
    double comparisons = 0;
    for (const int32_t f : graph_.factors_of(number)) {
      const ScopedTable& factor = factors_[f];
      places.emplace_back(factor.table, factor.axis_of(variables_[number]));
      comparisons += static_cast<double>(store_.cost(factor.table).size()) * n;
    }
    if (places.empty() || comparisons > affordable) continue;
    const std::vector<int32_t>& keep = store_.undominated(std::move(places));
    if (static_cast<int32_t>(keep.size()) == n) continue;
    keep_choices(variables_[number], keep);
    dropped = true;
  }
  return dropped;
}

void EliminationRun::keep_choices(int32_t variable, const std::vector<int32_t>& keep) {
  const int32_t number = number_[variable];
  store_.statistics.choices_pruned +=
      graph_.domain_size(number) - static_cast<int64_t>(keep.size());
  for (const int32_t f : graph_.factors_of(number)) {
    ScopedTable& factor = factors_[f];
    const int32_t axis = factor.axis_of(variable);
    factor.table = store_.slice(factor.table, axis, keep);
    if (keep.size() > 1) continue;
    factor.scope.erase(factor.scope.begin() + axis);
    if (factor.scope.empty()) cost_ += store_.cost(factor.table)[0];
  }
  if (keep.size() > 1) {
    graph_.shrink(number, static_cast<int32_t>(keep.size()));
  } else {
    graph_.fix(number);
  }
  steps_.push_back({variable, {}, keep});
}

std::vector<ScopedTable> EliminationRun::remaining() const {
  std::vector<ScopedTable> factors;
  for (size_t f = 0; f < factors_.size(); ++f) {
    const bool is_alive = graph_.is_alive(static_cast<int32_t>(f));
    if (is_alive && !factors_[f].scope.empty()) factors.push_back(factors_[f]);
  }
  return factors;
}

void EliminationRun::decide(std::vector<int32_t>& value) const {
  for (auto step = steps_.rbegin(); step != steps_.rend(); ++step) {
    int32_t& choice = value[step->variable];
    if (!step->factors.empty()) {
      choice = best_choice(store_, step->variable, step->factors, value);
    } else {
      choice = step->keep.size() == 1 ? step->keep[0] : step->keep[choice];
    }
  }
}

}  // namespace cleave
