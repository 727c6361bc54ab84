// What kernels share that treat their operands row by row: loops and shards as a kernel is handed
// them, a row in the registers of the threads that have it, and reductions over those threads.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "graph/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/prelude.cuh"
#include "kernels/loops.h"

namespace cleave {

// Calls fn with a zero of the element's type as kernels see it.
template <class Fn>
void with_gpu_float(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kF64: return fn(double{});
    case DType::kF32: return fn(float{});
    case DType::kBF16: return fn(bf16{});
    case DType::kF16: return fn(f16{});
    case DType::kI32: break;
  }
  CLEAVE_ASSERT(false, "no kernel for {} on the GPU", name_of(dtype));
}

// The memory of statistics of rows of T: double of double, float of all others.
template <class T>
using Statistic = typename Sum<T>::Type;

// Elements of T in 16 bytes.
template <class T>
inline constexpr int kWide = 16 / sizeof(T);

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// --- Loops ---------------------------------------------------------------------------------------

// A LoopNest by value.
template <int N>
struct Loops {
  static constexpr int kMost = 8;
  int dims = 0;
  long long count = 1;
  long long size[kMost] = {};
  long long step[kMost][N] = {};

  // Where element i lies in each operand.
  __device__ void offsets(long long i, long long (&at)[N]) const {
#pragma unroll
    for (int o = 0; o < N; ++o) at[o] = 0;
    for (int d = dims - 1; d > 0; --d) {
      // A division of 32 bits is several times faster.
      long long rest, index;
      if (i <= 0x7fffffff && size[d] <= 0x7fffffff) {
        const unsigned whole = static_cast<unsigned>(i), part = static_cast<unsigned>(size[d]);
        rest = whole / part;
        index = whole % part;
      } else {
        rest = i / size[d];
        index = i % size[d];
      }
#pragma unroll
      for (int o = 0; o < N; ++o) at[o] += index * step[d][o];
      i = rest;
    }
    if (dims > 0) {
#pragma unroll
      for (int o = 0; o < N; ++o) at[o] += i * step[0][o];
    }
  }
};

template <size_t N>
Loops<static_cast<int>(N)> loops_of(const LoopNest<N>& nest) {
  Loops<static_cast<int>(N)> loops;
  CLEAVE_ASSERT(nest.sizes.size() <= static_cast<size_t>(loops.kMost), "{} loops are too many",
                nest.sizes.size());
  loops.dims = static_cast<int>(nest.sizes.size());
  loops.count = nest.count();
  for (size_t d = 0; d < nest.sizes.size(); ++d) {
    loops.size[d] = nest.sizes[d];
    for (size_t o = 0; o < N; ++o) loops.step[d][o] = nest.steps[d][o];
  }
  return loops;
}

// Whether rows of n elements, `along` apart, can be moved 16 bytes at a time in operand o of the
// loops over rows.
template <class T, size_t N>
bool wide_rows(const LoopNest<N>& rows, size_t o, const void* data, int64_t along, int64_t n) {
  bool wide = along == 1 && n % kWide<T> == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  for (const auto& step : rows.steps) wide &= step[o] % kWide<T> == 0;
  return wide;
}

// --- Shards --------------------------------------------------------------------------------------

// An Extent by value.
struct Shard {
  static constexpr int kMost = 8;
  long long local = 1, global = 1;
  int cuts = 0;
  long long blocks[kMost] = {}, parts[kMost] = {}, index[kMost] = {};

  // As Extent::position.
  __device__ long long position(long long i) const {
    long long size = local;
    for (int c = cuts - 1; c >= 0; --c) {
      const long long chunk = size / blocks[c];
      i = (i / chunk) * chunk * parts[c] + index[c] * chunk + i % chunk;
      size *= parts[c];
    }
    return i;
  }
  // As local_index: -1 when the position is in another shard. REQUIRES: 0 <= position < global.
  __device__ long long own(long long position) const {
    long long i = position, size = global;
    for (int c = 0; c < cuts; ++c) {
      const long long block = size / blocks[c], chunk = block / parts[c], within = i % block;
      if (within / chunk != index[c]) return -1;
      i = i / block * chunk + within % chunk;
      size /= parts[c];
    }
    return i;
  }
};

inline Shard shard_of(const Extent& extent) {
  Shard s;
  CLEAVE_ASSERT(extent.cuts.size() <= static_cast<size_t>(Shard::kMost), "{} cuts are too many",
                extent.cuts.size());
  s.local = extent.local, s.global = extent.global;
  for (const Cut& cut : extent.cuts) {
    s.blocks[s.cuts] = cut.blocks, s.parts[s.cuts] = cut.parts, s.index[s.cuts] = cut.index;
    ++s.cuts;
  }
  return s;
}

