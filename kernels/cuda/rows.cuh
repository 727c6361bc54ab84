// What kernels share that treat their operands row by row: a row in the registers of the threads
// that have it, and reductions over those threads.
#pragma once

#include "kernels/cuda/loops.cuh"

namespace cleave {

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

// Waits for the `threads` threads, two warps at least, of a group of the block, of which it has 15
// at most. compute-sanitizer's racecheck (CUDA 13.0) has reported races behind the block's next
// barrier where its groups had not met equally often.
__device__ inline void meet(int threads, int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "r"(threads) : "memory");
}

// Adds one number, or each of two, over the `threads` threads, whole warps and 16 at most, of a
// group of the block; the same in all of them. Groups of several warps meet(). Calls that follow
// each other take turns with two pieces of `shared`. Of two numbers, each half of a warp adds one.
template <int M, class A>
__device__ inline void over_threads(A (&x)[M], A (&shared)[M][32], int threads, int group) {
  static_assert(M == 1 || M == 2);
  const int lane = threadIdx.x % 32, half = M == 2 ? lane / 16 : 0;
  A sum = half == 0 ? x[0] : x[M - 1];
  sum += __shfl_xor_sync(~0u, half == 0 ? x[M - 1] : x[0], 16);
  sum = over_warp<16>(sum, Add{});
  if (threads > 32) {
    const int warps = threads / 32, first = group * warps;
    if (lane % (32 / M) == 0) shared[half][threadIdx.x / 32] = sum;
    meet(threads, group);
    sum = over_warp<16>(lane % 16 < warps ? shared[half][first + lane % 16] : A(0), Add{});
  }
  x[0] = sum;
  if constexpr (M == 2) {
    x[0] = __shfl_sync(~0u, sum, 0);
    x[1] = __shfl_sync(~0u, sum, 16);
  }
}

inline constexpr double kInfinity = __builtin_huge_val();

// --- Rows ----------------------------------------------------------------------------------------

// 16 bytes as they lie in memory: halves that wait for their turn take half as many registers so.
struct Raw {
  uint4 words;

  template <class T>
  static __device__ Raw at(const T* p) {
    return {*reinterpret_cast<const uint4*>(p)};
  }
  // These numbers, rounded to T.
  template <class T>
  static __device__ Raw of(const Statistic<T> (&x)[kWide<T>]) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 8) {
        words[i] = i % 2 == 0 ? __double2loint(x[i / 2]) : __double2hiint(x[i / 2]);
      } else if constexpr (sizeof(T) == 4) {
        words[i] = __float_as_uint(x[i]);
      } else {
        words[i] = pair<T>(x[2 * i], x[2 * i + 1]);
      }
    }
    return {{words[0], words[1], words[2], words[3]}};
  }
  // One store to global memory, where nvcc (CUDA 13.0) may make four of an assignment.
  template <class T>
  __device__ void store_at(T* p) const {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)),
                 "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
                 : "memory");
  }
  // Number j of those of type T; j is known when this is compiled.
  template <class T>
  __device__ Statistic<T> number_at(int j) const {
    const auto word = [&](int i) {
      return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
    };
    if constexpr (sizeof(T) == 8) {
      return __hiloint2double(static_cast<int>(word(2 * j + 1)), static_cast<int>(word(2 * j)));
    } else if constexpr (sizeof(T) == 4) {
      return __uint_as_float(word(j));
    } else {
      return number(T{static_cast<unsigned short>(word(j / 2) >> (j % 2 * 16))});
    }
  }
  // The larger of each two numbers of type T; of a number and NaN, the number.
  template <class T>
  __device__ Raw larger(const Raw& other) const {
    const auto both = [](unsigned a, unsigned b) {
      if constexpr (__is_same(T, bf16)) {
        asm("max.bf16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
      } else if constexpr (__is_same(T, f16)) {
        asm("max.f16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
      } else {
        a = __float_as_uint(fmaxf(__uint_as_float(a), __uint_as_float(b)));
      }
      return a;
    };
    if constexpr (sizeof(T) == 8) {
      const double x[2] = {fmax(number_at<T>(0), other.number_at<T>(0)),
                           fmax(number_at<T>(1), other.number_at<T>(1))};
      return of<T>(x);
    } else {
      return {{both(words.x, other.words.x), both(words.y, other.words.y),
               both(words.z, other.words.z), both(words.w, other.words.w)}};
    }
  }
  // The largest number of type T; NaN only if all are.
  template <class T>
  __device__ Statistic<T> largest() const {
    constexpr int kNumbers = kWide<T>;
    const Raw two = larger<T>({{words.z, words.w, words.x, words.y}});
    if constexpr (kNumbers == 2) return two.number_at<T>(0);
    const Raw one = two.larger<T>({{two.words.y, two.words.x, two.words.w, two.words.z}});
    if constexpr (kNumbers == 4) return one.number_at<T>(0);
    return fmaxf(one.number_at<T>(0), one.number_at<T>(1));
  }
};

// N elements of a row, whose elements are `step` apart when N is 1 and next to each other if not.
template <int N, class T>
__device__ inline Vec<T, N> row_load(const T* row, int64_t step, int v) {
  if constexpr (N > 1) return load<N>(row + static_cast<int64_t>(v) * N);
  return Vec<T, N>{{row[v * step]}};
}
template <int N, class T>
__device__ inline void row_store(T* row, int64_t step, int v, const Vec<T, N>& x) {
  if constexpr (N > 1) {
    store(row + static_cast<int64_t>(v) * N, x);
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
  int64_t step;
  int vectors, lane;
  Vec<T, N> kept[kKept];

  __device__ RowPart(const T* row, int64_t step, int n, int lane)
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
