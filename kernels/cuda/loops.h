// Loops over strided tensors and shards of factors as kernels take them: by value. The host makes
// them of kernels/loops.h's; the device calls their functions, and so do tests on the host.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "graph/error.h"
#include "kernels/cuda/divisor.h"
#include "kernels/loops.h"

namespace cleave {

// A LoopNest by value.
template <int N>
struct Loops {
  static constexpr int kMost = 8;
  int dims = 0;
  bool small = true;  // 31 bits are enough to count the elements, what a Divisor takes
  int64_t count = 1;  // of elements
  int64_t size[kMost] = {};
  Divisor divisors[kMost];  // by sizes
  int64_t step[kMost][N] = {};

  // Adds a loop inside the others.
  void add(int64_t n) {
    CLEAVE_ASSERT(dims < kMost, "more than {} loops", kMost);
    ++dims;
    resize_inner(n);
  }
  // Gives the innermost loop another size.
  void resize_inner(int64_t n) {
    const int last = dims - 1;
    size[last] = n;
    divisors[last] = n > 0 && n <= INT32_MAX ? Divisor(static_cast<uint32_t>(n)) : Divisor();
    count = 1;
    for (int d = 0; d < dims; ++d) count *= size[d];
    small = count <= INT32_MAX;
  }

  // The rest of i by the size of loop d, which becomes `index`. REQUIRES: 0 <= i < count.
  __device__ int64_t divided(int64_t i, int d, int64_t& index) const {
    const int64_t rest = small ? over(static_cast<uint32_t>(i), d) : over(i, d);
    index = i - rest * size[d];
    return rest;
  }

  // Where element i lies in each operand. REQUIRES: 0 <= i < count.
  __device__ void offsets(int64_t i, int64_t (&at)[N]) const {
    if (small) {
      small_offsets(static_cast<uint32_t>(i), at);
    } else {
      add_up(i, at);
    }
  }
  // The same. REQUIRES: small.
  __device__ void small_offsets(uint32_t i, int64_t (&at)[N]) const { add_up(i, at); }

 private:
  __device__ uint32_t over(uint32_t i, int d) const { return divisors[d].quotient(i); }
  __device__ int64_t over(int64_t i, int d) const { return i / size[d]; }

  // Not unrolled: loops are few, and a division of 64 bits, which is rare, is long.
  template <class Index>
  __device__ void add_up(Index i, int64_t (&at)[N]) const {
    for (int o = 0; o < N; ++o) at[o] = 0;
#ifdef __CUDACC__
#pragma unroll 1
#endif
    for (int d = dims - 1; d > 0; --d) {
      const Index rest = over(i, d), index = i - rest * static_cast<Index>(size[d]);
      for (int o = 0; o < N; ++o) at[o] += static_cast<int64_t>(index) * step[d][o];
      i = rest;
    }
    for (int o = 0; o < N; ++o) at[o] += static_cast<int64_t>(i) * step[0][o];  // 0 of no loops
  }
};

template <size_t N>
Loops<static_cast<int>(N)> loops_of(const LoopNest<N>& nest) {
  Loops<static_cast<int>(N)> loops;
  for (size_t d = 0; d < nest.sizes.size(); ++d) {
    loops.add(nest.sizes[d]);
    for (size_t o = 0; o < N; ++o) loops.step[d][o] = nest.steps[d][o];
  }
  return loops;
}

// The nest with its innermost loop going `length` elements at a time.
template <size_t N>
LoopNest<N> in_vectors(LoopNest<N> nest, int64_t length) {
  if (length == 1) return nest;
  nest.sizes.back() /= length;
  for (int64_t& step : nest.steps.back()) step *= length;
  return nest;
}

// An Extent by value. Each cut sees what the one before left in blocks, of which this shard has
// `chunk` elements from the first on.
struct Shard {
  static constexpr int kMost = 6;
  int64_t local = 1, global = 1;
  int cuts = 0;
  int64_t block[kMost] = {}, chunk[kMost] = {}, first[kMost] = {};

  // As Extent::position.
  __device__ int64_t position(int64_t i) const {
    for (int c = cuts - 1; c >= 0; --c) {
      const int64_t blocks = i / chunk[c];
      i = blocks * block[c] + first[c] + (i - blocks * chunk[c]);
    }
    return i;
  }
  // As local_index: -1 when the position is in another shard. REQUIRES: 0 <= position < global.
  __device__ int64_t own(int64_t position) const {
    int64_t i = position;
    for (int c = 0; c < cuts; ++c) {
      const int64_t blocks = i / block[c], within = i - blocks * block[c] - first[c];
      if (within < 0 || within >= chunk[c]) return -1;
      i = blocks * chunk[c] + within;
    }
    return i;
  }
};

inline Shard shard_of(const Extent& extent) {
  CLEAVE_ASSERT(extent.cuts.size() <= static_cast<size_t>(Shard::kMost), "{} cuts are too many",
                extent.cuts.size());
  Shard s{.local = extent.local, .global = extent.global};
  int64_t size = extent.global;
  for (const Cut& cut : extent.cuts) {
    const int c = s.cuts++;
    s.block[c] = size / cut.blocks;
    s.chunk[c] = s.block[c] / cut.parts;
    s.first[c] = s.chunk[c] * cut.index;
    size /= cut.parts;
  }
  return s;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The blocks of so many threads that count elements need, at most `most`.
inline unsigned blocks_for(int64_t count, int threads, int64_t most = INT32_MAX) {
  return static_cast<unsigned>(std::min(ceil_div(count, threads), most));
}

}  // namespace cleave
