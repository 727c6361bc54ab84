// Layer norm and RMS norm. Backward, a block goes through many rows and keeps its sums of the
// gradients of gamma and beta; a second kernel adds those of the blocks, in order.
#include <algorithm>

#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/workspace.h"
#include "kernels/rows.h"

namespace cleave {
namespace {

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

// Dense rows, evenly apart, of which each of G threads has K vectors at most: a row is read once,
// whole. kLayer: of layer norm; otherwise of RMS norm, which has neither mean nor beta. 8 blocks of
// 128 threads leave each 64 registers.
template <class T, int N, int K, int G, bool kLayer>
__global__ void __launch_bounds__(kRowThreads<G>, 8) forward_of_rows(Forward<T> f) {
  using A = Statistic<T>;
  __shared__ A shared[2][32];
  const int lane = threadIdx.x % G, vectors = f.n / N;
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kRowThreads<G> / G) + threadIdx.x / G;
  if (r >= f.rows.count) return;
  // Where the row begins in operand o.
  const auto at = [&](int o) { return r * f.rows.step[0][o]; };
  const auto each_vector = [&](auto fn) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (lane + k * G < vectors) fn(k, lane + k * G);
    }
  };
  Raw read[K];
  each_vector([&](int k, int v) { read[k] = Raw::at(f.x + at(0) + v * N); });
  A mean = 0;
  if constexpr (kLayer) {
    A sum = 0;
    each_vector([&](int k, int) {
#pragma unroll
      for (int j = 0; j < N; ++j) sum += read[k].template number_at<T>(j);
    });
    mean = over_group<G>(sum, shared[0], Add{}) / static_cast<A>(f.n);
  }
  const auto number_of = [&](int k, int j) {
    const A x = read[k].template number_at<T>(j);
    if constexpr (kLayer) return x - mean;
    return x;
  };
  A squares = 0;
  each_vector([&](int k, int) {
#pragma unroll
    for (int j = 0; j < N; ++j) squares += number_of(k, j) * number_of(k, j);
  });
  const A variance = over_group<G>(squares, shared[1], Add{}) / static_cast<A>(f.n);
  const A rstd = 1 / sqrt_of(variance + static_cast<A>(f.eps));
  each_vector([&](int k, int v) {
    const Raw gamma = Raw::at(f.gamma + v * N);
    Raw beta;
    if constexpr (kLayer) beta = Raw::at(f.beta + v * N);
    A out[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      out[j] = number_of(k, j) * rstd * gamma.template number_at<T>(j);
      if constexpr (kLayer) out[j] += beta.template number_at<T>(j);
    }
    Raw::of<T>(out).store_at(f.y + at(1) + v * N);
  });
  if (lane == 0) {
    if constexpr (kLayer) f.mean[at(2)] = mean;
    f.rstd[at(3)] = rstd;
  }
}

// Rows that lie in any way, or are very long.
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
  const T* residual;  // added to dx; may be null
  T* dx;
  Loops<6> rows;  // dy, x, mean, rstd, dx, residual
  // Of backward_of_rows: from a row to its group's next one, in elements.
  unsigned ahead, statistics_ahead;
  int n;
  int64_t dy_step, x_step, gamma_step, dx_step, residual_step;
  // [blocks, sums, n]: sums for gamma, for beta (of layer norm) and of dx (where it is asked for)
  Statistic<T>* partials;
  int sums;
};

// What a thread has of one row.
template <class T, int K, bool kMore>
struct RowPair {
  Raw dy[K], x[K], residual[kMore ? K : 1];
  Statistic<T> mean, rstd;
};

// The threads of a block of backward_of_rows, of which a multiprocessor has one at a time: rows of
// which a thread has one vector leave registers for so many that enough of them are on the way.
template <int K>
constexpr int kBackwardThreads = K == 1 ? 768 : 512;

