// The loss of class scores, its gradient, both at once, and the elements that indices name. Each
// reads the scores once, both together where a row is short enough; gradients are written once,
// which may be where the scores were. A row need not begin at a multiple of 16 bytes.
#include <cooperative_groups.h>

#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/workspace.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

// A dense row of n elements: some before the first multiple of 16 bytes, whole vectors, a rest. Of
// a row that is not dense, all are "before".
template <class T>
struct Pieces {
  int head, vectors, tail;  // the tail begins at this element

  __device__ Pieces(const T* row, int64_t step, int n) {
    const int off = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
    head = step == 1 ? min((kWide<T> - off) % kWide<T>, n) : n;
    vectors = (n - head) / kWide<T>;
    tail = head + vectors * kWide<T>;
  }
};

// Calls fn(first index, vectors G apart) for every G-th of the vectors: four at once, then one.
template <int G, class T, class Fn>
__device__ void each_vectors(const T* from, int vectors, int lane, Fn fn) {
  constexpr int kAtOnce = 4;
  const auto some = [&]<int M>(int v, Raw(&x)[M]) {
#pragma unroll
    for (int k = 0; k < M; ++k) x[k] = Raw::at(from + int64_t{v + k * G} * kWide<T>);
    fn(v, x);
  };
  int v = lane;
  for (; v + (kAtOnce - 1) * G < vectors; v += kAtOnce * G) {
    Raw x[kAtOnce];
    some(v, x);
  }
  for (; v < vectors; v += G) {
    Raw x[1];
    some(v, x);
  }
}

// --- Forward -------------------------------------------------------------------------------------

template <class T>
struct Losses {
  const T* logits;
  const int* targets;
  Statistic<T>*losses, *lses;
  Loops<4> rows;  // logits, targets, losses, lses
  int n;
  int64_t step, ignore;
  Shard classes;
};

// A sum of exponentials of numbers that come one after the other, below the largest of them.
template <class A>
struct Exponentials {
  A top = static_cast<A>(-kInfinity), sum = 0;

  // What is subtracted before exp: 0 while all numbers are -infinity.
  __device__ A shift() const { return top == static_cast<A>(-kInfinity) ? A(0) : top; }
  __device__ void raise(A highest) {
    if (highest > top) {
      sum *= exp_near(top - highest);
      top = highest;
    }
  }
  __device__ void take(A x) {
    raise(x);
    sum += exp_near(x - shift());
  }
  // Vectors of T.
  template <class T, int M>
  __device__ void take(const Raw (&x)[M]) {
    Raw largest = x[0];
#pragma unroll
    for (int k = 1; k < M; ++k) largest = largest.larger<T>(x[k]);
    raise(largest.largest<T>());
    const A s = shift();
#pragma unroll
    for (int k = 0; k < M; ++k) {
#pragma unroll
      for (int j = 0; j < kWide<T>; ++j) sum += exp_near(x[k].template number_at<T>(j) - s);
    }
  }
};

// Of a row of scores x whose log-sum-exp is known.
template <class T>
__device__ Statistic<T> loss_of(const Losses<T>& l, const T* x, int target, Statistic<T> lse) {
  if (target == l.ignore) return 0;
  // A target that is no class makes the loss NaN: the update is skipped, and that is told.
  const bool exists = target >= 0 && target < l.classes.global;
  const int64_t own = exists ? l.classes.own(target) : -1;
  return own < 0 ? static_cast<Statistic<T>>(__builtin_nan("")) : lse - number(x[own * l.step]);
}

template <class T, int G>
__global__ void __launch_bounds__(kRowThreads<G>) loss_of_rows(Losses<T> l) {
  using A = Statistic<T>;
  __shared__ A shared[2][32];
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kRowThreads<G> / G) + threadIdx.x / G;
  if (r >= l.rows.count) return;
  const int lane = threadIdx.x % G;
  int64_t at[4];
  l.rows.offsets(r, at);
  const T* const x = l.logits + at[0];
  const Pieces<T> pieces(x, l.step, l.n);
  Exponentials<A> e;
  for (int i = lane; i < pieces.head; i += G) e.take(number(x[i * l.step]));
  each_vectors<G>(x + pieces.head, pieces.vectors, lane,
                  [&](int, const auto& v) { e.template take<T>(v); });
  for (int i = pieces.tail + lane; i < l.n; i += G) e.take(number(x[i * l.step]));
  const Exponentials<A> all = {over_group<G>(e.top, shared[0], Greater{}), 0};
  const A sum = over_group<G>(e.sum * exp_near(e.top - all.shift()), shared[1], Add{});
  if (lane != 0) return;
  const A lse = all.shift() + log_of(sum);
  l.losses[at[2]] = loss_of(l, x, l.targets[at[1]], lse);
  l.lses[at[3]] = lse;
}

