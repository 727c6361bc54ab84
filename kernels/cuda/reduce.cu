// Sum, maximum and log-sum-exp over any factors. When there are few results, blocks share the
// elements of one, and a second kernel puts their parts together. Shapes alone decide how, so that
// the same bits come out every time and on every GPU.

#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/workspace.h"

namespace cleave {
namespace {

// --- What becomes of elements --------------------------------------------------------------------

template <class A>
struct SumOf {
  A total = 0;
  __device__ void take(A x) { total += x; }
  __device__ void merge(const SumOf& other) { total += other.total; }
  __device__ A result() const { return total; }
  __device__ SumOf shuffled(int lanes) const {
    return {__shfl_xor_sync(0xffffffffu, total, lanes)};
  }
};

template <class A>
struct MaxOf {
  A highest = static_cast<A>(-kInfinity);
  __device__ void take(A x) { highest = Greater{}(highest, x); }
  __device__ void merge(const MaxOf& other) { take(other.highest); }
  __device__ A result() const { return highest; }
  __device__ MaxOf shuffled(int lanes) const {
    return {__shfl_xor_sync(0xffffffffu, highest, lanes)};
  }
};

template <class A>
struct LogSumExpOf {
  A top = static_cast<A>(-kInfinity), sum = 0;
  // What is subtracted before exp: 0 while all elements are -infinity.
  __device__ A shift() const { return top == static_cast<A>(-kInfinity) ? A(0) : top; }
  __device__ void take(A x) {
    if (x > top) {
      sum *= exp_near(top - x);
      top = x;
    }
    sum += exp_near(x - shift());
  }
  __device__ void merge(const LogSumExpOf& other) {
    const LogSumExpOf both = {Greater{}(top, other.top), 0};
    sum = sum * exp_near(top - both.shift()) + other.sum * exp_near(other.top - both.shift());
    top = both.top;
  }
  __device__ A result() const { return shift() + log_of(sum); }
  __device__ LogSumExpOf shuffled(int lanes) const {
    return {__shfl_xor_sync(0xffffffffu, top, lanes), __shfl_xor_sync(0xffffffffu, sum, lanes)};
  }
};

// --- Kernels -------------------------------------------------------------------------------------

// Where results go: to `out`, or part by part to `partials`, [parts, results].
template <class State, class Out>
struct Results {
  Out* out;
  State* partials;  // null: there is one part
  Loops<2> kept;    // out, in

  __device__ void put(int64_t part, int64_t result, const State& s) const {
    if (partials != nullptr) {
      partials[part * kept.count + result] = s;
    } else {
      int64_t at[2];
      kept.offsets(result, at);
      out[at[0]] = To<Out>::of(s.result());
    }
  }
};

// The first element of one of the parts.
__device__ inline int64_t part_begin(int64_t count, unsigned part, unsigned parts) {
  return static_cast<int64_t>(part) * count / parts;
}

// Takes vectors `first`, first + step, ... before `end`; four are on the way at once.
template <int N, class T, class State>
__device__ void take_all(const T* from, const Loops<1>& loops, int64_t first, int64_t end,
                         int64_t step, State (&states)[N]) {
  constexpr int kAtOnce = 4;
  const auto read = [&](int64_t i) {
    int64_t at[1];
    loops.offsets(i, at);
    return load<N>(from + at[0]);
  };
  const auto take = [&](const Vec<T, N>& x) {
#pragma unroll
    for (int j = 0; j < N; ++j) states[j].take(number(x.x[j]));
  };
  int64_t i = first;
  for (; i + (kAtOnce - 1) * step < end; i += kAtOnce * step) {
    Vec<T, N> x[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) x[k] = read(i + k * step);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) take(x[k]);
  }
  for (; i < end; i += step) take(read(i));
}

// G threads have the elements of one result, or of a part of them. `reduced`: in vectors.
template <class State, class T, class Out, int N, int G>
__global__ void __launch_bounds__(256)
    along_rows(const T* x, Loops<1> reduced, Results<State, Out> results) {
  __shared__ State shared[8];
  const int64_t result = static_cast<int64_t>(blockIdx.x) * (256 / G) + threadIdx.x / G;
  if (result >= results.kept.count) return;
  int64_t at[2];
  results.kept.offsets(result, at);
  State states[N];
  take_all<N>(x + at[1], reduced,
              part_begin(reduced.count, blockIdx.y, gridDim.y) + threadIdx.x % G,
              part_begin(reduced.count, blockIdx.y + 1, gridDim.y), G, states);
#pragma unroll
  for (int j = 1; j < N; ++j) states[0].merge(states[j]);
  State& s = states[0];
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) s.merge(s.shuffled(lanes));
  if constexpr (G > 32) {
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int w = 1; w < G / 32; ++w) s.merge(shared[w]);
    }
  }
  if (threadIdx.x % G == 0) results.put(blockIdx.y, result, s);
}

