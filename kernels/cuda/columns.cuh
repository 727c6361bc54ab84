// Sums over rows, column by column, of which each block has kept a part: the second stage.
#pragma once

#include "kernels/cuda/loops.cuh"

namespace cleave {

// Where the sums go.
struct Columns {
  static constexpr int kMost = 3;
  AnyFloat out[kMost];
  int64_t step[kMost] = {};
};

// to.out[s][column] = the sum of the partials, [count, sums, n], of sum s: blockIdx.y. By many
// threads: there is little to read, and what takes time is to wait for it.
inline constexpr int kPartialRows = 32;  // of a block's threads
template <class A>
__global__ void __launch_bounds__(32 * kPartialRows)
    add_partials_of(const A* partials, int count, int64_t n, Columns to) {
  __shared__ A shared[kPartialRows][32];
  const int x = threadIdx.x % 32, y = threadIdx.x / 32;
  const int64_t column = blockIdx.x * int64_t{32} + x, sums = gridDim.y;
  A sum = 0;
  if (column < n) {
#pragma unroll 4
    for (int p = y; p < count; p += kPartialRows)
      sum += partials[(p * sums + blockIdx.y) * n + column];
  }
  shared[y][x] = sum;
  __syncthreads();
  if (y > 0 || column >= n) return;
#pragma unroll
  for (int i = 1; i < kPartialRows; ++i) sum += shared[i][x];
  set(to.out[blockIdx.y], column * to.step[blockIdx.y], sum);
}

// Of each file by itself: the kernel is compiled for its GPUs.
template <class A>
static void add_partials(const A* partials, int64_t count, int64_t n, int sums, const Columns& to,
                         cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(ceil_div(n, 32)), static_cast<unsigned>(sums));
  add_partials_of<A>
      <<<blocks, 32 * kPartialRows, 0, stream>>>(partials, static_cast<int>(count), n, to);
  cuda_check(cudaGetLastError());
}
// Makes the results after the first, of n elements along this factor, of the partials.
template <class A>
static void add_partials(const KernelArgs& args, const A* partials, int64_t count, int64_t n,
                         int sums, size_t along) {
  Columns to;
  CLEAVE_ASSERT(sums <= Columns::kMost, "{} sums", sums);
  for (int s = 0; s < sums; ++s) {
    const auto o = static_cast<size_t>(s) + 1;
    to.out[s] = any_float(args.out[o]);
    to.step[s] = out_strides(args, o)[along];
  }
  add_partials(partials, count, n, sums, to, static_cast<cudaStream_t>(args.stream));
}

}  // namespace cleave
