// Hash-consed cost tables: an operation on tables that was done before is looked up, not redone.
// So N equal layers cost one, and a chain of them costs its links.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "planner/elimination.h"

namespace cleave {

using TableId = int32_t;

// A table over variables: what a term becomes inside the solver. scope[i] is the variable of the
// table's axis i; no variable has a single choice.
struct ScopedTable {
  TableId table;
  std::vector<int32_t> scope;

  // The number of axes if the variable is not in the scope.
  int32_t axis_of(int32_t variable) const;
};

class TableStore {
 public:
  // The caller's table without its axes of size one. Keeps `table` alive. Checks it once.
  TableId intern(const std::shared_ptr<const CostTable>& table);

  const std::vector<int32_t>& sizes(TableId id) const { return tables_[id].sizes; }
  std::span<const double> cost(TableId id) const { return tables_[id].cost; }
  int64_t entries_held() const { return entries_held_; }

  // The table with only the choices `keep` of one axis; without the axis if that is one choice.
  TableId slice(TableId table, int32_t axis, const std::vector<int32_t>& keep);

  bool has_infinite(TableId table);
  // For each axis the choices that have a finite entry.
  const std::vector<std::vector<int32_t>>& possible_choices(TableId table);

  // Where a variable is: an axis of each of its tables.
  using Places = std::vector<std::pair<TableId, int32_t>>;
  // The choices of a variable that remain when those are dropped that another can replace at no
  // cost whatever the tables' other variables choose: the sum, over the tables, of the most that
  // it exceeds the dropped one by is at most zero.
  const std::vector<int32_t>& undominated(Places places);

  struct Elimination {
    ScopedTable factor;  // smallest entry 0; undefined if offset is infinite
    double offset = 0;   // to be added to every entry
  };
  // The minimum over `variable` of the sum of the factors, all of which contain it.
  Elimination eliminate(int32_t variable, std::span<const ScopedTable* const> factors);

  EliminationStatistics statistics;

 private:
  struct Stored {
    std::vector<int32_t> sizes;
    std::span<const double> cost;
    std::vector<double> owned;                  // what cost points to, unless it is the caller's
    std::shared_ptr<const CostTable> borrowed;  // whose cost it is otherwise
  };
  struct Operand {
    TableId table;
    std::vector<int32_t> axes;  // which axis of the joint space each of the table's axes is
  };
  struct Eliminated {
    TableId table;
    std::vector<int32_t> axes;  // of the joint space, in the order of the result's
    double offset;
  };
  using Key = std::vector<int32_t>;
  struct KeyHash {
    size_t operator()(const Key& key) const;
  };

  // excess[a * n + b]: by how much choice a of the axis can cost more than b, of n.
  const std::vector<double>& excess(TableId table, int32_t axis);
  TableId store(std::vector<int32_t> sizes, std::vector<double> cost);
  TableId find_equal(const std::vector<int32_t>& sizes, std::span<const double> cost,
                     uint64_t hash) const;
  // The operands' sum over the joint axes `axes`, in that order; each operand's are among them.
  TableId sum(std::span<const int32_t> axes, std::span<const Operand* const> operands);
  Eliminated compute(std::span<const Operand> operands, std::span<const int32_t> joint_sizes);

  std::vector<Stored> tables_;
  int64_t entries_held_ = 0;
  std::unordered_map<const CostTable*, TableId> interned_;
  std::unordered_multimap<uint64_t, TableId> by_content_;
  std::unordered_map<Key, TableId, KeyHash> slices_, sums_;
  std::unordered_map<Key, Eliminated, KeyHash> eliminations_;
  std::unordered_map<TableId, bool> has_infinite_;
  std::unordered_map<TableId, std::vector<std::vector<int32_t>>> possible_;
  std::map<std::pair<TableId, int32_t>, std::vector<double>> excess_;
  std::map<Places, std::vector<int32_t>> undominated_;
};

}  // namespace cleave
