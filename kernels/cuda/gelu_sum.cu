// The backward of GELU, with the sums of its result over rows: each block has some columns of some
// of the rows, and keeps its sums; a second kernel adds those of the blocks, in order.
#include <algorithm>

#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/workspace.h"
#include "kernels/rows.h"

namespace cleave {
namespace {

constexpr int kLanes = kGeluLanes, kRows = 8;  // a block's threads: along a row, and rows

template <class T>
struct GeluBackward {
  const T *x, *dy;
  T* dx;
  Loops<3> rows;  // x, dy, dx
  int64_t n;
  int64_t x_step, dy_step, dx_step;
  typename Sum<T>::Type* partials;  // [parts, n]
};

template <int N, class T>
__device__ Vec<T, N> columns_load(const T* row, int64_t step, int64_t v) {
  if constexpr (N > 1) return load<N>(row + v * N);
  return Vec<T, N>{{row[v * step]}};
}

// A thread has one vector of N columns, of every kRows-th row of the block's part.
template <class T, int N>
__global__ void __launch_bounds__(kLanes* kRows, 4) gelu_backward_columns(GeluBackward<T> g) {
  using A = typename Sum<T>::Type;
  __shared__ A shared[kRows][kLanes * N];
  const int lane = threadIdx.x % kLanes, y = threadIdx.x / kLanes;
  const int64_t v = blockIdx.x * int64_t{kLanes} + lane;
  A sums[N] = {};
  if (v < g.n / N) {
    const int64_t end = (blockIdx.y + 1) * g.rows.count / gridDim.y;
    constexpr int kAtOnce = 2;
    int64_t r = blockIdx.y * g.rows.count / gridDim.y + y;
    for (; r < end; r += kAtOnce * kRows) {
      Vec<T, N> x[kAtOnce], dy[kAtOnce];
      int64_t at[kAtOnce][3];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (r + k * kRows >= end) break;
        g.rows.offsets(r + k * kRows, at[k]);
        x[k] = columns_load<N>(g.x + at[k][0], g.x_step, v);
        dy[k] = columns_load<N>(g.dy + at[k][1], g.dy_step, v);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (r + k * kRows >= end) break;
        Vec<T, N> out;
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const A dx = number(dy[k].x[j]) * gelu_slope(number(x[k].x[j]));
          sums[j] += dx;
          out.x[j] = To<T>::of(dx);
        }
        T* const to = g.dx + at[k][2];
        if constexpr (N > 1) {
          store(to + v * N, out);
        } else {
          to[v * g.dx_step] = out.x[0];
        }
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
