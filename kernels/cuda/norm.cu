// Layer norm and RMS norm. Backward, a block goes through many rows and keeps its sums of the
// gradients of gamma and beta; a second kernel adds those of the blocks, in order.
#include "graph/op.h"
#include "kernels/cuda/rows.cuh"
#include "kernels/rows.h"

namespace cleave {
namespace {

// Blocks that each keep sums of columns: the multiprocessors of an H100. A constant, so that the
// same bits come out on every GPU.
constexpr int kPartials = 132;

// --- Forward -------------------------------------------------------------------------------------

template <class T>
struct Forward {
  const T *x, *gamma, *beta;
  T* y;
  Statistic<T>*mean, *rstd;
  Loops<4> rows;  // x, y, mean, rstd
  int n;
  int64_t x_step, gamma_step, beta_step, y_step;
  double eps;
};

// kLayer: of layer norm; otherwise of RMS norm, which has neither mean nor beta.
template <class T, int N, int G, bool kLayer>
__global__ void __launch_bounds__(kRowThreads<G>) norm(Forward<T> f) {
  using A = Statistic<T>;
  __shared__ A shared[2][32];
  const int lane = threadIdx.x % G;
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kRowThreads<G> / G) + threadIdx.x / G;
  if (r >= f.rows.count) return;
  int64_t at[4];
  f.rows.offsets(r, at);
  const RowPart<T, N, G> x(f.x + at[0], f.x_step, f.n, lane);
  A mean = 0;
  if constexpr (kLayer) {
    A sum = 0;
    x.each([&](int, const Vec<T, N>& v) {
#pragma unroll
      for (int j = 0; j < N; ++j) sum += number(v.x[j]);
    });
    mean = over_group<G>(sum, shared[0], Add{}) / static_cast<A>(f.n);
  }
  A squares = 0;
  x.each([&](int, const Vec<T, N>& v) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const A d = number(v.x[j]) - mean;
      squares += d * d;
    }
  });
  const A variance = over_group<G>(squares, shared[1], Add{}) / static_cast<A>(f.n);
  const A rstd = 1 / sqrt_of(variance + static_cast<A>(f.eps));
  T* const y = f.y + at[1];
  x.each([&](int i, const Vec<T, N>& v) {
    const auto gamma = row_load<N>(f.gamma, f.gamma_step, i);
    Vec<T, N> beta, out;
    if constexpr (kLayer) beta = row_load<N>(f.beta, f.beta_step, i);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      A h = (number(v.x[j]) - mean) * rstd * number(gamma.x[j]);
      if constexpr (kLayer) h += number(beta.x[j]);
      out.x[j] = To<T>::of(h);
    }
    row_store(y, f.y_step, i, out);
  });
  if (lane == 0) {
    if constexpr (kLayer) f.mean[at[2]] = mean;
    f.rstd[at[3]] = rstd;
  }
}

// --- Backward ------------------------------------------------------------------------------------

template <class T>
struct Backward {
  const T *dy, *x, *gamma;
  const Statistic<T>*mean, *rstd;
  T* dx;
  Loops<5> rows;  // dy, x, mean, rstd, dx
  int n;
  int64_t dy_step, x_step, gamma_step, dx_step;
  Statistic<T>* partials;  // [kPartials, kLayer ? 2 : 1, n]: sums for gamma, then for beta
};

// What a thread has of one row.
template <class T, int N, int K>
struct RowPair {
  Vec<T, N> dy[K], x[K];
  Statistic<T> mean, rstd;
  T* dx;
};

// Adds two numbers over the `threads` threads, whole warps, of a group of the block.
template <class A>
__device__ void over_threads(A& a, A& b, A* shared, int threads, int barrier) {
  a = over_warp(a, Add{});
  b = over_warp(b, Add{});
  if (threads == 32) return;
  const int lane = threadIdx.x % 32, warps = threads / 32, first = barrier * warps;
  if (lane == 0) {
    shared[threadIdx.x / 32] = a;
    shared[16 + threadIdx.x / 32] = b;
  }
  asm volatile("bar.sync %0, %1;" ::"r"(barrier + 1), "r"(threads) : "memory");
  a = over_warp<16>(lane % 16 < warps ? shared[first + lane % 16] : A(0), Add{});
  b = over_warp<16>(lane % 16 < warps ? shared[16 + first + lane % 16] : A(0), Add{});
}