// Dense rows of at most 512 * K vectors, evenly apart, by groups of `threads` threads, of which a
// block has some. kMore: with a residual or the sum of dx. Once a group has a row, its next one is
// on the way; not before, and no more than one: multiprocessors that read further ahead slow down
// others, and all are waited for. For K = 4 there is room for one row. REQUIRES: are_alike().
template <class T, int N, int K, bool kLayer, bool kMore>
__global__ void __launch_bounds__(kBackwardThreads<K>, 1)
    backward_of_rows(Backward<T> b, int threads) {
  using A = Statistic<T>;
  static_assert(kBackwardThreads<K> / 64 <= 15);  // meet
  constexpr int kMeans = kLayer ? 2 : 1;
  __shared__ A shared[2][kMeans][32];
  extern __shared__ double2 columns_memory[];
  A* const columns = reinterpret_cast<A*>(columns_memory);  // [groups, sums, n], of some groups
  const int groups = blockDim.x / threads, group = threadIdx.x / threads;
  const int lane = threadIdx.x % threads, vectors = b.n / N;
  const auto each_vector = [&](auto fn) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (lane + k * threads < vectors) fn(k, lane + k * threads);
    }
  };
  // Rows `step` apart from `begin` on, and how many of them group g has.
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * groups;
  const int64_t step = static_cast<int64_t>(gridDim.x) * groups;
  const auto turns_of = [&](int g) {
    const int64_t left = b.rows.count - begin - g;
    return left <= 0 ? 0 : static_cast<int>((left + step - 1) / step);
  };
  // Of the group's row: where this thread's first vector is, and where its statistics are.
  unsigned at = static_cast<unsigned>((begin + group) * b.rows.step[0][0]) + lane * N;
  unsigned of_row = static_cast<unsigned>((begin + group) * b.rows.step[0][3]);
  // Reads the row `turns` turns later. Vectors behind its end stay 0: they add nothing to the
  // row's sums, and what they add to those of columns is not stored.
  const auto read = [&](RowPair<T, K, kMore>& row, unsigned turns) {
    const unsigned from = at + turns * b.ahead, statistics = of_row + turns * b.statistics_ahead;
    each_vector([&](int k, int) {
      row.dy[k] = Raw::at(b.dy + (from + k * threads * N));
      row.x[k] = Raw::at(b.x + (from + k * threads * N));
      if (kMore && b.residual != nullptr) {
        row.residual[k] = Raw::at(b.residual + (from + k * threads * N));
      }
    });
    if constexpr (kLayer) row.mean = b.mean[statistics];
    row.rstd = b.rstd[statistics];
  };
  // Longer rows leave no registers for gamma, and the longest none for a second row.
  constexpr bool kRoom = K < 4, kKeepGamma = K <= 2 && !kMore;
  Raw kept_gamma[kKeepGamma ? K : 1] = {};
  if constexpr (kKeepGamma) {
    each_vector([&](int k, int v) { kept_gamma[k] = Raw::at(b.gamma + v * N); });
  }
  const auto gamma_of = [&](int k) {
    if constexpr (kKeepGamma) return kept_gamma[k];
    const int v = lane + k * threads;
    return Raw::at(b.gamma + (K == 1 ? min(v, vectors - 1) : v) * N);
  };
  // A branch around a vector keeps the compiler from sharing numbers between the passes, and so
  // from spilling them; where there is room for them, it takes fewer instructions without.
  const auto each_own = [&](auto fn) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if ((K == 1 && !kLayer) || lane + k * threads < vectors) fn(k);
    }
  };
  A dgamma[K][N] = {}, dbeta[K][N] = {}, dx_sum[K][N] = {};
  const A share = 1 / static_cast<A>(b.n);
  // dx = rstd (g - mean of g - h mean of (g h)), g = dy gamma, h = (x - mean) rstd.
  const auto work = [&](const RowPair<T, K, kMore>& row, A(&room)[kMeans][32]) {
    const auto centred = [&](int k, int j) {
      const A x = row.x[k].template number_at<T>(j);
      if constexpr (kLayer) return x - row.mean;
      return x;
    };
    A sums[kMeans] = {};  // of g (x - mean), and of g
    each_own([&](int k) {
      const Raw gamma = gamma_of(k);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const A g = row.dy[k].template number_at<T>(j) * gamma.template number_at<T>(j);
        sums[0] += g * centred(k, j);
        if constexpr (kLayer) sums[1] += g;
      }
    });
    over_threads(sums, room, threads, group);
    const A of_h = -row.rstd * (sums[0] * row.rstd * share);
    const A of_all = kLayer ? -row.rstd * (sums[kMeans - 1] * share) : A(0);
    each_own([&](int k) {
      const Raw gamma = gamma_of(k);
      A out[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const A h = centred(k, j) * row.rstd, dy = row.dy[k].template number_at<T>(j);
        out[j] = row.rstd * (dy * gamma.template number_at<T>(j)) + (h * of_h + of_all);
        if constexpr (kMore) {
          out[j] += row.residual[k].template number_at<T>(j);
          dx_sum[k][j] += out[j];
        }
        dgamma[k][j] += dy * h;
        if constexpr (kLayer) dbeta[k][j] += dy;
      }
      if (lane + k * threads < vectors) {
        Raw::of<T>(out).store_at(b.dx + (at + k * threads * N));
      }
    });
    at += b.ahead;
    of_row += b.statistics_ahead;
  };
  const int turns = turns_of(group);
  RowPair<T, K, kMore> next = {};  // the row at hand, where there is room for one
  if (kRoom && turns > 0) read(next, 0);
  for (int turn = 0; turn < turns; ++turn) {
    if constexpr (kRoom) {
      // A copy, which waits for the row, before the next one is asked for.
      const RowPair<T, K, kMore> row = next;
      if (turn + 1 < turns) read(next, 1);
      work(row, shared[turn % 2]);
    } else {
      read(next, 0);
      work(next, shared[turn % 2]);
    }
  }
  // The block's first group had one row more than this one.
  if (threads > 32 && turns_of(0) > turns) meet(threads, group);
  // The sums of the block's groups, added in their order.
  constexpr int kOwn = kLayer ? 2 : 1, kSums = kMore ? kOwn + 1 : kOwn;
  const int all = b.sums * b.n;
  A* const to = b.partials + static_cast<int64_t>(blockIdx.x) * all;
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    if (s == b.sums) break;
    A* const own = (groups == 1 ? to : columns + group * all) + s * b.n;
    each_vector([&](int k, int v) {
      constexpr int kAtOnce = 16 / sizeof(A);
#pragma unroll
      for (int j = 0; j < N; j += kAtOnce) {
        Vec<A, kAtOnce> sums;
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          sums.x[i] = s == 0 ? dgamma[k][j + i] : s < kOwn ? dbeta[k][j + i] : dx_sum[k][j + i];
        }
        store(own + v * N + j, sums);
      }
    });
  }
  if (groups == 1) return;
  __syncthreads();
  for (int i = threadIdx.x; i < all; i += blockDim.x) {
    A sum = columns[i];
    for (int g = 1; g < groups; ++g) sum += columns[g * all + i];
    to[i] = sum;
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
  int64_t at[6];
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
    Vec<T, N> out, residual = {};
    if (b.residual != nullptr) residual = row_load<N>(b.residual + at[5], b.residual_step, i);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const A h = (number(x_v.x[j]) - mean) * rstd;
      const A g = number(dy_v.x[j]) * number(gamma.x[j]);
      out.x[j] = To<T>::of(rstd * (g - g_mean - h * gh_mean) + number(residual.x[j]));
    }
    row_store(b.dx + at[4], b.dx_step, i, out);
  });
}

