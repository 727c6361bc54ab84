// Rotary position embedding. A block has one position, or some where there is little to turn, whose
// cosines and sines it works out once for all heads and sequences: angles in double, since
// positions are large.
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
  int64_t count;    // of positions
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

// A block has `each` positions, one after the other. Its first vectors are on their way while it
// works out their angles, and later ones while it turns those before.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) rotate(Rotary<T> r, int each) {
  using A = Statistic<T>;
  extern __shared__ double2 table_memory[];
  A* const cosines = reinterpret_cast<A*>(table_memory);  // [each, half]
  A* const sines = cosines + each * r.half;               // [each, half]
  const int64_t begin = blockIdx.x * int64_t{each};
  const int here = static_cast<int>(min(int64_t{each}, r.count - begin));
  const int64_t first = blockIdx.y * static_cast<int64_t>(kThreads) + threadIdx.x;
  const int64_t step = gridDim.y * static_cast<int64_t>(kThreads);
  // Vector i of all that the block has, of `n` in each head: its head's elements, position and
  // number. Where there are several positions, there are few vectors.
  struct Place {
    const T* x;
    T* y;
    int position, vector;
  };
  const auto place_of = [&](int n, int64_t i) {
    const int64_t all = r.others.count * n;  // of a position
    const int p = each == 1 ? 0 : static_cast<int>(i) / static_cast<int>(all);
    const int64_t other = (i - p * all) / n;
    int64_t at[2];
    r.others.offsets(other, at);
    return Place{r.x + (begin + p) * r.x_position + at[0], r.y + (begin + p) * r.y_position + at[1],
                 p, static_cast<int>(i - p * all - other * n)};
  };
  const int vectors = r.half / N, starts = r.start / N;
  const int64_t turned = here * r.others.count * vectors, copied = here * r.others.count * starts;
  Place next = {};
  Vec<T, N> next_a = {}, next_b = {};  // from both halves
  const auto read = [&](int64_t i) {
    next = place_of(vectors, i);
    const T* const from = next.x + r.start * r.x_step;
    next_a = row_load<N>(from, r.x_step, next.vector);
    next_b = row_load<N>(from + r.half * r.x_step, r.x_step, next.vector);
  };
  if (first < turned) read(first);
  for (int i = threadIdx.x; i < here * r.half; i += kThreads) {
    const auto position = static_cast<double>(r.positions.position(begin + i / r.half));
    A sine;
    turn_of(position, exp2(-r.log2_theta * (i % r.half) / r.half), cosines[i], sine);
    sines[i] = static_cast<A>(r.sign) * sine;
  }
  __syncthreads();
  for (int64_t i = first; i < turned;) {
    const Place at = next;
    const Vec<T, N> a = next_a, b = next_b;
    i += step;
    if (i < turned) read(i);
    Vec<T, N> left, right;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const int angle = at.position * r.half + at.vector * N + j;
      const A cosine = cosines[angle], sine = sines[angle];
      left.x[j] = To<T>::of(number(a.x[j]) * cosine - number(b.x[j]) * sine);
      right.x[j] = To<T>::of(number(b.x[j]) * cosine + number(a.x[j]) * sine);
    }
    T* const to = at.y + r.start * r.y_step;
    row_store(to, r.y_step, at.vector, left);
    row_store(to + r.half * r.y_step, r.y_step, at.vector, right);
  }
  for (int64_t i = first; i < copied; i += step) {
    const Place at = place_of(starts, i);
    row_store(at.y, r.y_step, at.vector, row_load<N>(at.x, r.x_step, at.vector));
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
                         .count = positions,
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
      // So many positions that every thread has two vectors; enough blocks for every multiprocessor
      // where there are few positions.
      const int64_t vectors = others.count() * (half / N);
      const int64_t each = std::clamp<int64_t>(std::min(2 * kThreads / vectors, positions / 512), 1,
                                               kThreads / half + 1);
      const int64_t groups = ceil_div(positions, each);
      const int64_t parts =
          std::clamp<int64_t>(ceil_div(1024, groups), 1, ceil_div(each * vectors, kThreads));
      const dim3 blocks(static_cast<unsigned>(groups), static_cast<unsigned>(parts));
      const auto table = static_cast<size_t>(each * half) * 2 * sizeof(Statistic<T>);
      rotate<T, N><<<blocks, kThreads, table, static_cast<cudaStream_t>(args.stream)>>>(
          k, static_cast<int>(each));
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
