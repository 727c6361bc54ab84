// A lazy heap over the elimination graph: a variable is offered again whenever its neighbourhood
// changes, and offers that no longer match are skipped.
#include "planner/elimination_order.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "graph/error.h"

namespace cleave {

EliminationGraph::EliminationGraph(std::vector<int32_t> domain_sizes)
    : domain_sizes_(std::move(domain_sizes)),
      size_log_(domain_sizes_.size()),
      neighbour_log_(domain_sizes_.size(), 0),
      neighbours_(domain_sizes_.size()),
      factors_of_(domain_sizes_.size()),
      variable_alive_(domain_sizes_.size(), 1) {
  for (size_t v = 0; v < domain_sizes_.size(); ++v) {
    size_log_[v] = fixed_point_log(domain_sizes_[v]);
  }
}

int64_t EliminationGraph::fixed_point_log(int32_t size) {
  return std::llround(std::ldexp(std::log2(size), 32));
}

bool EliminationGraph::link(int32_t from, int32_t to) {
  auto& list = neighbours_[from];
  const auto at = std::lower_bound(list.begin(), list.end(), to);
  if (at != list.end() && *at == to) return false;
  list.insert(at, to);
  neighbour_log_[from] += size_log_[to];
  return true;
}

void EliminationGraph::unlink(int32_t from, int32_t to) {
  auto& list = neighbours_[from];
  list.erase(std::lower_bound(list.begin(), list.end(), to));
  neighbour_log_[from] -= size_log_[to];
}

EliminationGraph::Candidate EliminationGraph::candidate(int32_t variable) const {
  return {neighbour_log_[variable], static_cast<int32_t>(neighbours_[variable].size()), variable};
}

void EliminationGraph::offer(int32_t variable) { queue_.push(candidate(variable)); }

int32_t EliminationGraph::add(std::span<const int32_t> scope) {
  const int32_t factor = factor_count();
  factor_alive_.push_back(1);
  for (const int32_t v : scope) {
    CLEAVE_ASSERT(variable_alive_[v], "factor over variable {}, which is gone", v);
    bool changed = factors_of_[v].empty();
    factors_of_[v].push_back(factor);
    for (const int32_t u : scope) {
      if (u != v) changed |= link(v, u);
    }
    if (changed && started_) offer(v);
  }
  return factor;
}

std::optional<int32_t> EliminationGraph::next() {
  if (!std::exchange(started_, true)) {
    for (size_t v = 0; v < neighbours_.size(); ++v) {
      if (variable_alive_[v] && !factors_of_[v].empty()) offer(static_cast<int32_t>(v));
    }
  }
  while (!queue_.empty()) {
    const Candidate best = queue_.top();
    if (variable_alive_[best.variable] && best.variable != kept_ &&
        best == candidate(best.variable)) {
      return best.variable;
    }
    queue_.pop();
  }
  return std::nullopt;
}

double EliminationGraph::entries_after(int32_t variable) const {
  double entries = 1;
  for (const int32_t u : neighbours_[variable]) entries *= domain_sizes_[u];
  return entries;
}

void EliminationGraph::shrink(int32_t variable, int32_t domain_size) {
  const int64_t log = fixed_point_log(domain_size);
  for (const int32_t u : neighbours_[variable]) {
    neighbour_log_[u] += log - size_log_[variable];
    offer(u);
  }
  size_log_[variable] = log;
  domain_sizes_[variable] = domain_size;
}

std::vector<int32_t> EliminationGraph::factors_of(int32_t variable) const {
  std::vector<int32_t> factors;
  for (const int32_t f : factors_of_[variable]) {
    if (factor_alive_[f]) factors.push_back(f);
  }
  return factors;
}

std::vector<int32_t> EliminationGraph::eliminate(int32_t variable) {
  std::vector<int32_t> factors = factors_of(variable);
  for (const int32_t f : factors) factor_alive_[f] = 0;
  variable_alive_[variable] = 0;
  for (const int32_t u : neighbours_[variable]) {
    unlink(u, variable);
    offer(u);
  }
  return factors;
}

void EliminationGraph::fix(int32_t variable) {
  variable_alive_[variable] = 0;
  for (const int32_t u : neighbours_[variable]) {
    unlink(u, variable);
    offer(u);
  }
}

std::optional<int32_t> EliminationGraph::hub(int64_t max_choices) const {
  std::optional<int32_t> best;
  int64_t most = -1;
  for (size_t v = 0; v < domain_sizes_.size(); ++v) {
    if (!variable_alive_[v] || domain_sizes_[v] > max_choices) continue;
    const auto& factors = factors_of_[v];
    const int64_t count =
        std::count_if(factors.begin(), factors.end(), [&](int32_t f) { return factor_alive_[f]; });
    if (count > most) {
      most = count;
      best = static_cast<int32_t>(v);
    }
  }
  return best;
}

EliminationRehearsal rehearse(EliminationGraph graph) {
  EliminationRehearsal rehearsal;
  while (const auto v = graph.next()) {
    const double entries = graph.entries_after(*v);
    rehearsal.largest_table = std::max(rehearsal.largest_table, entries);
    rehearsal.total += entries;
    const std::vector<int32_t> scope = graph.neighbours(*v);
    graph.eliminate(*v);
    graph.add(scope);
  }
  return rehearsal;
}

bool fits_with_branches(EliminationGraph graph, int64_t max_table, int64_t max_branches) {
  while (const auto v = graph.next()) {
    if (graph.entries_after(*v) > static_cast<double>(max_table)) {
      const auto hub = graph.hub(max_branches);
      if (!hub) return false;
      max_branches /= graph.domain_size(*hub);
      graph.fix(*hub);
      continue;
    }
    const std::vector<int32_t> scope = graph.neighbours(*v);
    graph.eliminate(*v);
    graph.add(scope);
  }
  return true;
}

}  // namespace cleave