// The sums of 32 columns over some of the rows: before backward_of_x, which may overwrite dy, those
// for gamma and beta, and after it those of dx.
template <class T, bool kLayer>
__global__ void __launch_bounds__(256) backward_of_columns(Backward<T> b, bool of_dx) {
  using A = Statistic<T>;
  __shared__ A shared[2][8][32];
  const int x = threadIdx.x % 32, y = threadIdx.x / 32, column = blockIdx.x * 32 + x;
  A first = 0, second = 0;
  if (column < b.n) {
    for (int64_t r = blockIdx.y * int64_t{8} + y; r < b.rows.count;
         r += kNormPartials * int64_t{8}) {
      int64_t at[6];
      b.rows.offsets(r, at);
      if (of_dx) {
        first += number(b.dx[at[4] + column * b.dx_step]);
        continue;
      }
      const A dy = number(b.dy[at[0] + column * b.dy_step]);
      const A mean = kLayer ? b.mean[at[2]] : A(0);
      first += dy * ((number(b.x[at[1] + column * b.x_step]) - mean) * b.rstd[at[3]]);
      second += dy;
    }
  }
  shared[0][y][x] = first;
  shared[1][y][x] = second;
  __syncthreads();
  constexpr int kOwn = kLayer ? 2 : 1;
  if (y >= (of_dx ? 1 : kOwn) || column >= b.n) return;
  A sum = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += shared[y][i][x];
  const int s = of_dx ? kOwn : y;
  b.partials[(static_cast<int64_t>(blockIdx.y) * b.sums + s) * b.n + column] = sum;
}

