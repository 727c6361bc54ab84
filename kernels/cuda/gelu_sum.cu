// The backward of GELU, with the sums of its result over rows: each block has some columns of some
// of the rows, and keeps its sums; a second kernel adds those of the blocks, in order.
#include <algorithm>

#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/workspace.h"
#include "kernels/rows.h"

namespace cleave {
namespace {

constexpr int kLanes = kGeluLanes, kRows = 16;  // a block's threads: along a row, and rows

template <class T>
struct GeluBackward {
  const T *x, *dy;
  T* dx;
  Loops<3> rows;  // x, dy, dx
  int64_t n;
  int64_t x_step, dy_step, dx_step;
  typename Sum<T>::Type* partials;  // [parts, n]
};

// A thread has one vector of N columns, of every kRows-th row of the block's part; while it works
// on some, its next ones are on the way.
template <class T, int N>
__global__ void __launch_bounds__(kLanes* kRows, 2) gelu_backward_columns(GeluBackward<T> g) {
  using A = typename Sum<T>::Type;
  __shared__ A shared[kRows][kLanes * N];
  const int lane = threadIdx.x % kLanes, y = threadIdx.x / kLanes;
  const int64_t v = blockIdx.x * int64_t{kLanes} + lane;
  A sums[N] = {};
  if (v < g.n / N) {
    const int64_t end = (blockIdx.y + 1) * g.rows.count / gridDim.y;
    constexpr int kAtOnce = 2;
    const auto column = [&](int64_t step) { return N > 1 ? v * N : v * step; };
    RawOf<T, N> next_x[kAtOnce], next_dy[kAtOnce];
    int64_t next_to[kAtOnce] = {};
    const auto read = [&](int64_t r) {
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (r + k * kRows >= end) break;
        int64_t at[3];
        g.rows.offsets(r + k * kRows, at);
        next_x[k] = RawOf<T, N>::at(g.x + at[0] + column(g.x_step));
        next_dy[k] = RawOf<T, N>::at(g.dy + at[1] + column(g.dy_step));
        next_to[k] = at[2] + column(g.dx_step);
      }
    };
    int64_t r = blockIdx.y * g.rows.count / gridDim.y + y;
    read(r);
    while (r < end) {
      RawOf<T, N> x[kAtOnce], dy[kAtOnce];
      int64_t to[kAtOnce];
      bool mine[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        x[k] = next_x[k], dy[k] = next_dy[k], to[k] = next_to[k];
        mine[k] = r + k * kRows < end;
      }
      r += kAtOnce * kRows;
      read(r);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (!mine[k]) break;
        Vec<T, N> out;
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const A dx = dy[k].template number_at<T>(j) * gelu_slope(x[k].template number_at<T>(j));
          sums[j] += dx;
          out.x[j] = To<T>::of(dx);
        }
        store(g.dx + to[k], out);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < N; ++j) shared[y][lane * N + j] = sums[j];
  __syncthreads();
  const int64_t column = blockIdx.x * int64_t{kLanes * N} + threadIdx.x;
  if (threadIdx.x >= kLanes * N || column >= g.n) return;
  A sum = 0;
#pragma unroll
  for (int i = 0; i < kRows; ++i) sum += shared[i][threadIdx.x];
  g.partials[blockIdx.y * g.n + column] = sum;
}

// The parts that rows are divided into, when each block has so many columns.
int64_t parts_of(int64_t rows, int64_t n, int64_t columns) {
  const int64_t across = std::max<int64_t>(ceil_div(n, columns), 1);
  return std::clamp<int64_t>(kGeluBlocks / across, 1, std::max<int64_t>(ceil_div(rows, kRows), 1));
}

}  // namespace

void generated_cuda(const KernelArgs& args);  // pointwise.cc

void gelu_backward_cuda(const KernelArgs& args) {
  if (args.out.size() == 1) return generated_cuda(args);
  const int f = args.signature.outputs()[1][0][0];
  const auto along = static_cast<size_t>(f);
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    using A = typename Sum<T>::Type;
    const Shape x = in_strides(args, 0), dy = in_strides(args, 1), dx = out_strides(args, 0);
    const auto rows =
        nest_over<3>(args, factors_without(args.signature.outputs()[0], f), {x, dy, dx});
    const GeluBackward<T> g = {.x = args.in[0].as<const T>(),
                               .dy = args.in[1].as<const T>(),
                               .dx = args.out[0].as<T>(),
                               .rows = loops_of(rows),
                               .n = args.extents[along].local,
                               .x_step = x[along],
                               .dy_step = dy[along],
                               .dx_step = dx[along],
                               .partials = static_cast<A*>(args.workspace)};
    if (g.n == 0) return;
    const bool wide = wide_rows<T>(rows, 0, g.x, g.x_step, g.n) &&
                      wide_rows<T>(rows, 1, g.dy, g.dy_step, g.n) &&
                      wide_rows<T>(rows, 2, g.dx, g.dx_step, g.n);
    const int64_t columns = wide ? kLanes * kWide<T> : kLanes;
    const int64_t parts = parts_of(rows.count(), g.n, columns);
    const dim3 blocks(static_cast<unsigned>(ceil_div(g.n, columns)), static_cast<unsigned>(parts));
    const auto stream = static_cast<cudaStream_t>(args.stream);
    if (wide) {
      gelu_backward_columns<T, kWide<T>><<<blocks, kLanes * kRows, 0, stream>>>(g);
    } else {
      gelu_backward_columns<T, 1><<<blocks, kLanes * kRows, 0, stream>>>(g);
    }
    cuda_check(cudaGetLastError());
    add_partials<A>(args, g.partials, parts, g.n, 1, along);
  });
}

}  // namespace cleave
