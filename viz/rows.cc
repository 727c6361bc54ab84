#include "viz/rows.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace cleave {
namespace {

size_t at(int32_t i) { return static_cast<size_t>(i); }

struct Constraint {
  int32_t to = 0;
  int32_t length = 1;  // rows between
};

// Groups of boxes that share a row, and constraints between groups that never form a cycle.
class RowFinder {
 public:
  explicit RowFinder(const RowProblem& p)
      : p_(p),
        size_(p.size + 2 * static_cast<int32_t>(p.bands.size())),
        out_(at(size_)),
        group_(at(size_)) {
    std::iota(group_.begin(), group_.end(), 0);
  }

  Rows result() {
    for (const auto& [a, b] : p_.below) add(a, b, 1);
    for (size_t i = 0; i < p_.bands.size(); ++i) add_band(i);
    for (const auto& [a, b] : p_.beside) join(a, b);
    longest_paths();
    tighten();
    return numbered();
  }

 private:
  int32_t group(int32_t box) const { return group_[at(box)]; }

  bool reaches(int32_t from, int32_t to) {
    visited_.assign(at(size_), false);
    stack_ = {from};
    while (!stack_.empty()) {
      const int32_t g = stack_.back();
      stack_.pop_back();
      if (g == to) return true;
      if (visited_[at(g)]) continue;
      visited_[at(g)] = true;
      for (const Constraint& c : out_[at(g)]) stack_.push_back(c.to);
    }
    return false;
  }

  bool add(int32_t a, int32_t b, int32_t length) {
    const int32_t from = group(a), to = group(b);
    if (from == to || reaches(to, from)) return false;
    out_[at(from)].push_back({to, length});
    return true;
  }

  // A point before and a point after all of the band; what leads into it stands above the one, what
  // it leads to below the other.
  void add_band(size_t band) {
    const int32_t start = p_.size + 2 * static_cast<int32_t>(band), end = start + 1;
    std::vector<bool> inside(at(p_.size));
    for (int32_t b : p_.bands[band]) {
      inside[at(b)] = true;
      add(start, b, 0);
      add(b, end, 0);
    }
    for (const auto& [a, b] : p_.below) {
      if (!inside[at(a)] && inside[at(b)]) add(a, start, 1);
      if (inside[at(a)] && !inside[at(b)]) add(end, b, 1);
    }
  }

  void join(int32_t a, int32_t b) {
    const int32_t keep = group(a), gone = group(b);
    if (keep == gone || reaches(keep, gone) || reaches(gone, keep)) return;
    for (int32_t& g : group_) g = g == gone ? keep : g;
    for (const Constraint& c : out_[at(gone)]) out_[at(keep)].push_back(c);
    out_[at(gone)].clear();
    for (auto& list : out_) {
      for (Constraint& c : list) c.to = c.to == gone ? keep : c.to;
    }
  }

  void longest_paths() {
    std::vector<int32_t> waiting(at(size_));
    for (const auto& list : out_) {
      for (const Constraint& c : list) ++waiting[at(c.to)];
    }
    row_.assign(at(size_), 0);
    for (int32_t g = 0; g < size_; ++g) {
      if (group(g) == g && waiting[at(g)] == 0) order_.push_back(g);
    }
    for (size_t i = 0; i < order_.size(); ++i) {
      for (const Constraint& c : out_[at(order_[i])]) {
        row_[at(c.to)] = std::max(row_[at(c.to)], row_[at(order_[i])] + c.length);
        if (--waiting[at(c.to)] == 0) order_.push_back(c.to);
      }
    }
  }

  // Moves down what has more below than above, as far as it can.
  void tighten() {
    std::vector<int32_t> above(at(size_));
    for (const auto& list : out_) {
      for (const Constraint& c : list) ++above[at(c.to)];
    }
    for (size_t i = order_.size(); i-- > 0;) {
      const int32_t g = order_[i];
      const auto& below = out_[at(g)];
      if (below.empty() || static_cast<size_t>(above[at(g)]) >= below.size()) continue;
      int32_t lowest = std::numeric_limits<int32_t>::max();
      for (const Constraint& c : below) lowest = std::min(lowest, row_[at(c.to)] - c.length);
      row_[at(g)] = lowest;
    }
  }

  // Rows without boxes vanish.
  Rows numbered() const {
    std::vector<int32_t> used;
    for (int32_t b = 0; b < p_.size; ++b) used.push_back(row_[at(group(b))]);
    std::sort(used.begin(), used.end());
    used.erase(std::unique(used.begin(), used.end()), used.end());
    Rows rows;
    rows.count = static_cast<int32_t>(used.size());
    for (int32_t b = 0; b < p_.size; ++b) {
      const auto row = std::lower_bound(used.begin(), used.end(), row_[at(group(b))]);
      rows.of_box.push_back(static_cast<int32_t>(row - used.begin()));
    }
    return rows;
  }

  const RowProblem& p_;
  const int32_t size_;                        // boxes, and a start and an end for each band
  std::vector<std::vector<Constraint>> out_;  // by group
  std::vector<int32_t> group_;                // by box
  std::vector<int32_t> row_, order_;          // by group; groups in topological order
  std::vector<bool> visited_;
  std::vector<int32_t> stack_;
};

}  // namespace

Rows find_rows(const RowProblem& problem) { return RowFinder(problem).result(); }

}  // namespace cleave