// --- Backward ------------------------------------------------------------------------------------

template <class T>
struct Gradients {
  const T* logits;
  const int* targets;
  const Statistic<T>*lses, *dlosses;
  T* dlogits;
  Loops<5> rows;  // logits, targets, lses, dlosses, dlogits
  int n;
  int64_t step, d_step, ignore;
  Shard classes;
};

// The gradients of a row's scores: (softmax - onehot(target)) dloss; nothing for an ignored target.
template <class T>
struct RowGradient {
  Statistic<T> lse, dloss;
  int own;  // the target's index here; -1: it is elsewhere, or ignored
  bool ignored;

  __device__ RowGradient(int target, int64_t ignore, const Shard& classes, Statistic<T> lse,
                         Statistic<T> dloss)
      : lse(lse), dloss(dloss), own(-1), ignored(target == ignore) {
    const bool exists = !ignored && target >= 0 && target < classes.global;
    if (exists) own = static_cast<int>(classes.own(target));
  }
  __device__ Statistic<T> share(Statistic<T> score) const { return exp_near(score - lse) * dloss; }
  __device__ T of(T score, bool hit) const {
    if (ignored) return To<T>::of(Statistic<T>(0));
    return To<T>::of(hit ? share(number(score)) - dloss : share(number(score)));
  }
  // Of a vector of scores from index `first` on. Few hold the target, and all of a row's threads
  // agree whether it is ignored.
  __device__ Raw of(const Raw& scores, int first) const {
    if (ignored) return {};
    Statistic<T> out[kWide<T>];
#pragma unroll
    for (int j = 0; j < kWide<T>; ++j) out[j] = share(scores.number_at<T>(j));
    if (own >= first && own < first + kWide<T>) {
#pragma unroll
      for (int j = 0; j < kWide<T>; ++j) {
        if (first + j == own) out[j] -= dloss;
      }
    }
    return Raw::of<T>(out);
  }
};

template <class T, int G>
__global__ void __launch_bounds__(kRowThreads<G>) gradient_of_rows(Gradients<T> g) {
  using A = Statistic<T>;
  constexpr int N = kWide<T>;
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kRowThreads<G> / G) + threadIdx.x / G;
  if (r >= g.rows.count) return;
  const int lane = threadIdx.x % G;
  int64_t at[5];
  g.rows.offsets(r, at);
  const T* const x = g.logits + at[0];
  T* const dx = g.dlogits + at[4];
  const RowGradient<T> row(g.targets[at[1]], g.ignore, g.classes, g.lses[at[2]], g.dlosses[at[3]]);
  Pieces<T> pieces(x, g.step, g.n);
  // Vectors need both to be at the same place between multiples of 16 bytes.
  const bool together =
      (reinterpret_cast<uintptr_t>(x) - reinterpret_cast<uintptr_t>(dx)) % 16 == 0 && g.d_step == 1;
  if (!together) pieces.head = g.n, pieces.vectors = 0, pieces.tail = g.n;
  for (int i = lane; i < pieces.head; i += G) {
    dx[i * g.d_step] = row.of(x[i * g.step], i == row.own);
  }
  each_vectors<G>(x + pieces.head, pieces.vectors, lane, [&]<int M>(int v, const Raw(&scores)[M]) {
#pragma unroll
    for (int k = 0; k < M; ++k) {
      const int i = pieces.head + (v + k * G) * N;
      row.of(scores[k], i).store_at(dx + i);
    }
  });
  for (int i = pieces.tail + lane; i < g.n; i += G) dx[i] = row.of(x[i], i == row.own);
}

// Rows of whole vectors, dense: a block has a piece of one, and ends, as blocks that begin one
// after the other read and write faster, in place above all, than those that go through a row.
constexpr int kPieceThreads = 256, kPieceTurns = 2;

