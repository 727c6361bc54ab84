// The k largest of a row, in the order of the CPU: what is not a number first, then the largest; of
// equals the one with the lower index. Each of k passes finds the first of those that come after
// the last one found, so no pass depends on how the row is divided among threads.
#include "kernels/cuda/rows.cuh"
#include "kernels/rows.h"

namespace cleave {
namespace {

constexpr int kThreads = 128;

// An element of a row.
template <class A>
struct Element {
  A value;
  int index;

  __device__ bool before(const Element& other) const {
    const bool nan = value != value, other_nan = other.value != other.value;
    if (nan != other_nan) return nan;
    if (!nan && value != other.value) return value > other.value;
    return index < other.index;
  }
};

template <class T>
struct TopK {
  const T* x;
  T* values;
  int* indices;
  Loops<3> rows;  // x, values, indices
  int n, k;
  int64_t x_step, value_step, index_step;
};

// G lanes a row.
template <class T, int G>
__global__ void __launch_bounds__(kThreads) largest_of_rows(TopK<T> t) {
  using A = Statistic<T>;
  constexpr int kKept = 8;  // elements of a lane in registers
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kThreads / G) + threadIdx.x / G;
  const bool there = r < t.rows.count;  // all lanes take part in shuffles
  const int lane = threadIdx.x % G;
  int64_t at[3];
  t.rows.offsets(there ? r : 0, at);
  const T* const x = t.x + at[0];
  const Element<A> none = {static_cast<A>(-kInfinity), INT32_MAX};  // after all others
  Element<A> kept[kKept];
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int i = lane + j * G;
    kept[j] = i < t.n ? Element<A>{number(x[i * t.x_step]), i} : none;
  }
  Element<A> last = {static_cast<A>(__builtin_nan("")), -1};  // before all others
  for (int found = 0; found < t.k; ++found) {
    Element<A> first = none;
    const auto see = [&](const Element<A>& e) {
      if (last.before(e) && e.before(first)) first = e;
    };
#pragma unroll
    for (int j = 0; j < kKept; ++j) see(kept[j]);
    for (int i = lane + kKept * G; i < t.n; i += G) see({number(x[i * t.x_step]), i});
#pragma unroll
    for (int width = G / 2; width > 0; width /= 2) {
      const Element<A> other = {__shfl_xor_sync(0xffffffffu, first.value, width),
                                __shfl_xor_sync(0xffffffffu, first.index, width)};
      if (other.before(first)) first = other;
    }
    if (there && lane == 0) {
      t.values[at[1] + found * t.value_step] = To<T>::of(first.value);
      t.indices[at[2] + found * t.index_step] = first.index;
    }
    last = first;
  }
}

template <class T>
struct Backward {
  const T* dy;
  const int* indices;
  T* dx;
  Loops<3> rows;  // dx, dy, indices
  Shard all;      // the numbers that were chosen from
  int chosen;
  int64_t dx_step, dy_step, index_step;
};

template <class T>
__global__ void __launch_bounds__(kThreads) chosen_of_rows(Backward<T> b) {
  using A = Statistic<T>;
  const int64_t element = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t r = element / b.all.local, i = element - r * b.all.local;
  if (r >= b.rows.count) return;
  int64_t at[3];
  b.rows.offsets(r, at);
  const int64_t position = b.all.position(i);
  A sum = 0;
  for (int j = 0; j < b.chosen; ++j) {
    const int index = b.indices[at[2] + j * b.index_step];
    if (index == position) sum += number(b.dy[at[1] + j * b.dy_step]);
    // The CPU refuses it: here what comes of it must be seen.
    if (index < 0 || index >= b.all.global) sum = static_cast<A>(__builtin_nan(""));
  }
  b.dx[at[0] + i * b.dx_step] = To<T>::of(sum);
}

}  // namespace

void top_k_cuda(const KernelArgs& args) {
  const OperandDims& in = args.signature.inputs()[0];
  const auto row = static_cast<size_t>(in.back()[0]);
  const auto chosen = static_cast<size_t>(args.signature.outputs()[0].back()[0]);
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    const Shape x = in_strides(args, 0), values = out_strides(args, 0),
                indices = out_strides(args, 1);
    const auto rows =
        nest_over<3>(args, factors_without(in, static_cast<int>(row)), {x, values, indices});
    const int64_t n = args.extents[row].local, k = args.extents[chosen].local;
    CLEAVE_ASSERT(n < INT32_MAX, "a row of {} elements", n);
    if (rows.count() * k == 0) return;
    const TopK<T> t = {.x = args.in[0].as<const T>(),
                       .values = args.out[0].as<T>(),
                       .indices = args.out[1].as<int>(),
                       .rows = loops_of(rows),
                       .n = static_cast<int>(n),
                       .k = static_cast<int>(k),
                       .x_step = x[row],
                       .value_step = values[chosen],
                       .index_step = indices[chosen]};
    const auto launch = [&]<int G>() {
      const auto blocks = static_cast<unsigned>(ceil_div(rows.count(), kThreads / G));
      largest_of_rows<T, G><<<blocks, kThreads, 0, static_cast<cudaStream_t>(args.stream)>>>(t);
    };
    if (n <= 64) {
      launch.template operator()<8>();
    } else {
      launch.template operator()<32>();
    }
    cuda_check(cudaGetLastError());
  });
}

void top_k_backward_cuda(const KernelArgs& args) {
  const OperandDims& chosen_dims = args.signature.inputs()[1];
  const auto e = static_cast<size_t>(args.signature.outputs()[0].back()[0]);
  const auto k = static_cast<size_t>(chosen_dims.back()[0]);
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    const Shape dx = out_strides(args, 0), dy = in_strides(args, 0), indices = in_strides(args, 1);
    const auto rows =
        nest_over<3>(args, factors_without(chosen_dims, static_cast<int>(k)), {dx, dy, indices});
    const int64_t elements = rows.count() * args.extents[e].local;
    if (elements == 0) return;
    const Backward<T> b = {.dy = args.in[0].as<const T>(),
                           .indices = args.in[1].as<const int>(),
                           .dx = args.out[0].as<T>(),
                           .rows = loops_of(rows),
                           .all = shard_of(args.extents[e]),
                           .chosen = static_cast<int>(args.extents[k].local),
                           .dx_step = dx[e],
                           .dy_step = dy[k],
                           .index_step = indices[k]};
    const auto blocks = static_cast<unsigned>(ceil_div(elements, kThreads));
    chosen_of_rows<<<blocks, kThreads, 0, static_cast<cudaStream_t>(args.stream)>>>(b);
    cuda_check(cudaGetLastError());
  });
}

}  // namespace cleave
