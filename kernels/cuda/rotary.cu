// Rotary position embedding. A block has one position, or some where there is little to turn, whose
// cosines and sines it works out once for all heads and sequences: angles in double, since
// positions are large. Queries and keys go in one launch.
#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include "kernels/cuda/many.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/rows.h"

namespace cleave {
namespace {

constexpr int kThreads = 256;

constexpr int kTogether = 2;     // vectors of each half that a thread has on their way
constexpr int kLaunched = 4096;  // bytes that applications of one launch take among its parameters
constexpr int kPowers = 80;

// theta^(-i / half) for i < kPowers * kPowers, as a product of two numbers.
struct Frequencies {
  double low[kPowers], high[kPowers];

  static Frequencies from(double theta, int64_t half) {
    const auto power = [&](int i) {
      return std::pow(theta, -static_cast<double>(i) / static_cast<double>(half));
    };
    Frequencies f;
    for (int i = 0; i < kPowers; ++i) f.low[i] = power(i), f.high[i] = power(i * kPowers);
    return f;
  }
  __device__ double of(unsigned i) const { return low[i % kPowers] * high[i / kPowers]; }
};

template <class T>
struct Rotary {
  const T* x;
  T* y;
  Loops<2> others;  // x, y: every head of every sequence
  int64_t count;    // of positions
  int start, half;  // a head is [start, 2 half]
  int64_t x_position, y_position, x_step, y_step;
  Frequencies frequencies;
  double sign;
  Shard positions;
  int each, parts;  // positions of a block, and blocks that share them
  Divisor by_parts, by_half, by_others;
  Divisor by_vectors, by_starts;  // vectors of half a head, and of what lies before `start`

  unsigned blocks() const { return static_cast<unsigned>(ceil_div(count, each) * parts); }
  size_t table_bytes() const { return static_cast<size_t>(each) * half * 2 * sizeof(Statistic<T>); }
};
template <class T>
using Rotaries = Table<Rotary<T>, kLaunched>;
static_assert(Rotaries<double>::kMost >= 2);  // queries and keys

// The cosine and sine of position * theta^(-i / half).
__device__ inline void turn_of(double position, double frequency, float& cosine, float& sine) {
  // Whole turns go before the angle is rounded to float.
  const double turns = position * frequency * 0.15915494309189535;  // 1 / (2 pi)
  sincospif(static_cast<float>(2 * (turns - rint(turns))), &sine, &cosine);
}
__device__ inline void turn_of(double position, double frequency, double& cosine, double& sine) {
  sincos(position * frequency, &sine, &cosine);
}

// A vector that waits for its turn.
template <class T, int N>
struct Waiting {
  Raw raw;

  __device__ void load(const T* p) { raw = Raw::at(p); }
  __device__ Statistic<T> number_at(int j) const { return raw.template number_at<T>(j); }
  __device__ void round(const Statistic<T> (&x)[N]) { raw = Raw::of<T>(x); }
  __device__ void store(T* p) const { raw.store_at(p); }
};
template <class T>
struct Waiting<T, 1> {
  T x;

