// The canonical form of an elimination: factors sorted by table, variables numbered as they
// appear. Eliminations that agree in it are the same up to the variables' names.
#include "planner/elimination_tables.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>

#include "graph/error.h"
#include "planner/elimination_kernels.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

uint64_t mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
  return hash ^ (hash >> 29);
}

uint64_t content_hash(const std::vector<int32_t>& sizes, std::span<const double> cost) {
  // Four chains: one is bound by the multiplier's latency.
  uint64_t lanes[4] = {1, 2, 3, 4};
  for (const int32_t size : sizes) lanes[0] = mix(lanes[0], static_cast<uint64_t>(size));
  size_t i = 0;
  for (; i + 4 <= cost.size(); i += 4) {
    for (size_t k = 0; k < 4; ++k) lanes[k] = mix(lanes[k], std::bit_cast<uint64_t>(cost[i + k]));
  }
  for (; i < cost.size(); ++i) lanes[0] = mix(lanes[0], std::bit_cast<uint64_t>(cost[i]));
  return mix(mix(lanes[0], lanes[1]), mix(lanes[2], lanes[3]));
}

int64_t product(std::span<const int32_t> sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

std::vector<int64_t> row_major_strides(std::span<const int32_t> sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  return strides;
}

// Entries before, at and after an axis of a row-major table.
struct AxisView {
  int64_t before, size, after;
};

AxisView view_axis(const std::vector<int32_t>& sizes, int32_t axis) {
  const std::span<const int32_t> all(sizes);
  return {product(all.first(axis)), sizes[axis], product(all.subspan(axis + 1))};
}

}  // namespace

int32_t ScopedTable::axis_of(int32_t variable) const {
  return static_cast<int32_t>(std::find(scope.begin(), scope.end(), variable) - scope.begin());
}

size_t TableStore::KeyHash::operator()(const Key& key) const {
  uint64_t hash = key.size();
  for (const int32_t word : key) hash = mix(hash, static_cast<uint32_t>(word));
  return hash;
}

TableId TableStore::find_equal(const std::vector<int32_t>& sizes, std::span<const double> cost,
                               uint64_t hash) const {
  const auto [begin, end] = by_content_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    const Stored& other = tables_[it->second];
    if (other.sizes == sizes &&
        std::memcmp(other.cost.data(), cost.data(), cost.size() * sizeof(double)) == 0) {
      return it->second;
    }
  }
  return -1;
}

TableId TableStore::store(std::vector<int32_t> sizes, std::vector<double> cost) {
  const uint64_t hash = content_hash(sizes, cost);
  if (const TableId found = find_equal(sizes, cost, hash); found >= 0) return found;
  const auto id = static_cast<TableId>(tables_.size());
  entries_held_ += static_cast<int64_t>(cost.size());
  tables_.push_back({std::move(sizes), {}, std::move(cost), nullptr});
  tables_.back().cost = tables_.back().owned;
  by_content_.emplace(hash, id);
  return id;
}

TableId TableStore::intern(const std::shared_ptr<const CostTable>& table) {
  const auto [known, is_new] = interned_.try_emplace(table.get(), -1);
  if (!is_new) return known->second;
  CLEAVE_ASSERT(product(table->sizes) == static_cast<int64_t>(table->cost.size()),
                "a cost table of {} entries should have {}", table->cost.size(),
                product(table->sizes));
  bool is_valid = true;  // a loop without exits, for speed
  for (const double c : table->cost) is_valid &= c > -kInfinity;
  CLEAVE_ASSERT(is_valid, "a cost table holds a NaN or -infinity");
  std::vector<int32_t> sizes;
  std::copy_if(table->sizes.begin(), table->sizes.end(), std::back_inserter(sizes),
               [](int32_t size) { return size != 1; });
  const uint64_t hash = content_hash(sizes, table->cost);
  TableId id = find_equal(sizes, table->cost, hash);
  if (id < 0) {
    id = static_cast<TableId>(tables_.size());
    tables_.push_back({std::move(sizes), table->cost, {}, table});
    by_content_.emplace(hash, id);
  } else {
    tables_.push_back({{}, {}, {}, table});  // keeps the address from being used again
  }
  return known->second = id;
}