// Dense rows of at most 512 * K vectors, by groups of `threads` threads, of which a block has some.
// While a group works on a row, its next one is on the way.
template <class T, int N, int K, bool kLayer>
__global__ void __launch_bounds__(512, 1) backward_of_rows(Backward<T> b, int threads) {
  using A = Statistic<T>;
  __shared__ A shared[2][32];
  extern __shared__ double2 columns_memory[];
  A* const columns = reinterpret_cast<A*>(columns_memory);  // [n]
  const int groups = blockDim.x / threads, group = threadIdx.x / threads;
  const int lane = threadIdx.x % threads, vectors = b.n / N;
  const auto each_vector = [&](auto fn) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (lane + k * threads < vectors) fn(k, lane + k * threads);
    }
  };
  const auto read = [&](int64_t r, RowPair<T, N, K>& row) {
    int64_t at[5];
    b.rows.offsets(r, at);
    each_vector([&](int k, int v) {
      row.dy[k] = row_load<N>(b.dy + at[0], 1, v);
      row.x[k] = row_load<N>(b.x + at[1], 1, v);
    });
    row.mean = kLayer ? b.mean[at[2]] : A(0);
    row.rstd = b.rstd[at[3]];
    row.dx = b.dx + at[4];
  };
  // The longest rows leave no registers for gamma, nor for a second row.
  constexpr bool kRoom = K < 4;
  Vec<T, N> kept_gamma[kRoom ? K : 1];
  if constexpr (kRoom) {
    each_vector([&](int k, int v) { kept_gamma[k] = row_load<N>(b.gamma, 1, v); });
  }
  const auto gamma_of = [&](int k, int v) {
    if constexpr (kRoom) return kept_gamma[k];
    return row_load<N>(b.gamma, 1, v);
  };
  A dgamma[K][N] = {}, dbeta[K][N] = {};
  const int64_t step = static_cast<int64_t>(gridDim.x) * groups;
  int64_t r = static_cast<int64_t>(blockIdx.x) * groups + group;
  RowPair<T, N, K> next;
  if (r < b.rows.count) read(r, next);
  for (int turn = 0; r < b.rows.count; turn ^= 1) {
    const RowPair<T, N, K> row = next;
    r += step;
    if (kRoom && r < b.rows.count) read(r, next);
    A g_sum = 0, gh_sum = 0;
    each_vector([&](int k, int v) {
      const auto gamma = gamma_of(k, v);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const A h = (number(row.x[k].x[j]) - row.mean) * row.rstd;
        const A g = number(row.dy[k].x[j]) * number(gamma.x[j]);
        if constexpr (kLayer) g_sum += g;
        gh_sum += g * h;
      }
    });
    over_threads(g_sum, gh_sum, shared[turn], threads, group);
    const A g_mean = g_sum / static_cast<A>(b.n), gh_mean = gh_sum / static_cast<A>(b.n);
    each_vector([&](int k, int v) {
      const auto gamma = gamma_of(k, v);
      Vec<T, N> out;
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const A h = (number(row.x[k].x[j]) - row.mean) * row.rstd;
        const A dy = number(row.dy[k].x[j]);
        out.x[j] = To<T>::of(row.rstd * (dy * number(gamma.x[j]) - g_mean - h * gh_mean));
        dgamma[k][j] += dy * h;
        if constexpr (kLayer) dbeta[k][j] += dy;
      }
      row_store(row.dx, 1, v, out);
    });
    if (!kRoom && r < b.rows.count) read(r, next);
  }
  // The block's groups, one after the other.
  constexpr int kSums = kLayer ? 2 : 1;
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    A* const to = b.partials + (static_cast<int64_t>(blockIdx.x) * kSums + s) * b.n;
    for (int turn = 0; turn < groups; ++turn) {
      if (turn == group) {
        each_vector([&](int k, int v) {
#pragma unroll
          for (int j = 0; j < N; ++j) {
            A sum = s == 0 ? dgamma[k][j] : dbeta[k][j];
            if (turn > 0) sum += columns[v * N + j];
            (turn + 1 == groups ? to : columns)[v * N + j] = sum;
          }
        });
      }
      __syncthreads();
    }
  }
}

