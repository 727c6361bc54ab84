// Numbers of classes, such as the experts of tokens, placed class by class in the order in which
// they come, by one block: the same places every time, and those of the CPU.
#pragma once

#include <algorithm>

#include "kernels/cuda/rows.cuh"

namespace cleave {

inline constexpr int kCountingThreads = 1024;

// Counts that a block has room for in shared memory, beside a few other bytes.
inline constexpr int kMostCounts = 12000;

// Numbers that a block places.
inline constexpr int64_t kMostNumbers = 1 << 30;

// How many warps count apart from each other, each with `classes` counts, beside one of totals.
inline int counting_warps(int64_t classes) {
  if (2 * classes > kMostCounts) {
    fail("kernels for the GPU count {} classes at most, not {}", kMostCounts / 2, classes);
  }
  return static_cast<int>(std::min<int64_t>(kCountingThreads / 32, kMostCounts / classes - 1));
}

inline size_t counting_bytes(int warps, int64_t classes) {
  return sizeof(int) * static_cast<size_t>((warps + 1) * classes);
}

// How many of n numbers each of the warps takes: steps of 32.
__device__ inline int ceil_to_warps(int n, int warps) {
  return (n + warps * 32 - 1) / (warps * 32) * 32;
}

// Calls fn(i, class_of(i), before, members) for the numbers [begin, end), 32 at once, one a lane:
// `members` lanes of this step have this class, `before` of them below this lane. All lanes of a
// warp call fn together, those without a number with class -1.
template <class ClassOf, class Fn>
__device__ inline void in_steps(int begin, int end, const ClassOf& class_of, const Fn& fn) {
  constexpr int kAhead = 4;  // loads at once
  const int lane = threadIdx.x % 32;
  for (int first = begin; first < end; first += 32 * kAhead) {
    int classes[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int i = first + u * 32 + lane;
      classes[u] = i < end ? class_of(i) : -1;
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const unsigned same = __match_any_sync(0xffffffffu, classes[u]);
      fn(first + u * 32 + lane, classes[u], __popc(same & ((1u << lane) - 1)), __popc(same));
      __syncwarp();
    }
  }
}

// Calls place(i, class, rank) for every i in [0, n) whose class_of(i) is not -1: rank counts those
// of its class that come before it. Before that, `started` is called by all threads with the totals
// of all classes, in shared memory, which it may change when it synchronises the threads after
// that. `counts`: shared, (warps + 1) * classes of them.
template <class ClassOf, class Started, class Place>
__device__ inline void place_in_order(int n, int classes, int warps, int* counts,
                                      const ClassOf& class_of, const Started& started,
                                      const Place& place) {
  const int warp = threadIdx.x / 32;
  const int each = ceil_to_warps(n, warps);
  const int begin = warp < warps ? min(n, warp * each) : n, end = min(n, begin + each);
  int* const own = counts + min(warp, warps - 1) * classes;
  int* const totals = counts + warps * classes;
  for (int i = threadIdx.x; i < warps * classes; i += blockDim.x) counts[i] = 0;
  __syncthreads();
  in_steps(begin, end, class_of, [&](int, int c, int before, int members) {
    if (c >= 0 && before == 0) own[c] += members;
  });
  __syncthreads();
  for (int c = threadIdx.x; c < classes; c += blockDim.x) {
    int before = 0;
    for (int w = 0; w < warps; ++w) {
      const int count = counts[w * classes + c];
      counts[w * classes + c] = before;
      before += count;
    }
    totals[c] = before;
  }
  __syncthreads();
  started(totals);
  in_steps(begin, end, class_of, [&](int i, int c, int before, int members) {
    const int rank = c < 0 ? 0 : own[c] + before;
    __syncwarp();
    if (c >= 0 && before == 0) own[c] += members;
    if (c >= 0) place(i, c, rank);
  });
}

// Each number becomes the sum of those before it; returns the sum of all. Called by the block's
// threads together; the numbers are visible to all of them after it.
__device__ inline int sums_before(int* numbers, int n) {
  __shared__ int all;
  if (threadIdx.x < 32) {
    int carried = 0;
    for (int first = 0; first < n; first += 32) {
      const int i = first + static_cast<int>(threadIdx.x);
      const int own = i < n ? numbers[i] : 0;
      int sum = own;
#pragma unroll
      for (int width = 1; width < 32; width *= 2) {
        const int below = __shfl_up_sync(0xffffffffu, sum, width);
        if (static_cast<int>(threadIdx.x) >= width) sum += below;
      }
      if (i < n) numbers[i] = carried + sum - own;
      carried += __shfl_sync(0xffffffffu, sum, 31);
    }
    if (threadIdx.x == 0) all = carried;
  }
  __syncthreads();
  return all;
}

}  // namespace cleave