TableId TableStore::slice(TableId table, int32_t axis, const std::vector<int32_t>& keep) {
  Key key = {table, axis};
  key.insert(key.end(), keep.begin(), keep.end());
  const auto [known, is_new] = slices_.try_emplace(std::move(key), -1);
  if (!is_new) return known->second;
  const AxisView view = view_axis(sizes(table), axis);
  std::vector<int32_t> sliced_sizes = sizes(table);
  std::vector<double> sliced(view.before * keep.size() * view.after);
  slice_axis(cost(table).data(), view.before, view.size, view.after, keep, sliced.data());
  if (keep.size() == 1) {
    sliced_sizes.erase(sliced_sizes.begin() + axis);
  } else {
    sliced_sizes[axis] = static_cast<int32_t>(keep.size());
  }
  return known->second = store(std::move(sliced_sizes), std::move(sliced));
}

bool TableStore::has_infinite(TableId table) {
  const auto [known, is_new] = has_infinite_.try_emplace(table, false);
  if (is_new) {
    for (const double c : cost(table)) known->second |= c == kInfinity;
  }
  return known->second;
}

const std::vector<std::vector<int32_t>>& TableStore::possible_choices(TableId table) {
  const auto [known, is_new] = possible_.try_emplace(table);
  auto& possible = known->second;
  if (!is_new) return possible;
  for (size_t axis = 0; axis < sizes(table).size(); ++axis) {
    const AxisView view = view_axis(sizes(table), static_cast<int32_t>(axis));
    std::vector<char> finite(view.size, 0);
    const double* at = cost(table).data();
    for (int64_t i = 0; i < view.before; ++i) {
      for (int64_t k = 0; k < view.size; ++k) {
        for (int64_t j = 0; j < view.after; ++j) finite[k] |= *at++ < kInfinity;
      }
    }
    possible.emplace_back();
    for (int64_t k = 0; k < view.size; ++k) {
      if (finite[k]) possible[axis].push_back(static_cast<int32_t>(k));
    }
  }
  return possible;
}

const std::vector<double>& TableStore::excess(TableId table, int32_t axis) {
  const auto [known, is_new] = excess_.try_emplace({table, axis});
  if (is_new) {
    const AxisView view = view_axis(sizes(table), axis);
    known->second.resize(view.size * view.size);
    most_excess(cost(table).data(), view.before, view.size, view.after, known->second.data());
  }
  return known->second;
}

const std::vector<int32_t>& TableStore::undominated(Places places) {
  std::sort(places.begin(), places.end());
  const auto [known, is_new] = undominated_.try_emplace(std::move(places));
  std::vector<int32_t>& kept = known->second;
  if (!is_new) return kept;
  const auto [first, first_axis] = known->first.at(0);
  const int32_t n = sizes(first)[first_axis];
  std::vector<double> total(static_cast<size_t>(n) * n, 0.0);
  for (const auto& [table, axis] : known->first) {
    const std::vector<double>& more = excess(table, axis);
    for (size_t i = 0; i < total.size(); ++i) {
      // +infinity: a is forbidden where b is not. -infinity: b is forbidden everywhere.
      const bool forbidden = total[i] == kInfinity || more[i] == kInfinity;
      total[i] = forbidden ? kInfinity : total[i] + more[i];
    }
  }
  kept.resize(n);
  std::iota(kept.begin(), kept.end(), 0);
  // Of two that replace each other the lower stays. What replaces must not be dropped itself.
  for (int32_t b = n; b-- > 0;) {
    const bool dominated = std::any_of(kept.begin(), kept.end(), [&](int32_t a) {
      return a != b && total[static_cast<size_t>(a) * n + b] <= 0;
    });
    if (dominated) kept.erase(kept.begin() + b);
  }
  return kept;
}