// --- Reductions over threads ---------------------------------------------------------------------

struct Add {
  template <class A>
  __device__ A operator()(A a, A b) const {
    return a + b;
  }
};
struct Greater {
  template <class A>
  __device__ A operator()(A a, A b) const {
    return a < b ? b : a;
  }
};

// Over N lanes that follow each other, a power of two; the same in all of them.
template <int N = 32, class A, class Fn>
__device__ inline A over_warp(A x, Fn fn) {
#pragma unroll
  for (int width = N / 2; width > 0; width /= 2) x = fn(x, __shfl_xor_sync(0xffffffffu, x, width));
  return x;
}

// Over G threads that follow each other, a warp or the whole block; the same in all of them.
// `shared` has room for G / 32, and is used once.
template <int G, class A, class Fn>
__device__ inline A over_group(A x, A* shared, Fn fn) {
  x = over_warp(x, fn);
  if constexpr (G > 32) {
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = over_warp<G / 32>(shared[threadIdx.x % (G / 32)], fn);
  }
  return x;
}

inline constexpr double kInfinity = __builtin_huge_val();

// e^x to some 2^-22, of numbers that are not far above 0.
__device__ inline float exp_near(float x) { return __expf(x); }
__device__ inline double exp_near(double x) { return exp(x); }

// --- Rows ----------------------------------------------------------------------------------------

// N elements of a row, whose elements are `step` apart when N is 1 and next to each other if not.
template <int N, class T>
__device__ inline Vec<T, N> row_load(const T* row, long long step, int v) {
  if constexpr (N > 1) return load<N>(row + static_cast<long long>(v) * N);
  return Vec<T, N>{{row[v * step]}};
}
template <int N, class T>
__device__ inline void row_store(T* row, long long step, int v, const Vec<T, N>& x) {
  if constexpr (N > 1) {
    store(row + static_cast<long long>(v) * N, x);
  } else {
    row[v * step] = x.x[0];
  }
}

// What one of G threads has of a row: the first vectors in registers, and those after them, of rows
// that are longer, read anew.
template <class T, int N, int G>
struct RowPart {
  static constexpr int kKept = 4;
  const T* row;
  long long step;
  int vectors, lane;
  Vec<T, N> kept[kKept];

  __device__ RowPart(const T* row, long long step, int n, int lane)
      : row(row), step(step), vectors(n / N), lane(lane) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      if (lane + k * G < vectors) kept[k] = row_load<N>(row, step, lane + k * G);
    }
  }

  // Calls fn(index of the vector, vector), always in the same order.
  template <class Fn>
  __device__ void each(Fn fn) const {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      if (lane + k * G < vectors) fn(lane + k * G, kept[k]);
    }
    for (int v = lane + kKept * G; v < vectors; v += G) fn(v, row_load<N>(row, step, v));
  }
};

// Calls fn(index of the vector, vector of a, vector of b) for two rows of one size.
template <class T, int N, int G, class Fn>
__device__ inline void each_pair(const RowPart<T, N, G>& a, const RowPart<T, N, G>& b, Fn fn) {
#pragma unroll
  for (int k = 0; k < a.kKept; ++k) {
    if (a.lane + k * G < a.vectors) fn(a.lane + k * G, a.kept[k], b.kept[k]);
  }
  for (int v = a.lane + a.kKept * G; v < a.vectors; v += G) {
    fn(v, row_load<N>(a.row, a.step, v), row_load<N>(b.row, b.step, v));
  }
}

// The threads of a block of kernels with G threads a row.
template <int G>
inline constexpr int kRowThreads = G < 128 ? 128 : G;

// Calls fn.operator()<N, G>() with the vectors that fit and as many threads a row as fill most of
// them.
template <class T, class Fn>
void with_row_shape(bool wide, int64_t n, Fn&& fn) {
  CLEAVE_ASSERT(n <= INT32_MAX, "a row of {} elements", n);
  const int64_t vectors = wide ? n / kWide<T> : n;
  const auto with_group = [&]<int N>() {
    if (vectors <= 32 * 4) return fn.template operator()<N, 32>();
    if (vectors <= 128 * 4) return fn.template operator()<N, 128>();
    return fn.template operator()<N, 512>();
  };
  if (wide) return with_group.template operator()<kWide<T>>();
  return with_group.template operator()<1>();
}

template <int G>
unsigned row_blocks(int64_t rows) {
  return static_cast<unsigned>(ceil_div(rows, kRowThreads<G> / G));
}

}  // namespace cleave
