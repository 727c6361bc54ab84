// The arithmetic of elimination on plain row-major arrays: adding tables of different shapes, and
// the minimum over one variable of a sum.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace cleave {

// A table seen from a larger space: how far one step along each axis of the space moves in it,
// zero along an axis that it does not have.
struct StridedTable {
  const double* data;
  std::vector<int64_t> strides;
};

// out[i] = sum over the tables of table[i], for every i of the row-major space `sizes`.
void add_tables(std::span<const int64_t> sizes, std::span<const StridedTable> tables, double* out);

// One summand of minimize_sum: its last axes are [choices] or [choices, width], contiguous.
struct MinimizedTable {
  const double* data;
  std::vector<int64_t> outer_strides;
  bool has_width;
};

// out[o, j] = min over v of the sum over the tables of table[o, v, j], with o in the row-major
// space `outer_sizes`, v < choices, j < width.
void minimize_sum(std::span<const int64_t> outer_sizes, int64_t choices, int64_t width,
                  std::span<const MinimizedTable> tables, double* out);

// excess[a, b] = max over i and j of (in[i, a, j] - in[i, b, j]), with i < before, a and b < size,
// j < after; where both are +infinity nothing is counted.
void most_excess(const double* in, int64_t before, int64_t size, int64_t after, double* excess);

// out[i, k, j] = in[i, keep[k], j], with i < before, j < after and `size` entries between.
void slice_axis(const double* in, int64_t before, int64_t size, int64_t after,
                std::span<const int32_t> keep, double* out);

}  // namespace cleave