TableId TableStore::sum(std::span<const int32_t> axes, std::span<const Operand* const> operands) {
  Key key;
  for (const Operand* operand : operands) {
    key.push_back(operand->table);
    for (const int32_t axis : operand->axes) {
      const auto at = std::find(axes.begin(), axes.end(), axis);
      key.push_back(static_cast<int32_t>(at - axes.begin()));
    }
  }
  if (operands.size() == 1 && std::is_sorted(key.begin() + 1, key.end())) return key[0];
  const auto [known, is_new] = sums_.try_emplace(key, -1);
  if (!is_new) return known->second;

  std::vector<int32_t> out_sizes(axes.size());
  std::vector<StridedTable> strided;
  size_t word = 0;
  for (const Operand* operand : operands) {
    const std::vector<int32_t>& table_sizes = sizes(operand->table);
    const std::vector<int64_t> strides = row_major_strides(table_sizes);
    strided.push_back({cost(operand->table).data(), std::vector<int64_t>(axes.size(), 0)});
    ++word;
    for (size_t i = 0; i < table_sizes.size(); ++i, ++word) {
      strided.back().strides[key[word]] = strides[i];
      out_sizes[key[word]] = table_sizes[i];
    }
  }
  const std::vector<int64_t> space(out_sizes.begin(), out_sizes.end());
  std::vector<double> out(product(out_sizes));
  add_tables(space, strided, out.data());
  return known->second = store(std::move(out_sizes), std::move(out));
}

TableStore::Elimination TableStore::eliminate(int32_t variable,
                                              std::span<const ScopedTable* const> factors) {
  struct Entry {
    const ScopedTable* factor;
    int32_t axis;               // of the eliminated variable
    std::vector<int32_t> axes;  // the scope's numbers in the joint space
  };
  std::vector<Entry> entries;
  for (const ScopedTable* f : factors) entries.push_back({f, f->axis_of(variable), {}});
  const auto alike = [](const Entry& e) { return std::pair(e.factor->table, e.axis); };
  std::sort(entries.begin(), entries.end(),
            [&](const Entry& a, const Entry& b) { return alike(a) < alike(b); });

  // Number the variables as they appear. Entries that are alike so far are told apart by numbers
  // given already, and only then by the variables themselves.
  std::vector<int32_t> joint = {variable}, joint_sizes = {0};
  const auto number_of = [&](int32_t v) {
    return static_cast<int32_t>(std::find(joint.begin(), joint.end(), v) - joint.begin());
  };
  Key key;
  for (auto begin = entries.begin(); begin != entries.end();) {
    const auto end = std::find_if(begin, entries.end(),
                                  [&](const Entry& e) { return alike(e) != alike(*begin); });
    for (auto e = begin; e != end; ++e) {
      for (const int32_t v : e->factor->scope) e->axes.push_back(number_of(v));
    }
    std::sort(begin, end, [](const Entry& a, const Entry& b) {
      return std::tie(a.axes, a.factor->scope) < std::tie(b.axes, b.factor->scope);
    });
    for (; begin != end; ++begin) {
      const std::vector<int32_t>& scope = begin->factor->scope;
      const std::vector<int32_t>& scope_sizes = sizes(begin->factor->table);
      key.push_back(begin->factor->table);
      for (size_t i = 0; i < scope.size(); ++i) {
        const int32_t number = begin->axes[i] = number_of(scope[i]);
        if (number == static_cast<int32_t>(joint.size())) {
          joint.push_back(scope[i]);
          joint_sizes.push_back(0);
        }
        joint_sizes[number] = scope_sizes[i];
        key.push_back(number);
      }
    }
  }

  auto known = eliminations_.find(key);
  if (known == eliminations_.end()) {
    std::vector<Operand> operands;
    for (Entry& e : entries) operands.push_back({e.factor->table, std::move(e.axes)});
    known = eliminations_.emplace(std::move(key), compute(operands, joint_sizes)).first;
    ++statistics.tables_computed;
  } else {
    ++statistics.tables_reused;
  }
  const Eliminated& eliminated = known->second;
  Elimination result{{eliminated.table, {}}, eliminated.offset};
  for (const int32_t axis : eliminated.axes) result.factor.scope.push_back(joint[axis]);
  return result;
}