// Rows that lie in any way, or are very long.
template <class T, int N, int G, bool kLayer>
__global__ void __launch_bounds__(kRowThreads<G>) backward_of_x(Backward<T> b) {
  using A = Statistic<T>;
  __shared__ A shared[2][32];
  const int lane = threadIdx.x % G;
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kRowThreads<G> / G) + threadIdx.x / G;
  if (r >= b.rows.count) return;
  int64_t at[5];
  b.rows.offsets(r, at);
  const RowPart<T, N, G> dy(b.dy + at[0], b.dy_step, b.n, lane);
  const RowPart<T, N, G> x(b.x + at[1], b.x_step, b.n, lane);
  const A mean = kLayer ? b.mean[at[2]] : A(0), rstd = b.rstd[at[3]];
  A g_sum = 0, gh_sum = 0;
  each_pair(dy, x, [&](int i, const Vec<T, N>& dy_v, const Vec<T, N>& x_v) {
    const auto gamma = row_load<N>(b.gamma, b.gamma_step, i);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const A g = number(dy_v.x[j]) * number(gamma.x[j]);
      if constexpr (kLayer) g_sum += g;
      gh_sum += g * ((number(x_v.x[j]) - mean) * rstd);
    }
  });
  A g_mean = 0;
  if constexpr (kLayer) g_mean = over_group<G>(g_sum, shared[0], Add{}) / static_cast<A>(b.n);
  const A gh_mean = over_group<G>(gh_sum, shared[1], Add{}) / static_cast<A>(b.n);
  each_pair(dy, x, [&](int i, const Vec<T, N>& dy_v, const Vec<T, N>& x_v) {
    const auto gamma = row_load<N>(b.gamma, b.gamma_step, i);
    Vec<T, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const A h = (number(x_v.x[j]) - mean) * rstd;
      const A g = number(dy_v.x[j]) * number(gamma.x[j]);
      out.x[j] = To<T>::of(rstd * (g - g_mean - h * gh_mean));
    }
    row_store(b.dx + at[4], b.dx_step, i, out);
  });
}

// The sums of 32 columns over some of the rows, for backward_of_x, which may overwrite dy.
template <class T, bool kLayer>
__global__ void __launch_bounds__(256) backward_of_gamma(Backward<T> b) {
  using A = Statistic<T>;
  __shared__ A shared[2][8][32];
  const int x = threadIdx.x % 32, y = threadIdx.x / 32, column = blockIdx.x * 32 + x;
  A dgamma = 0, dbeta = 0;
  if (column < b.n) {
    for (int64_t r = blockIdx.y * int64_t{8} + y; r < b.rows.count; r += kPartials * int64_t{8}) {
      int64_t at[5];
      b.rows.offsets(r, at);
      const A dy = number(b.dy[at[0] + column * b.dy_step]);
      const A mean = kLayer ? b.mean[at[2]] : A(0);
      dgamma += dy * ((number(b.x[at[1] + column * b.x_step]) - mean) * b.rstd[at[3]]);
      dbeta += dy;
    }
  }
  shared[0][y][x] = dgamma;
  shared[1][y][x] = dbeta;
  __syncthreads();
  constexpr int kSums = kLayer ? 2 : 1;
  if (y >= kSums || column >= b.n) return;
  A sum = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += shared[y][i][x];
  b.partials[(static_cast<int64_t>(blockIdx.y) * kSums + y) * b.n + column] = sum;
}

