// Inner loops are over contiguous doubles. The minimum's value is enough (the choice is found
// again on the way back, for one entry a table), so that it is one add and one min an entry.
#include "planner/elimination_kernels.h"

#include <algorithm>
#include <limits>

namespace cleave {
namespace {

// Steps a row-major index and what depends on it linearly; false after the last one.
template <class Move>
bool advance(std::span<const int64_t> sizes, std::vector<int64_t>& index, Move move) {
  for (size_t axis = sizes.size(); axis-- > 0;) {
    if (++index[axis] < sizes[axis]) {
      move(axis, int64_t{1});
      return true;
    }
    move(axis, 1 - sizes[axis]);
    index[axis] = 0;
  }
  return false;
}

// best[j] = min(best[j], scalars[v] + rows[v * stride + j]), four v at a time so that best is
// loaded and stored once for four rows.
inline __attribute__((always_inline)) void min_plus_body(double* __restrict best, int64_t width,
                                                         const double* __restrict rows,
                                                         int64_t stride, const double* scalars,
                                                         int64_t choices) {
  const auto smaller = [](double a, double b) { return a < b ? a : b; };
  int64_t v = 0;
  for (; v + 4 <= choices; v += 4, rows += 4 * stride) {
    const double s0 = scalars[v], s1 = scalars[v + 1], s2 = scalars[v + 2], s3 = scalars[v + 3];
    const double *r1 = rows + stride, *r2 = r1 + stride, *r3 = r2 + stride;
    for (int64_t j = 0; j < width; ++j) {
      const double low = smaller(s0 + rows[j], s1 + r1[j]);
      const double high = smaller(s2 + r2[j], s3 + r3[j]);
      best[j] = smaller(best[j], smaller(low, high));
    }
  }
  for (; v < choices; ++v, rows += stride) {
    const double s = scalars[v];
    for (int64_t j = 0; j < width; ++j) best[j] = smaller(best[j], s + rows[j]);
  }
}

// excess[a, b] = max(excess[a, b], column[a] - column[b]). Two infinities leave it as it is, since
// a comparison with NaN is false.
inline __attribute__((always_inline)) void excess_body(const double* __restrict column,
                                                       int64_t size, double* __restrict excess) {
  for (int64_t a = 0; a < size; ++a, excess += size) {
    for (int64_t b = 0; b < size; ++b) {
      const double more = column[a] - column[b];
      excess[b] = excess[b] < more ? more : excess[b];
    }
  }
}

// The inner loops as compiled for one kind of machine. All give the same bits: they only add,
// subtract and compare.
struct InnerLoops {
  void (*min_plus)(double*, int64_t, const double*, int64_t, const double*, int64_t);
  void (*excess)(const double*, int64_t, double*);
};

void min_plus_portable(double* best, int64_t width, const double* rows, int64_t stride,
                       const double* scalars, int64_t choices) {
  min_plus_body(best, width, rows, stride, scalars, choices);
}
void excess_portable(const double* column, int64_t size, double* excess) {
  excess_body(column, size, excess);
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx2"))) void min_plus_avx2(double* best, int64_t width, const double* rows,
                                                   int64_t stride, const double* scalars,
                                                   int64_t choices) {
  min_plus_body(best, width, rows, stride, scalars, choices);
}
__attribute__((target("avx2"))) void excess_avx2(const double* column, int64_t size,
                                                 double* excess) {
  excess_body(column, size, excess);
}

InnerLoops inner_loops() {
  if (__builtin_cpu_supports("avx2")) return {min_plus_avx2, excess_avx2};
  return {min_plus_portable, excess_portable};
}
#else
InnerLoops inner_loops() { return {min_plus_portable, excess_portable}; }
#endif

}  // namespace

void add_tables(std::span<const int64_t> sizes, std::span<const StridedTable> tables, double* out) {
  if (sizes.empty()) {
    *out = 0;
    for (const StridedTable& t : tables) *out += *t.data;
    return;
  }
  const auto outer = sizes.first(sizes.size() - 1);
  const int64_t width = sizes.back();
  std::vector<int64_t> index(outer.size(), 0);
  std::vector<const double*> at;
  for (const StridedTable& t : tables) at.push_back(t.data);
  do {
    for (size_t i = 0; i < tables.size(); ++i) {
      const double* row = at[i];
      const int64_t step = tables[i].strides.back();
      if (i == 0) {
        for (int64_t j = 0; j < width; ++j) out[j] = row[j * step];
      } else if (step == 1) {
        for (int64_t j = 0; j < width; ++j) out[j] += row[j];
      } else {
        for (int64_t j = 0; j < width; ++j) out[j] += row[j * step];
      }
    }
    out += width;
  } while (advance(outer, index, [&](size_t axis, int64_t steps) {
    for (size_t i = 0; i < tables.size(); ++i) at[i] += steps * tables[i].strides[axis];
  }));
}

void minimize_sum(std::span<const int64_t> outer_sizes, int64_t choices, int64_t width,
                  std::span<const MinimizedTable> tables, double* out) {
  const auto min_plus = inner_loops().min_plus;
  // Some table has the width, if it is not 1. Rows of a block stay in the first cache while the
  // choices go past.
  const int64_t block = std::max<int64_t>(64, 4096 / choices);
  std::vector<const double*> at;
  std::vector<size_t> wide, narrow;
  for (size_t i = 0; i < tables.size(); ++i) {
    at.push_back(tables[i].data);
    (tables[i].has_width ? wide : narrow).push_back(i);
  }
  const std::vector<double> zeros(choices, 0.0);
  std::vector<double> scalar_sum(narrow.size() > 1 ? choices : 0);
  std::vector<double> row_sum(wide.size() > 1 ? choices * block : 0);
  std::vector<int64_t> index(outer_sizes.size(), 0);
  do {
    const double* scalars = narrow.empty() ? zeros.data() : at[narrow[0]];
    if (narrow.size() > 1) {
      std::copy_n(scalars, choices, scalar_sum.begin());
      for (size_t i = 1; i < narrow.size(); ++i) {
        const double* more = at[narrow[i]];
        for (int64_t v = 0; v < choices; ++v) scalar_sum[v] += more[v];
      }
      scalars = scalar_sum.data();
    }
    for (int64_t begin = 0; begin < width; begin += block) {
      const int64_t length = std::min(block, width - begin);
      const double* rows = (wide.empty() ? zeros.data() : at[wide[0]]) + begin;
      int64_t stride = width;
      if (wide.size() > 1) {
        for (int64_t v = 0; v < choices; ++v) {
          double* sum = row_sum.data() + v * length;
          const double* first = at[wide[0]] + v * width + begin;
          const double* second = at[wide[1]] + v * width + begin;
          for (int64_t j = 0; j < length; ++j) sum[j] = first[j] + second[j];
          for (size_t i = 2; i < wide.size(); ++i) {
            const double* more = at[wide[i]] + v * width + begin;
            for (int64_t j = 0; j < length; ++j) sum[j] += more[j];
          }
        }
        rows = row_sum.data();
        stride = length;
      }
      for (int64_t j = 0; j < length; ++j) out[begin + j] = scalars[0] + rows[j];
      min_plus(out + begin, length, rows + stride, stride, scalars + 1, choices - 1);
    }
    out += width;
  } while (advance(outer_sizes, index, [&](size_t axis, int64_t steps) {
    for (size_t i = 0; i < tables.size(); ++i) at[i] += steps * tables[i].outer_strides[axis];
  }));
}

void most_excess(const double* in, int64_t before, int64_t size, int64_t after, double* excess) {
  const auto update = inner_loops().excess;
  std::fill_n(excess, size * size, -std::numeric_limits<double>::infinity());
  std::vector<double> column(size);
  for (int64_t i = 0; i < before; ++i, in += size * after) {
    for (int64_t j = 0; j < after; ++j) {
      for (int64_t a = 0; a < size; ++a) column[a] = in[a * after + j];
      update(column.data(), size, excess);
    }
  }
}

void slice_axis(const double* in, int64_t before, int64_t size, int64_t after,
                std::span<const int32_t> keep, double* out) {
  for (int64_t i = 0; i < before; ++i, in += size * after) {
    for (const int32_t k : keep) out = std::copy_n(in + k * after, after, out);
  }
}

}  // namespace cleave