  __device__ void load(const T* p) { x = *p; }
  __device__ Statistic<T> number_at(int) const { return number(x); }
  __device__ void round(const Statistic<T> (&numbers)[1]) { x = To<T>::of(numbers[0]); }
  __device__ void store(T* p) const { *p = x; }
};

// The first vectors of a block are on their way while it works out its angles.
template <class T, int N>
__global__ void __launch_bounds__(kThreads, 4) rotate(const __grid_constant__ Rotaries<T> table) {
  using A = Statistic<T>;
  extern __shared__ double2 table_memory[];
  const int which = table.item_of(blockIdx.x);
  const Rotary<T>& r = table.items[which];
  const unsigned block = blockIdx.x - table.first[which], group = r.by_parts.quotient(block);
  const int64_t begin = group * int64_t{r.each};
  const int here = static_cast<int>(min(int64_t{r.each}, r.count - begin));
  A* const cosines = reinterpret_cast<A*>(table_memory);  // [each, half]
  A* const sines = cosines + r.each * r.half;             // [each, half]
  const unsigned first = (block - group * r.parts) * kThreads + threadIdx.x;
  const unsigned step = r.parts * kThreads;
  // Vector i of all that the block has, of `n` in each head from element `start` on: its first
  // element and angle.
  struct Place {
    const T* x;
    T* y;
    unsigned angle;
  };
  const auto others = static_cast<unsigned>(r.others.count);
  const T* const block_x = r.x + begin * r.x_position;
  T* const block_y = r.y + begin * r.y_position;
  const auto place_of = [&](unsigned i, unsigned n, const Divisor& by_n, int start) {
    const unsigned row = by_n.quotient(i), p = r.each == 1 ? 0 : r.by_others.quotient(row);
    const unsigned j = (i - row * n) * N;  // of a head
    int64_t at[2];
    r.others.small_offsets(row - p * others, at);
    const int64_t x_step = N == 1 ? r.x_step : 1, y_step = N == 1 ? r.y_step : 1;
    return Place{block_x + (at[0] + p * r.x_position + (start + j) * x_step),
                 block_y + (at[1] + p * r.y_position + (start + j) * y_step), p * r.half + j};
  };
  const int64_t x_half = r.half * (N == 1 ? r.x_step : 1),
                y_half = r.half * (N == 1 ? r.y_step : 1);
  const auto vectors = static_cast<unsigned>(r.half / N),
             starts = static_cast<unsigned>(r.start / N);
  const unsigned turned = here * others * vectors, copied = here * others * starts;
  Place at[kTogether];
  Waiting<T, N> a[kTogether], b[kTogether];  // from both halves
  const auto read = [&](unsigned from) {
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      const unsigned i = from + k * step;
      if (i >= turned) break;
      at[k] = place_of(i, vectors, r.by_vectors, r.start);
      a[k].load(at[k].x);
      b[k].load(at[k].x + x_half);
    }
  };
  read(first);
  for (int i = threadIdx.x; i < here * r.half; i += kThreads) {
    const unsigned p = r.by_half.quotient(i);
    const auto position = static_cast<double>(r.positions.position(begin + p));
    A sine;
    turn_of(position, r.frequencies.of(i - p * r.half), cosines[i], sine);
    sines[i] = static_cast<A>(r.sign) * sine;
  }
  __syncthreads();
  for (unsigned from = first; from < turned;) {
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      if (from + k * step >= turned) break;
      A left[N], right[N];
      constexpr int kAngles = N < kWide<A> ? N : kWide<A>;
#pragma unroll
      for (int j = 0; j < N; j += kAngles) {
        const auto cosine = load<kAngles>(cosines + at[k].angle + j);
        const auto sine = load<kAngles>(sines + at[k].angle + j);
#pragma unroll
        for (int m = 0; m < kAngles; ++m) {
          const A x = a[k].number_at(j + m), y = b[k].number_at(j + m);
          left[j + m] = x * cosine.x[m] - y * sine.x[m];
          right[j + m] = y * cosine.x[m] + x * sine.x[m];
        }
      }
      a[k].round(left);
      a[k].store(at[k].y);
      b[k].round(right);
      b[k].store(at[k].y + y_half);
    }
    from += kTogether * step;
    read(from);
  }
  for (unsigned i = first; i < copied; i += step) {
    const Place place = place_of(i, starts, r.by_starts, 0);
    Waiting<T, N> vector;
    vector.load(place.x);
    vector.store(place.y);
  }
}