// --- Launchers -----------------------------------------------------------------------------------

// Calls launch.operator()<K, G>() for the kernel that such rows fit; false when they are too long.
template <class Launch>
bool with_forward_shape(int64_t vectors, const Launch& launch) {
  constexpr int kWarp = 32, kBlock = 128;
  const auto fits = [&](int k, int g) { return vectors <= int64_t{k} * g; };
  if (fits(2, kWarp)) return launch.template operator()<2, kWarp>(), true;
  if (fits(3, kWarp)) return launch.template operator()<3, kWarp>(), true;
  if (fits(4, kWarp)) return launch.template operator()<4, kWarp>(), true;
  if (fits(6, kWarp)) return launch.template operator()<6, kWarp>(), true;
  if (fits(8, kWarp)) return launch.template operator()<8, kWarp>(), true;
  if (fits(4, kBlock)) return launch.template operator()<4, kBlock>(), true;
  return fits(8, kBlock) && (launch.template operator()<8, kBlock>(), true);
}

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
    const bool short_rows =
        wide && k.rows.dims == 1 && with_forward_shape(n / kWide<T>, [&]<int K, int G>() {
          forward_of_rows<T, kWide<T>, K, G, kLayer>
              <<<row_blocks<G>(rows.count()), kRowThreads<G>, 0, stream>>>(k);
        });
    if (!short_rows) {
      with_row_shape<T>(wide, n, [&]<int N, int G>() {
        norm<T, N, G, kLayer><<<row_blocks<G>(rows.count()), kRowThreads<G>, 0, stream>>>(k);
      });
    }
    cuda_check(cudaGetLastError());
  });
}

// Whether rows are equally far apart in dy, x, dx and the residual, and so are their statistics;
// and 32 bits count the elements. Rows that are not go through the kernels for any rows, which read
// dy and x twice.
inline bool are_alike(const Loops<6>& rows, int64_t n) {
  if (rows.dims != 1) return false;
  const auto& step = rows.step[0];
  const bool near = step[0] >= 0 && step[3] >= 0 && step[0] <= INT32_MAX &&
                    step[0] * rows.count + n <= INT32_MAX && step[3] <= step[0];
  return near && step[1] == step[0] && step[4] == step[0] && step[5] == step[0] &&
         step[2] == step[3];
}

// Launches backward_of_rows; how many blocks have partial sums.
template <class T, int K, bool kLayer, bool kMore>
int64_t backward_by_rows(Backward<T> k, cudaStream_t stream) {
  using A = Statistic<T>;
  const int64_t vectors = k.n / kWide<T>;
  const int threads = static_cast<int>(ceil_div(ceil_div(vectors, K), 32) * 32);
  const int groups = kBackwardThreads<K> / threads;
  const int64_t blocks = std::min<int64_t>(kNormPartials, ceil_div(k.rows.count, groups));
  const int columns = groups > 1 ? groups * k.sums * k.n * static_cast<int>(sizeof(A)) : 0;
  k.ahead = static_cast<unsigned>(blocks * groups * k.rows.step[0][0]);
  k.statistics_ahead = static_cast<unsigned>(blocks * groups * k.rows.step[0][3]);
  auto* const kernel = backward_of_rows<T, kWide<T>, K, kLayer, kMore>;
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, columns));
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads * groups),
           static_cast<size_t>(columns), stream>>>(k, threads);
  return blocks;
}