// out[column] = the sum of the partials, [count, sums, n], of sum number blockIdx.y.
template <class T>
__global__ void __launch_bounds__(512)
    add_partials(const Statistic<T>* partials, int count, int n, T* dgamma, int64_t gamma_step,
                 T* dbeta, int64_t beta_step) {
  using A = Statistic<T>;
  __shared__ A shared[16][32];
  const int x = threadIdx.x % 32, y = threadIdx.x / 32, column = blockIdx.x * 32 + x;
  const int64_t sums = gridDim.y;
  A sum = 0;
  if (column < n) {
#pragma unroll 4
    for (int p = y; p < count; p += 16) sum += partials[(p * sums + blockIdx.y) * n + column];
  }
  shared[y][x] = sum;
  __syncthreads();
  if (y > 0 || column >= n) return;
#pragma unroll
  for (int i = 1; i < 16; ++i) sum += shared[i][x];
  (blockIdx.y == 0 ? dgamma + column * gamma_step : dbeta + column * beta_step)[0] = To<T>::of(sum);
}

// --- Launchers -----------------------------------------------------------------------------------

template <bool kLayer>
void forward(const KernelArgs& args) {
  const int f = whole_factor(args.signature);
  const auto along = static_cast<size_t>(f);
  const auto stream = static_cast<cudaStream_t>(args.stream);
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    using A = Statistic<T>;
    const Shape x = in_strides(args, 0), gamma = in_strides(args, 1), y = out_strides(args, 0),
                rstd = out_strides(args, kLayer ? 2 : 1);
    const auto rows = nest_over<4>(args, factors_without(args.signature.outputs()[0], f),
                                   {x, y, kLayer ? out_strides(args, 1) : rstd, rstd});
    const int64_t n = args.extents[along].local;
    if (rows.count() == 0) return;
    Forward<T> k = {.x = args.in[0].as<const T>(),
                    .gamma = args.in[1].as<const T>(),
                    .beta = nullptr,
                    .y = args.out[0].as<T>(),
                    .mean = args.out[1].as<A>(),
                    .rstd = args.out[kLayer ? 2 : 1].as<A>(),
                    .rows = loops_of(rows),
                    .n = static_cast<int>(n),
                    .x_step = x[along],
                    .gamma_step = gamma[along],
                    .beta_step = 0,
                    .y_step = y[along],
                    .eps = args.attrs.real("eps")};
    bool wide = wide_rows<T>(rows, 0, k.x, k.x_step, n) &&
                wide_rows<T>(rows, 1, k.y, k.y_step, n) &&
                wide_rows<T, 1>({}, 0, k.gamma, k.gamma_step, n);
    if constexpr (kLayer) {
      k.beta = args.in[2].as<const T>(), k.beta_step = in_strides(args, 2)[along];
      wide = wide && wide_rows<T, 1>({}, 0, k.beta, k.beta_step, n);
    }
    with_row_shape<T>(wide, n, [&]<int N, int G>() {
      norm<T, N, G, kLayer><<<row_blocks<G>(rows.count()), kRowThreads<G>, 0, stream>>>(k);
    });
    cuda_check(cudaGetLastError());
  });
}

// How many vectors of a row a thread of backward_of_rows has; 0: the rows are too long for it.
int vectors_a_thread(int64_t vectors) {
  return vectors <= 256 ? 1 : vectors <= 1024 ? 2 : vectors <= 2048 ? 4 : 0;
}