// One application, but for how it is shared among blocks, and whether 16 bytes at a time will do.
template <class T>
Rotary<T> rotary_of(const KernelArgs& args, bool& wide) {
  const OperandDims& dims = args.signature.inputs()[0];
  const int e = dims.back()[0];
  size_t s = 0;  // the factor along which positions count
  for (size_t f = 0; f < args.extents.size(); ++f) {
    if (args.signature.factors()[f].indexed) s = f;
  }
  const Shape x = in_strides(args, 0), y = out_strides(args, 0);
  std::vector<int8_t> factors = factors_without(dims, e);
  const auto rows = nest_over<2>(args, factors, {x, y});
  std::erase(factors, static_cast<int8_t>(s));
  const auto others = nest_over<2>(args, factors, {x, y});
  const auto along = static_cast<size_t>(e);
  const int64_t size = args.extents[along].local;
  const int64_t start = args.attrs.integer_or("start", 0), half = (size - start) / 2;
  CLEAVE_ASSERT(half * 2 * static_cast<int64_t>(sizeof(Statistic<T>)) <= 48 << 10 &&
                    half <= kPowers * kPowers,
                "a head of {} numbers", size);
  Rotary<T> r = {.x = args.in[0].as<const T>(),
                 .y = args.out[0].as<T>(),
                 .others = loops_of(others),
                 .count = args.extents[s].local,
                 .start = static_cast<int>(start),
                 .half = static_cast<int>(half),
                 .x_position = x[s],
                 .y_position = y[s],
                 .x_step = x[along],
                 .y_step = y[along],
                 .frequencies = Frequencies::from(args.attrs.real("theta"), half),
                 .sign = args.attrs.integer_or("inverse", 0) != 0 ? -1.0 : 1.0,
                 .positions = shard_of(args.extents[s]),
                 .each = 1,
                 .parts = 1};
  wide = start % kWide<T> == 0 && half % kWide<T> == 0 &&
         wide_rows<T>(rows, 0, r.x, r.x_step, size) && wide_rows<T>(rows, 1, r.y, r.y_step, size);
  return r;
}

// So many positions a block that every thread has kTogether vectors; enough blocks for every
// multiprocessor where there are few positions.
template <int N, class T>
void share_out(Rotary<T>& r) {
  const int64_t vectors = r.others.count * std::max(r.half, r.start) / N;
  CLEAVE_ASSERT(vectors <= INT32_MAX / 4, "{} numbers at one position", vectors * N);
  const int64_t most = std::min(kTogether * kThreads / vectors, r.count / 512);
  r.each = static_cast<int>(std::clamp<int64_t>(most, 1, kThreads / r.half + 1));
  const int64_t groups = ceil_div(r.count, r.each);
  r.parts = static_cast<int>(
      std::clamp<int64_t>(ceil_div(1024, groups), 1, ceil_div(r.each * vectors, kThreads)));
  const auto divisor = [](int64_t n) { return Divisor(static_cast<uint32_t>(n)); };
  r.by_parts = divisor(r.parts);
  r.by_half = divisor(r.half);
  r.by_others = divisor(r.others.count);
  r.by_vectors = divisor(r.half / N);
  if (r.start >= N) r.by_starts = divisor(r.start / N);
}

template <int N, class T>
void launch(std::vector<Rotary<T>> items, void* stream) {
  for (Rotary<T>& r : items) share_out<N>(r);
  in_tables<kLaunched>(
      items, [](const Rotary<T>& r) { return r.blocks(); },
      [&](const Rotaries<T>& table, unsigned blocks) {
        size_t bytes = 0;
        for (int i = 0; i < table.count; ++i) bytes = std::max(bytes, table.items[i].table_bytes());
        rotate<T, N><<<blocks, kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(table);
        cuda_check(cudaGetLastError());
      });
}

}  // namespace

void rotary_cuda_many(std::span<const KernelArgs> all) {
  std::set<DType> dtypes;
  for (const KernelArgs& args : all) dtypes.insert(args.in[0].dtype);
  for (const DType dtype : dtypes) {
    with_gpu_float(dtype, [&]<class T>(T) {
      std::vector<Rotary<T>> wide, narrow;
      for (const KernelArgs& args : all) {
        if (args.in[0].dtype != dtype || args.in[0].numel() == 0) continue;
        bool is_wide = false;
        const Rotary<T> r = rotary_of<T>(args, is_wide);
        (is_wide ? wide : narrow).push_back(r);
      }
      launch<kWide<T>>(std::move(wide), all[0].stream);
      launch<1>(std::move(narrow), all[0].stream);
    });
  }
}

void rotary_cuda(const KernelArgs& args) { rotary_cuda_many({&args, 1}); }

}  // namespace cleave