template <class T, bool kLayer, bool kMore>
int64_t backward_by_rows(const Backward<T>& k, int each, cudaStream_t stream) {
  if (each == 1) return backward_by_rows<T, 1, kLayer, kMore>(k, stream);
  if (each == 2) return backward_by_rows<T, 2, kLayer, kMore>(k, stream);
  if constexpr (kMore) {
    CLEAVE_ASSERT(false, "rows of {} elements", k.n);
    return 0;
  } else {
    return backward_by_rows<T, 4, kLayer, false>(k, stream);
  }
}

template <bool kLayer>
void backward(const KernelArgs& args) {
  constexpr int kOwn = kLayer ? 2 : 1;
  const int f = whole_factor(args.signature);
  const auto along = static_cast<size_t>(f);
  const auto stream = static_cast<cudaStream_t>(args.stream);
  const bool residual = args.attrs.integer_or("residual", 0) != 0;
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    using A = Statistic<T>;
    const Shape dy = in_strides(args, 0), x = in_strides(args, 1), gamma = in_strides(args, 2),
                first = in_strides(args, 3), rstd = kLayer ? in_strides(args, 4) : first,
                dx = out_strides(args, 0),
                added = residual ? in_strides(args, args.in.size() - 1) : dx;
    const auto rows = nest_over<6>(args, factors_without(args.signature.outputs()[0], f),
                                   {dy, x, first, rstd, dx, added});
    const int64_t n = args.extents[along].local;
    CLEAVE_ASSERT(n <= INT32_MAX, "rows of {} elements", n);
    const Backward<T> k = {.dy = args.in[0].as<const T>(),
                           .x = args.in[1].as<const T>(),
                           .gamma = args.in[2].as<const T>(),
                           .mean = args.in[3].as<const A>(),
                           .rstd = args.in[kLayer ? 4 : 3].as<const A>(),
                           .residual = residual ? args.in.back().as<const T>() : nullptr,
                           .dx = args.out[0].as<T>(),
                           .rows = loops_of(rows),
                           .ahead = 0,
                           .statistics_ahead = 0,
                           .n = static_cast<int>(n),
                           .dy_step = dy[along],
                           .x_step = x[along],
                           .gamma_step = gamma[along],
                           .dx_step = dx[along],
                           .residual_step = added[along],
                           .partials = static_cast<A*>(args.workspace),
                           .sums = static_cast<int>(args.out.size()) - 1};
    const bool more = residual || k.sums > kOwn;
    const bool wide = wide_rows<T>(rows, 0, k.dy, k.dy_step, n) &&
                      wide_rows<T>(rows, 1, k.x, k.x_step, n) &&
                      wide_rows<T>(rows, 4, k.dx, k.dx_step, n) &&
                      wide_rows<T>(rows, 5, k.residual, k.residual_step, n) &&
                      wide_rows<T, 1>({}, 0, k.gamma, k.gamma_step, n);
    const int each = wide && are_alike(k.rows, n) ? norm_vectors_a_thread(n / kWide<T>, more) : 0;
    int64_t partials = kNormPartials;
    if (rows.count() == 0 || n == 0) {
      partials = 0;
    } else if (each > 0) {
      partials = more ? backward_by_rows<T, kLayer, true>(k, each, stream)
                      : backward_by_rows<T, kLayer, false>(k, each, stream);
    } else {
      const dim3 blocks(static_cast<unsigned>(ceil_div(n, 32)), kNormPartials);
      backward_of_columns<T, kLayer><<<blocks, 256, 0, stream>>>(k, false);
      with_row_shape<T>(wide, n, [&]<int N, int G>() {
        backward_of_x<T, N, G, kLayer>
            <<<row_blocks<G>(rows.count()), kRowThreads<G>, 0, stream>>>(k);
      });
      if (k.sums > kOwn) backward_of_columns<T, kLayer><<<blocks, 256, 0, stream>>>(k, true);
    }
    cuda_check(cudaGetLastError());
    if (n == 0) return;
    add_partials<A>(args, k.partials, partials, n, k.sums, along);
  });
}

}  // namespace

void layer_norm_cuda(const KernelArgs& args) { forward<true>(args); }
void rms_norm_cuda(const KernelArgs& args) { forward<false>(args); }
void layer_norm_backward_cuda(const KernelArgs& args) { backward<true>(args); }
void rms_norm_backward_cuda(const KernelArgs& args) { backward<false>(args); }

}  // namespace cleave
