// Hash-consed cost tables: an operation on tables that was done before is looked up, not redone.
// So N equal layers cost one, and a chain of them costs its links.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "planner/elimination.h"

namespace cleave {

using TableId = int32_t;

// A table over variables: what a term becomes inside the solver. scope[i] is the variable of the
// table's axis i; no variable has a single choice.
struct Factor {
  TableId table;
  std::vector<int32_t> scope;
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

  // excess[a * n + b]: by how much a can cost more than b over all choices of the other axes, for
  // the n choices of the axis. Where b is impossible nothing is counted.
  const std::vector<double>& excess(TableId table, int32_t axis);

  struct Elimination {
    Factor factor;      // smallest entry 0; undefined if offset is infinite
    double offset = 0;  // to be added to every entry
  };
  // The minimum over `variable` of the sum of the factors, all of which contain it.
  Elimination eliminate(int32_t variable, std::span<const Factor* const> factors);

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
  std::unordered_map<int64_t, std::vector<double>> excess_;
};

}  // namespace cleave
