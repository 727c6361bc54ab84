#include "executor/reduce.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "graph/error.h"

namespace cleave {
namespace {

constexpr int64_t kBlock = 512;  // elements that are combined at a time, in the first-level cache

template <class T>
T larger(T a, T b) {
  return b > a || b != b ? b : a;
}

template <class T>
void reduce_block(Reduction reduction, std::span<const std::byte* const> in, int64_t first,
                  int64_t n, T* out) {
  const auto part = [&](size_t rank) { return reinterpret_cast<const T*>(in[rank]) + first; };
  std::array<T, kBlock> result;
  std::copy_n(part(0), n, result.begin());
  for (size_t r = 1; r < in.size(); ++r) {
    const T* p = part(r);
    if (reduction == Reduction::kSum) {
      for (int64_t i = 0; i < n; ++i) result[static_cast<size_t>(i)] += p[i];
    } else {
      for (int64_t i = 0; i < n; ++i) {
        result[static_cast<size_t>(i)] = larger(result[static_cast<size_t>(i)], p[i]);
      }
    }
  }
  if (reduction == Reduction::kLogSumExp) {
    for (int64_t i = 0; i < n; ++i) {
      T& x = result[static_cast<size_t>(i)];
      if (std::isinf(x)) continue;  // all are -inf, or one is +inf
      T sum = 0;
      for (size_t r = 0; r < in.size(); ++r) sum += std::exp(part(r)[i] - x);
      x += std::log(sum);
    }
  }
  std::copy_n(result.begin(), n, out + first);
}

template <class T>
void reduce_all(Reduction reduction, std::span<const std::byte* const> in, T* out, int64_t n) {
  for (int64_t i = 0; i < n; i += kBlock) {
    reduce_block(reduction, in, i, std::min(kBlock, n - i), out);
  }
}

}  // namespace

void reduce(Reduction reduction, DType dtype, std::span<const std::byte* const> in, std::byte* out,
            int64_t n) {
  switch (dtype) {
    case DType::kF32: return reduce_all(reduction, in, reinterpret_cast<float*>(out), n);
    case DType::kF64: return reduce_all(reduction, in, reinterpret_cast<double*>(out), n);
    default: CLEAVE_ASSERT(false, "no reduction of {} on the CPU", name_of(dtype));
  }
}

}  // namespace cleave