TableStore::Eliminated TableStore::compute(std::span<const Operand> operands,
                                           std::span<const int32_t> joint_sizes) {
  // A factor whose variables another has too is added to it first: that costs the larger one's
  // entries, where the minimum below costs the joint space's.
  struct Group {
    uint64_t variables = 0;  // bit i: joint axis i
    int64_t entries = 0;
    std::vector<const Operand*> members;
    bool has(int32_t axis) const { return variables >> axis & 1; }
  };
  const auto axes_count = static_cast<int32_t>(joint_sizes.size());
  CLEAVE_ASSERT(axes_count <= 64, "an elimination joins {} variables", axes_count);
  std::vector<const Operand*> by_width;
  for (const Operand& o : operands) by_width.push_back(&o);
  std::stable_sort(by_width.begin(), by_width.end(), [](const Operand* a, const Operand* b) {
    return a->axes.size() > b->axes.size();
  });
  std::vector<Group> groups;
  for (const Operand* o : by_width) {
    uint64_t variables = 0;
    for (const int32_t axis : o->axes) variables |= uint64_t{1} << axis;
    Group* smallest = nullptr;
    for (Group& g : groups) {
      const bool covers = (variables & ~g.variables) == 0;
      if (covers && (!smallest || g.entries < smallest->entries)) smallest = &g;
    }
    if (!smallest) {
      groups.push_back({variables, product(sizes(o->table)), {}});
      smallest = &groups.back();
    }
    smallest->members.push_back(o);
  }

  // Axes that the same groups have move together. The largest such bundle becomes the inner loop.
  struct Bundle {
    std::vector<int32_t> axes;
    int64_t size = 1;
  };
  std::vector<Bundle> bundles;
  for (int32_t axis = 1; axis < axes_count; ++axis) {
    auto same = std::find_if(bundles.begin(), bundles.end(), [&](const Bundle& b) {
      return std::all_of(groups.begin(), groups.end(),
                         [&](const Group& g) { return g.has(axis) == g.has(b.axes[0]); });
    });
    if (same == bundles.end()) same = bundles.insert(bundles.end(), Bundle{});
    same->axes.push_back(axis);
    same->size *= joint_sizes[axis];
  }
  Bundle inner;
  if (!bundles.empty()) {
    const auto largest =
        std::max_element(bundles.begin(), bundles.end(),
                         [](const Bundle& a, const Bundle& b) { return a.size < b.size; });
    inner = std::move(*largest);
    bundles.erase(largest);
    // The rows of the largest group that has it stay in cache while the loops it lacks run.
    const Group* rows = nullptr;
    for (const Group& g : groups) {
      if (g.has(inner.axes[0]) && (!rows || g.entries > rows->entries)) rows = &g;
    }
    std::stable_partition(bundles.begin(), bundles.end(),
                          [&](const Bundle& b) { return rows->has(b.axes[0]); });
  }

  const int64_t choices = joint_sizes[0];
  std::vector<MinimizedTable> tables;
  for (const Group& g : groups) {
    std::vector<int32_t> layout;  // the group's axes as the loops go: outer, eliminated, inner
    for (const Bundle& b : bundles) {
      if (g.has(b.axes[0])) layout.insert(layout.end(), b.axes.begin(), b.axes.end());
    }
    layout.push_back(0);
    const bool has_width = !inner.axes.empty() && g.has(inner.axes[0]);
    if (has_width) layout.insert(layout.end(), inner.axes.begin(), inner.axes.end());
    const TableId laid_out = sum(layout, g.members);

    std::vector<int64_t> outer_strides(bundles.size(), 0);
    int64_t stride = choices * (has_width ? inner.size : 1);
    for (size_t b = bundles.size(); b-- > 0;) {
      if (!g.has(bundles[b].axes[0])) continue;
      outer_strides[b] = stride;
      stride *= bundles[b].size;
    }
    tables.push_back({cost(laid_out).data(), std::move(outer_strides), has_width});
  }

  Eliminated result{-1, {}, 0};
  std::vector<int64_t> outer_sizes;
  std::vector<int32_t> result_sizes;
  bundles.push_back(inner);
  for (const Bundle& b : bundles) {
    outer_sizes.push_back(b.size);
    for (const int32_t axis : b.axes) {
      result.axes.push_back(axis);
      result_sizes.push_back(joint_sizes[axis]);
    }
  }
  outer_sizes.pop_back();
  std::vector<double> minimum(product(result_sizes));
  minimize_sum(outer_sizes, choices, inner.size, tables, minimum.data());
  statistics.work += static_cast<int64_t>(minimum.size()) * choices;
  statistics.largest_table =
      std::max(statistics.largest_table, static_cast<int64_t>(minimum.size()));

  // With its smallest entry taken out, a chain's table soon repeats from one link to the next,
  // and is then found again by its content.
  result.offset = *std::min_element(minimum.begin(), minimum.end());
  if (result.offset == kInfinity) return result;
  for (double& entry : minimum) entry -= result.offset;
  result.table = store(std::move(result_sizes), std::move(minimum));
  return result;
}

}  // namespace cleave
