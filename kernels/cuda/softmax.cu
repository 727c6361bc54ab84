// Softmax over one dimension, and its gradient. A row is read once when the registers of its
// threads hold it.
#include "kernels/cuda/rows.cuh"
#include "kernels/rows.h"

namespace cleave {
namespace {

template <class T>
struct Softmax {
  const T* x;
  T* y;
  Loops<2> rows;  // x, y
  int n;
  int64_t x_step, y_step;
};

template <class T, int N, int G>
__global__ void __launch_bounds__(kRowThreads<G>) softmax_of_rows(Softmax<T> s) {
  using A = Statistic<T>;
  __shared__ A shared[2][32];
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kRowThreads<G> / G) + threadIdx.x / G;
  if (r >= s.rows.count) return;
  int64_t at[2];
  s.rows.offsets(r, at);
  const RowPart<T, N, G> x(s.x + at[0], s.x_step, s.n, threadIdx.x % G);
  A top = static_cast<A>(-kInfinity);
  x.each([&](int, const Vec<T, N>& v) {
#pragma unroll
    for (int j = 0; j < N; ++j) top = Greater{}(top, number(v.x[j]));
  });
  top = over_group<G>(top, shared[0], Greater{});
  A sum = 0;
  x.each([&](int, const Vec<T, N>& v) {
#pragma unroll
    for (int j = 0; j < N; ++j) sum += exp_near(number(v.x[j]) - top);
  });
  const A scale = 1 / over_group<G>(sum, shared[1], Add{});
  x.each([&](int i, const Vec<T, N>& v) {
    Vec<T, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) out.x[j] = To<T>::of(exp_near(number(v.x[j]) - top) * scale);
    row_store(s.y + at[1], s.y_step, i, out);
  });
}

template <class T>
struct Backward {
  const T *y, *dy;
  T* dx;
  Loops<3> rows;  // y, dy, dx
  int n;
  int64_t y_step, dy_step, dx_step;
};

// dx = y (dy - sum(y dy)).
template <class T, int N, int G>
__global__ void __launch_bounds__(kRowThreads<G>) backward_of_rows(Backward<T> b) {
  using A = Statistic<T>;
  __shared__ A shared[32];
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kRowThreads<G> / G) + threadIdx.x / G;
  if (r >= b.rows.count) return;
  const int lane = threadIdx.x % G;
  int64_t at[3];
  b.rows.offsets(r, at);
  const RowPart<T, N, G> y(b.y + at[0], b.y_step, b.n, lane);
  const RowPart<T, N, G> dy(b.dy + at[1], b.dy_step, b.n, lane);
  A dot = 0;
  each_pair(y, dy, [&](int, const Vec<T, N>& y_v, const Vec<T, N>& dy_v) {
#pragma unroll
    for (int j = 0; j < N; ++j) dot += number(y_v.x[j]) * number(dy_v.x[j]);
  });
  dot = over_group<G>(dot, shared, Add{});
  each_pair(y, dy, [&](int i, const Vec<T, N>& y_v, const Vec<T, N>& dy_v) {
    Vec<T, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      out.x[j] = To<T>::of(number(y_v.x[j]) * (number(dy_v.x[j]) - dot));
    }
    row_store(b.dx + at[2], b.dx_step, i, out);
  });
}

}  // namespace

void softmax_cuda(const KernelArgs& args) {
  const int f = whole_factor(args.signature);
  const auto along = static_cast<size_t>(f);
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    const Shape x = in_strides(args, 0), y = out_strides(args, 0);
    const auto rows = nest_over<2>(args, factors_without(args.signature.outputs()[0], f), {x, y});
    const int64_t n = args.extents[along].local;
    if (rows.count() * n == 0) return;
    const Softmax<T> k = {args.in[0].as<const T>(),
                          args.out[0].as<T>(),
                          loops_of(rows),
                          static_cast<int>(n),
                          x[along],
                          y[along]};
    const bool wide =
        wide_rows<T>(rows, 0, k.x, k.x_step, n) && wide_rows<T>(rows, 1, k.y, k.y_step, n);
    with_row_shape<T>(wide, n, [&]<int N, int G>() {
      softmax_of_rows<T, N, G><<<row_blocks<G>(rows.count()), kRowThreads<G>, 0,
                                 static_cast<cudaStream_t>(args.stream)>>>(k);
    });
    cuda_check(cudaGetLastError());
  });
}

void softmax_backward_cuda(const KernelArgs& args) {
  const int f = whole_factor(args.signature);
  const auto along = static_cast<size_t>(f);
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    const Shape y = in_strides(args, 0), dy = in_strides(args, 1), dx = out_strides(args, 0);
    const auto rows =
        nest_over<3>(args, factors_without(args.signature.outputs()[0], f), {y, dy, dx});
    const int64_t n = args.extents[along].local;
    if (rows.count() * n == 0) return;
    const Backward<T> k = {args.in[0].as<const T>(),
                           args.in[1].as<const T>(),
                           args.out[0].as<T>(),
                           loops_of(rows),
                           static_cast<int>(n),
                           y[along],
                           dy[along],
                           dx[along]};
    const bool wide = wide_rows<T>(rows, 0, k.y, k.y_step, n) &&
                      wide_rows<T>(rows, 1, k.dy, k.dy_step, n) &&
                      wide_rows<T>(rows, 2, k.dx, k.dx_step, n);
    with_row_shape<T>(wide, n, [&]<int N, int G>() {
      backward_of_rows<T, N, G><<<row_blocks<G>(rows.count()), kRowThreads<G>, 0,
                                  static_cast<cudaStream_t>(args.stream)>>>(k);
    });
    cuda_check(cudaGetLastError());
  });
}

}  // namespace cleave