template <class T>
__global__ void __launch_bounds__(kPieceThreads)
    gradient_of_pieces(Gradients<T> g, unsigned pieces) {
  constexpr int N = kWide<T>;
  const unsigned r = blockIdx.x / pieces;
  const int first =
      static_cast<int>((blockIdx.x - r * pieces) * kPieceThreads * kPieceTurns + threadIdx.x);
  const int vectors = g.n / N;
  int64_t at[5];
  g.rows.offsets(r, at);
  Raw scores[kPieceTurns];
#pragma unroll
  for (int u = 0; u < kPieceTurns; ++u) {
    const int v = first + u * kPieceThreads;
    if (v < vectors) scores[u] = Raw::at(g.logits + at[0] + int64_t{v} * N);
  }
  const RowGradient<T> row(g.targets[at[1]], g.ignore, g.classes, g.lses[at[2]], g.dlosses[at[3]]);
#pragma unroll
  for (int u = 0; u < kPieceTurns; ++u) {
    const int v = first + u * kPieceThreads;
    if (v < vectors) row.of(scores[u], v * N).store_at(g.dlogits + at[4] + int64_t{v} * N);
  }
}

// --- Both ----------------------------------------------------------------------------------------

// Threads of a block that has a row, and blocks of a multiprocessor; those of a cluster, which are
// small and many so that some wait for memory while others compute, and what each keeps of a row
// where a cluster of eight lets it.
template <bool kAlone>
constexpr int kBothThreads = kAlone ? 512 : 256;
template <bool kAlone>
constexpr int kBothAtOnce = kAlone ? 2 : 6;
constexpr int64_t kClusterBlockBytes = 38 << 10;

// A block, or a cluster of some, has a row, each block `most` vectors of it at most, and keeps it
// in its shared memory from one pass to the other. Rows of whole vectors, dense.
template <class T, bool kAlone>
__global__ void __launch_bounds__(kBothThreads<kAlone>, kBothAtOnce<kAlone>)
    both_of_rows(Losses<T> l, Gradients<T> g, int most) {
  using A = Statistic<T>;
  constexpr int N = kWide<T>, G = kBothThreads<kAlone>;
  __shared__ A shared[2][32];
  __shared__ A part[2];  // largest score and sum
  extern __shared__ uint4 kept_memory[];
  Raw* const kept = reinterpret_cast<Raw*>(kept_memory);
  const auto cluster = cooperative_groups::this_cluster();
  const int blocks = kAlone ? 1 : static_cast<int>(cluster.num_blocks());
  const int rank = kAlone ? 0 : static_cast<int>(cluster.block_rank());
  const int64_t r = blockIdx.x / blocks;
  const int lane = threadIdx.x, first = rank * most;
  const int vectors = max(min(l.n / N - first, most), 0);
  int64_t at[4], g_at[5];
  l.rows.offsets(r, at);
  g.rows.offsets(r, g_at);
  const T* const x = l.logits + at[0] + int64_t{first} * N;
  // What is read of it before it is overwritten.
  const int target = l.targets[at[1]];
  const A dloss = g.dlosses[g_at[3]];
  Exponentials<A> e;
  each_vectors<G>(x, vectors, lane, [&]<int M>(int v, const Raw(&scores)[M]) {
#pragma unroll
    for (int k = 0; k < M; ++k) kept[v + k * G] = scores[k];
    e.template take<T>(scores);
  });
  Exponentials<A> all = {over_group<G>(e.top, shared[0], Greater{}), 0};
  all.sum = over_group<G>(e.sum * exp_near(e.top - all.shift()), shared[1], Add{});
  if constexpr (!kAlone) {
    if (lane == 0) part[0] = all.top, part[1] = all.sum;
    cluster.sync();
    Exponentials<A> parts[kBothBlocks];
#pragma unroll
    for (int b = 0; b < kBothBlocks; ++b) {
      if (b >= blocks) continue;
      const A* const from = cluster.map_shared_rank(part, b);
      parts[b] = {from[0], from[1]};
    }
    cluster.barrier_arrive();  // no block ends before all have read its part
    all = {};
#pragma unroll
    for (int b = 0; b < kBothBlocks; ++b) all.top = Greater{}(all.top, parts[b].top);
#pragma unroll
    for (int b = 0; b < kBothBlocks; ++b) {
      all.sum += parts[b].sum * exp_near(parts[b].top - all.shift());
    }
  }
  const A lse = all.shift() + log_of(all.sum);
  const RowGradient<T> row(target, g.ignore, g.classes, lse, dloss);
  // Everybody's scores are in shared memory since over_group; who has the target's tells the loss.
  if (lane == 0 && rank == (row.own < 0 ? 0 : row.own / (most * N))) {
    l.losses[at[2]] =
        loss_of(l, reinterpret_cast<const T*>(kept) - int64_t{first} * N, target, lse);
    l.lses[at[3]] = lse;
  }
  T* const dx = g.dlogits + g_at[4] + int64_t{first} * N;
#pragma unroll 4
  for (int v = lane; v < vectors; v += G) {
    row.of(kept[v], (first + v) * N).store_at(dx + int64_t{v} * N);
  }
  if constexpr (!kAlone) cluster.barrier_wait();
}