template <bool kLayer>
void backward(const KernelArgs& args) {
  const int f = whole_factor(args.signature);
  const auto along = static_cast<size_t>(f);
  const auto stream = static_cast<cudaStream_t>(args.stream);
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    using A = Statistic<T>;
    const Shape dy = in_strides(args, 0), x = in_strides(args, 1), gamma = in_strides(args, 2),
                first = in_strides(args, 3), rstd = kLayer ? in_strides(args, 4) : first,
                dx = out_strides(args, 0);
    const auto rows = nest_over<5>(args, factors_without(args.signature.outputs()[0], f),
                                   {dy, x, first, rstd, dx});
    const int64_t n = args.extents[along].local;
    CLEAVE_ASSERT(n <= INT32_MAX, "rows of {} elements", n);
    const Backward<T> k = {.dy = args.in[0].as<const T>(),
                           .x = args.in[1].as<const T>(),
                           .gamma = args.in[2].as<const T>(),
                           .mean = args.in[3].as<const A>(),
                           .rstd = args.in[kLayer ? 4 : 3].as<const A>(),
                           .dx = args.out[0].as<T>(),
                           .rows = loops_of(rows),
                           .n = static_cast<int>(n),
                           .dy_step = dy[along],
                           .x_step = x[along],
                           .gamma_step = gamma[along],
                           .dx_step = dx[along],
                           .partials = static_cast<A*>(args.workspace)};
    const bool wide = wide_rows<T>(rows, 0, k.dy, k.dy_step, n) &&
                      wide_rows<T>(rows, 1, k.x, k.x_step, n) &&
                      wide_rows<T>(rows, 4, k.dx, k.dx_step, n) &&
                      wide_rows<T, 1>({}, 0, k.gamma, k.gamma_step, n);
    const int64_t vectors = n / kWide<T>;
    const int each = wide ? vectors_a_thread(vectors) : 0;
    int64_t partials = kPartials;
    if (rows.count() == 0 || n == 0) {
      partials = 0;
    } else if (each > 0) {
      const int threads = static_cast<int>(ceil_div(ceil_div(vectors, each), 32) * 32);
      const int groups = 512 / threads;
      partials = std::min(partials, ceil_div(rows.count(), groups));
      const auto go = [&]<int K>() {
        const auto kernel = backward_of_rows<T, kWide<T>, K, kLayer>;
        const size_t columns = groups > 1 ? static_cast<size_t>(n) * sizeof(A) : 0;
        kernel<<<static_cast<unsigned>(partials), static_cast<unsigned>(threads * groups), columns,
                 stream>>>(k, threads);
      };
      if (each == 1) go.template operator()<1>();
      if (each == 2) go.template operator()<2>();
      if (each == 4) go.template operator()<4>();
    } else {
      const dim3 blocks(static_cast<unsigned>(ceil_div(n, 32)), kPartials);
      backward_of_gamma<T, kLayer><<<blocks, 256, 0, stream>>>(k);
      with_row_shape<T>(wide, n, [&]<int N, int G>() {
        backward_of_x<T, N, G, kLayer>
            <<<row_blocks<G>(rows.count()), kRowThreads<G>, 0, stream>>>(k);
      });
    }
    cuda_check(cudaGetLastError());
    if (n == 0) return;
    const dim3 blocks(static_cast<unsigned>(ceil_div(n, 32)), kLayer ? 2 : 1);
    const size_t last = kLayer ? 2 : 1;
    add_partials<T><<<blocks, 512, 0, stream>>>(
        k.partials, static_cast<int>(partials), k.n, args.out[1].as<T>(),
        out_strides(args, 1)[along], args.out[last].as<T>(), out_strides(args, last)[along]);
    cuda_check(cudaGetLastError());
  });
}

template <int kSums>
int64_t partials_bytes(const OpCall& call) {
  const int64_t element = call.in[0].dtype == DType::kF64 ? 8 : 4;
  return kPartials * kSums * call.in[2].shape[0] * element;
}

}  // namespace

void layer_norm_cuda(const KernelArgs& args) { forward<true>(args); }
void rms_norm_cuda(const KernelArgs& args) { forward<false>(args); }
void layer_norm_backward_cuda(const KernelArgs& args) { backward<true>(args); }
void rms_norm_backward_cuda(const KernelArgs& args) { backward<false>(args); }
int64_t layer_norm_backward_cuda_workspace(const OpCall& call) { return partials_bytes<2>(call); }
int64_t rms_norm_backward_cuda_workspace(const OpCall& call) { return partials_bytes<1>(call); }

}  // namespace cleave