// A block has `across` vectors of results, and 512 / across threads for each. `kept` and `reduced`
// are of the input, the first in vectors.
template <class State, class T, class Out, int N>
__global__ void __launch_bounds__(512) down_columns(const T* x, Loops<1> kept, Loops<1> reduced,
                                                    Results<State, Out> results, int across) {
  extern __shared__ double2 columns_memory[];
  State* const shared = reinterpret_cast<State*>(columns_memory);  // [512 / across, across, N]
  const int column = threadIdx.x % across, row = threadIdx.x / across, rows = 512 / across;
  const int64_t v = static_cast<int64_t>(blockIdx.x) * across + column;
  State states[N];
  if (v < kept.count) {
    int64_t at[1];
    kept.offsets(v, at);
    take_all<N>(x + at[0], reduced, part_begin(reduced.count, blockIdx.y, gridDim.y) + row,
                part_begin(reduced.count, blockIdx.y + 1, gridDim.y), rows, states);
  }
#pragma unroll
  for (int j = 0; j < N; ++j) shared[threadIdx.x * N + j] = states[j];
  __syncthreads();
  const int width = across * N;
  if (threadIdx.x >= width) return;
  const int64_t result = static_cast<int64_t>(blockIdx.x) * width + threadIdx.x;
  if (result >= results.kept.count) return;
  State s = shared[threadIdx.x];
  for (int r = 1; r < rows; ++r) s.merge(shared[r * width + threadIdx.x]);
  results.put(blockIdx.y, result, s);
}

// A block puts the parts of 32 results together, in their order.
template <class State, class Out>
__global__ void __launch_bounds__(512)
    put_together(const State* partials, int parts, Results<State, Out> results) {
  __shared__ State shared[16][32];
  const int x = threadIdx.x % 32, y = threadIdx.x / 32;
  const int64_t result = blockIdx.x * 32LL + x;
  State s;
  if (result < results.kept.count) {
#pragma unroll 4
    for (int p = y; p < parts; p += 16) s.merge(partials[p * results.kept.count + result]);
  }
  shared[y][x] = s;
  __syncthreads();
  if (y > 0 || result >= results.kept.count) return;
#pragma unroll
  for (int i = 1; i < 16; ++i) s.merge(shared[i][x]);
  results.put(0, result, s);
}

// --- Launchers -----------------------------------------------------------------------------------

// Whether the innermost loop can be read 16 bytes at a time, wherever the others are.
template <class T>
bool wide(const LoopNest<1>& nest, const LoopNest<1>& others, const void* x) {
  return wide_loops<1>(nest, {x}, kWide<T>) && wide_rows<T>(others, 0, x, 1, 0);
}

struct Reduce {
  LoopNest<2> kept;              // out, in
  LoopNest<1> kept_in, reduced;  // in
};