// --- Pick ----------------------------------------------------------------------------------------

template <class T>
struct Pick {
  const T* x;
  const int* indices;
  Statistic<T>* out;
  Loops<3> results;  // x, indices, out
  int64_t step;
  Shard along;
};

template <class T>
__global__ void __launch_bounds__(256) pick_each(Pick<T> p) {
  const int64_t i = blockIdx.x * int64_t{256} + threadIdx.x;
  if (i >= p.results.count) return;
  int64_t at[3];
  p.results.offsets(i, at);
  const int index = p.indices[at[1]];
  const bool exists = index >= 0 && index < p.along.global;
  const int64_t own = exists ? p.along.own(index) : -1;
  p.out[at[2]] = own < 0 ? Statistic<T>(0) : number(p.x[at[0] + own * p.step]);
}

// --- Launchers -----------------------------------------------------------------------------------

// The factor of the classes: the one that the targets lack.
size_t class_factor(const KernelArgs& args) {
  const Signature& s = args.signature;
  for (const int8_t f : factors_of(s.inputs()[0])) {
    if (!Signature::carries(s.inputs()[1], f)) return static_cast<size_t>(f);
  }
  CLEAVE_ASSERT(false, "'{}': the targets carry every factor", s.text());
}

template <class T, class Fn>
void with_group(int64_t n, Fn&& fn) {
  CLEAVE_ASSERT(n <= INT32_MAX, "{} classes", n);
  const int64_t vectors = n / kWide<T>;
  if (vectors <= 64) return fn.template operator()<32>();
  if (vectors <= 512) return fn.template operator()<128>();
  return fn.template operator()<512>();
}

template <class T>
Losses<T> losses_of(const KernelArgs& args, size_t f) {
  const Shape logits = in_strides(args, 0);
  const auto rows =
      nest_over<4>(args, factors_of(args.signature.inputs()[1]),
                   {logits, in_strides(args, 1), out_strides(args, 0), out_strides(args, 1)});
  return {.logits = args.in[0].as<const T>(),
          .targets = args.in[1].as<const int>(),
          .losses = args.out[0].as<Statistic<T>>(),
          .lses = args.out[1].as<Statistic<T>>(),
          .rows = loops_of(rows),
          .n = static_cast<int>(args.extents[f].local),
          .step = logits[f],
          .ignore = args.attrs.integer_or("ignore", ops::kIgnoredTarget),
          .classes = shard_of(args.extents[f])};
}

// Of these log-sum-exps and gradients of losses, result `out`.
template <class T>
Gradients<T> gradients_of(const KernelArgs& args, size_t f, const TensorView& lses,
                          const Shape& lse_strides, size_t dlosses, size_t out) {
  const Shape logits = in_strides(args, 0), dlogits = out_strides(args, out);
  const auto rows =
      nest_over<5>(args, factors_of(args.signature.inputs()[1]),
                   {logits, in_strides(args, 1), lse_strides, in_strides(args, dlosses), dlogits});
  return {.logits = args.in[0].as<const T>(),
          .targets = args.in[1].as<const int>(),
          .lses = lses.as<const Statistic<T>>(),
          .dlosses = args.in[dlosses].as<const Statistic<T>>(),
          .dlogits = args.out[out].as<T>(),
          .rows = loops_of(rows),
          .n = static_cast<int>(args.extents[f].local),
          .step = logits[f],
          .d_step = dlogits[f],
          .ignore = args.attrs.integer_or("ignore", ops::kIgnoredTarget),
          .classes = shard_of(args.extents[f])};
}

template <class T>
void launch_losses(const Losses<T>& k, cudaStream_t stream) {
  if (k.rows.count == 0) return;
  with_group<T>(k.n, [&]<int G>() {
    loss_of_rows<T, G><<<row_blocks<G>(k.rows.count), kRowThreads<G>, 0, stream>>>(k);
  });
  cuda_check(cudaGetLastError());
}

// Whether all rows of operand o are dense and of whole vectors.
template <class T, int O>
bool whole_vectors(const Loops<O>& rows, int o, const T* data, int64_t step, int n) {
  bool whole = step == 1 && n % kWide<T> == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  for (int d = 0; d < rows.dims; ++d) whole &= rows.step[d][o] % kWide<T> == 0;
  return whole;
}

