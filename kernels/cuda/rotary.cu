// Rotary position embedding. A block has one position, whose cosines and sines it works out once
// for all heads and sequences: angles in double, since positions are large.
#include <cmath>

#include "kernels/cuda/rows.cuh"
#include "kernels/rows.h"

namespace cleave {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Rotary {
  const T* x;
  T* y;
  Loops<2> others;  // x, y: every head of every sequence
  int start, half;  // a head is [start, 2 half]
  int64_t x_position, y_position, x_step, y_step;
  double log2_theta, sign;
  Shard positions;
};

// The cosine and sine of position * theta^(-i / half).
__device__ inline void turn_of(double position, double frequency, float& cosine, float& sine) {
  // Whole turns go before the angle is rounded to float.
  const double turns = position * frequency * 0.15915494309189535;  // 1 / (2 pi)
  sincospif(static_cast<float>(2 * (turns - rint(turns))), &sine, &cosine);
}
__device__ inline void turn_of(double position, double frequency, double& cosine, double& sine) {
  sincos(position * frequency, &sine, &cosine);
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads) rotate(Rotary<T> r) {
  using A = Statistic<T>;
  extern __shared__ double2 table_memory[];
  A* const cosines = reinterpret_cast<A*>(table_memory);  // [half]
  A* const sines = cosines + r.half;                      // [half]
  const auto position = static_cast<double>(r.positions.position(blockIdx.x));
  for (int i = threadIdx.x; i < r.half; i += kThreads) {
    A sine;
    turn_of(position, exp2(-r.log2_theta * i / r.half), cosines[i], sine);
    sines[i] = static_cast<A>(r.sign) * sine;
  }
  __syncthreads();
  const T* const x = r.x + blockIdx.x * r.x_position;
  T* const y = r.y + blockIdx.x * r.y_position;
  const int vectors = r.half / N, starts = r.start / N;
  const int64_t first = blockIdx.y * static_cast<int64_t>(kThreads) + threadIdx.x;
  const int64_t step = gridDim.y * static_cast<int64_t>(kThreads);
  for (int64_t i = first; i < r.others.count * vectors; i += step) {
    const int64_t other = i / vectors;
    const int v = static_cast<int>(i - other * vectors);
    int64_t at[2];
    r.others.offsets(other, at);
    const T* const from = x + at[0] + r.start * r.x_step;
    T* const to = y + at[1] + r.start * r.y_step;
    const auto a = row_load<N>(from, r.x_step, v);
    const auto b = row_load<N>(from + r.half * r.x_step, r.x_step, v);
    Vec<T, N> left, right;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const A cosine = cosines[v * N + j], sine = sines[v * N + j];
      left.x[j] = To<T>::of(number(a.x[j]) * cosine - number(b.x[j]) * sine);
      right.x[j] = To<T>::of(number(b.x[j]) * cosine + number(a.x[j]) * sine);
    }
    row_store(to, r.y_step, v, left);
    row_store(to + r.half * r.y_step, r.y_step, v, right);
  }
  for (int64_t i = first; i < r.others.count * starts; i += step) {
    const int64_t other = i / starts;
    const int v = static_cast<int>(i - other * starts);
    int64_t at[2];
    r.others.offsets(other, at);
    row_store(y + at[1], r.y_step, v, row_load<N>(x + at[0], r.x_step, v));
  }
}

}  // namespace

void rotary_cuda(const KernelArgs& args) {
  const OperandDims& dims = args.signature.inputs()[0];
  const int e = dims.back()[0];
  size_t s = 0;  // the factor along which positions count
  for (size_t f = 0; f < args.extents.size(); ++f) {
    if (args.signature.factors()[f].indexed) s = f;
  }
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    const Shape x = in_strides(args, 0), y = out_strides(args, 0);
    std::vector<int8_t> factors = factors_without(dims, e);
    const auto rows = nest_over<2>(args, factors, {x, y});
    std::erase(factors, static_cast<int8_t>(s));
    const auto others = nest_over<2>(args, factors, {x, y});
    const auto along = static_cast<size_t>(e);
    const int64_t size = args.extents[along].local, positions = args.extents[s].local;
    const int64_t start = args.attrs.integer_or("start", 0), half = (size - start) / 2;
    CLEAVE_ASSERT(half * 2 * static_cast<int64_t>(sizeof(Statistic<T>)) <= 48 << 10,
                  "a head of {} numbers", size);
    if (rows.count() == 0) return;
    const Rotary<T> k = {.x = args.in[0].as<const T>(),
                         .y = args.out[0].as<T>(),
                         .others = loops_of(others),
                         .start = static_cast<int>(start),
                         .half = static_cast<int>(half),
                         .x_position = x[s],
                         .y_position = y[s],
                         .x_step = x[along],
                         .y_step = y[along],
                         .log2_theta = std::log2(args.attrs.real("theta")),
                         .sign = args.attrs.integer_or("inverse", 0) != 0 ? -1.0 : 1.0,
                         .positions = shard_of(args.extents[s])};
    const bool wide = start % kWide<T> == 0 && half % kWide<T> == 0 &&
                      wide_rows<T>(rows, 0, k.x, k.x_step, size) &&
                      wide_rows<T>(rows, 1, k.y, k.y_step, size);
    const auto go = [&]<int N>() {
      // Enough blocks for every multiprocessor where there are few positions.
      const int64_t most = ceil_div(others.count() * (half / N), kThreads);
      const int64_t parts = std::clamp<int64_t>(ceil_div(1024, positions), 1, most);
      const dim3 blocks(static_cast<unsigned>(positions), static_cast<unsigned>(parts));
      rotate<T, N><<<blocks, kThreads, static_cast<size_t>(half) * 2 * sizeof(Statistic<T>),
                     static_cast<cudaStream_t>(args.stream)>>>(k);
    };
    if (wide) {
      go.template operator()<kWide<T>>();
    } else {
      go.template operator()<1>();
    }
    cuda_check(cudaGetLastError());
  });
}

}  // namespace cleave