template <class State, class T, class Out>
void by_rows(const KernelArgs& args, const Reduce& r, Results<State, Out> results) {
  const auto stream = static_cast<cudaStream_t>(args.stream);
  const T* const x = args.in[0].as<const T>();
  const auto go = [&]<int N, int G>() {
    const auto reduced = loops_of(in_vectors(r.reduced, N));
    const int64_t blocks = ceil_div(results.kept.count, 256 / G);
    const int64_t parts = std::clamp<int64_t>(kReduceRowBlocks / blocks, 1,
                                              std::max<int64_t>(reduced.count / (G * 8), 1));
    State* const partials = results.partials;
    if (parts == 1) results.partials = nullptr;
    along_rows<State, T, Out, N, G>
        <<<dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(parts)), 256, 0, stream>>>(
            x, reduced, results);
    cuda_check(cudaGetLastError());
    if (parts == 1) return;
    results.partials = nullptr;
    put_together<State, Out>
        <<<static_cast<unsigned>(ceil_div(results.kept.count, 32)), 512, 0, stream>>>(
            partials, static_cast<int>(parts), results);
    cuda_check(cudaGetLastError());
  };
  const auto with_group = [&]<int N>() {
    if (r.reduced.count() / N <= 512) return go.template operator()<N, 32>();
    go.template operator()<N, 256>();
  };
  if (wide<T>(r.reduced, r.kept_in, x)) return with_group.template operator()<kWide<T>>();
  with_group.template operator()<1>();
}

template <class State, class T, class Out>
void by_columns(const KernelArgs& args, const Reduce& r, Results<State, Out> results) {
  const auto stream = static_cast<cudaStream_t>(args.stream);
  const T* const x = args.in[0].as<const T>();
  const auto go = [&]<int N>() {
    const auto kept = loops_of(in_vectors(r.kept_in, N));
    const auto reduced = loops_of(r.reduced);
    int across = 1;
    while (across < 32 && across < kept.count) across *= 2;
    const int64_t blocks = ceil_div(kept.count, across);
    const int64_t parts = std::clamp<int64_t>(
        kReduceColumnBlocks / blocks, 1, std::max<int64_t>(reduced.count / (512 / across * 2), 1));
    State* const partials = results.partials;
    if (parts == 1) results.partials = nullptr;
    const auto kernel = down_columns<State, T, Out, N>;
    kernel<<<dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(parts)), 512,
             sizeof(State) * 512 * N, stream>>>(x, kept, reduced, results, across);
    cuda_check(cudaGetLastError());
    if (parts == 1) return;
    results.partials = nullptr;
    put_together<State, Out>
        <<<static_cast<unsigned>(ceil_div(results.kept.count, 32)), 512, 0, stream>>>(
            partials, static_cast<int>(parts), results);
    cuda_check(cudaGetLastError());
  };
  if (wide<T>(r.kept_in, r.reduced, x)) return go.template operator()<kWide<T>>();
  go.template operator()<1>();
}

// kStatistics: results are statistics, of halves in f32.
template <template <class> class StateOf, bool kStatistics>
void reduce(const KernelArgs& args) {
  const OperandDims &in = args.signature.inputs()[0], &out = args.signature.outputs()[0];
  std::vector<int8_t> gone;
  for (const int8_t f : factors_of(in)) {
    if (!Signature::carries(out, f)) gone.push_back(f);
  }
  const Shape from = in_strides(args, 0);
  const Reduce r = {nest_over<2>(args, factors_of(out), {out_strides(args, 0), from}),
                    nest_over<1>(args, factors_of(out), {from}), nest_over<1>(args, gone, {from})};
  if (r.kept.count() == 0) return;
  // Along rows where the reduced factors are the input's fastest.
  const auto inner = [](const LoopNest<1>& nest) {
    return nest.sizes.empty() ? INT64_MAX : nest.steps.back()[0];
  };
  const bool rows = r.kept_in.sizes.empty() || inner(r.reduced) < inner(r.kept_in);
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    using State = StateOf<Statistic<T>>;
    using Out = std::conditional_t<kStatistics, Statistic<T>, T>;
    const Results<State, Out> results = {args.out[0].as<Out>(), static_cast<State*>(args.workspace),
                                         loops_of(r.kept)};
    if (rows) {
      by_rows<State, T, Out>(args, r, results);
    } else {
      by_columns<State, T, Out>(args, r, results);
    }
  });
}

}  // namespace

void sum_cuda(const KernelArgs& args) {
  if (is_half(args.in[0].dtype) && !is_half(args.out[0].dtype)) return reduce<SumOf, true>(args);
  reduce<SumOf, false>(args);
}
void max_cuda(const KernelArgs& args) { reduce<MaxOf, false>(args); }
void logsumexp_cuda(const KernelArgs& args) { reduce<LogSumExpOf, true>(args); }

}  // namespace cleave