template <class T>
void launch_gradients(const Gradients<T>& k, cudaStream_t stream) {
  if (k.rows.count == 0 || k.n == 0) return;
  const int64_t vectors = k.n / kWide<T>;
  const int64_t pieces = ceil_div(vectors, kPieceThreads * kPieceTurns);
  // Short rows share a block.
  if (vectors >= kPieceThreads && whole_vectors(k.rows, 0, k.logits, k.step, k.n) &&
      whole_vectors(k.rows, 4, k.dlogits, k.d_step, k.n) && pieces * k.rows.count <= INT32_MAX) {
    gradient_of_pieces<T>
        <<<static_cast<unsigned>(pieces * k.rows.count), kPieceThreads, 0, stream>>>(
            k, static_cast<unsigned>(pieces));
    cuda_check(cudaGetLastError());
    return;
  }
  with_group<T>(k.n, [&]<int G>() {
    gradient_of_rows<T, G><<<row_blocks<G>(k.rows.count), kRowThreads<G>, 0, stream>>>(k);
  });
  cuda_check(cudaGetLastError());
}

}  // namespace

void cross_entropy_cuda(const KernelArgs& args) {
  const auto stream = static_cast<cudaStream_t>(args.stream);
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    launch_losses(losses_of<T>(args, class_factor(args)), stream);
  });
}

void cross_entropy_backward_cuda(const KernelArgs& args) {
  const auto stream = static_cast<cudaStream_t>(args.stream);
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    launch_gradients(
        gradients_of<T>(args, class_factor(args), args.in[2], in_strides(args, 2), 3, 0), stream);
  });
}

void cross_entropy_both_cuda(const KernelArgs& args) {
  const auto stream = static_cast<cudaStream_t>(args.stream);
  const size_t f = class_factor(args);
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    const Losses<T> l = losses_of<T>(args, f);
    const Gradients<T> g = gradients_of<T>(args, f, args.out[1], out_strides(args, 1), 2, 2);
    const int64_t bytes = int64_t{l.n} * static_cast<int64_t>(sizeof(T));
    if (l.rows.count == 0) return;
    if (bytes > kBothRowBytes || !whole_vectors(l.rows, 0, l.logits, l.step, l.n) ||
        !whole_vectors(g.rows, 4, g.dlogits, g.d_step, g.n)) {
      launch_losses(l, stream);
      launch_gradients(g, stream);
      return;
    }
    const bool alone = bytes <= kBothBlockBytes;
    unsigned blocks = 1;
    while (!alone && blocks < kBothBlocks && bytes > blocks * kClusterBlockBytes) blocks *= 2;
    const auto kernel = alone ? both_of_rows<T, true> : both_of_rows<T, false>;
    cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBothBlockBytes));
    const int most = static_cast<int>(ceil_div(l.n / kWide<T>, blocks));
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {.x = blocks, .y = 1, .z = 1};
    const cudaLaunchConfig_t launch = {
        .gridDim = static_cast<unsigned>(l.rows.count) * blocks,
        .blockDim = static_cast<unsigned>(alone ? kBothThreads<true> : kBothThreads<false>),
        .dynamicSmemBytes = static_cast<size_t>(most) * kWide<T> * sizeof(T),
        .stream = stream,
        .attrs = &cluster,
        .numAttrs = 1};
    cuda_check(cudaLaunchKernelEx(&launch, kernel, l, g, most));
  });
}

void pick_cuda(const KernelArgs& args) {
  size_t f = 0;
  while (!args.signature.reduced_in(static_cast<int>(f), 0)) ++f;
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    const Shape x = in_strides(args, 0);
    const auto results = nest_over<3>(args, factors_of(args.signature.outputs()[0]),
                                      {x, in_strides(args, 1), out_strides(args, 0)});
    if (results.count() == 0) return;
    const Pick<T> k = {args.in[0].as<const T>(),
                       args.in[1].as<const int>(),
                       args.out[0].as<Statistic<T>>(),
                       loops_of(results),
                       x[f],
                       shard_of(args.extents[f])};
    pick_each<T><<<static_cast<unsigned>(ceil_div(results.count(), 256)), 256, 0,
                   static_cast<cudaStream_t>(args.stream)>>>(k);
    cuda_check(cudaGetLastError());
  });
}

}  // namespace cleave
