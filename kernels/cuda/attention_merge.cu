// What the same queries found in two sets of keys, made one: one pass, some lanes of a warp a row.
#include "kernels/cuda/check.h"
#include "kernels/cuda/loops.cuh"

namespace cleave {
namespace {

constexpr int kThreads = 256;

enum Operand { kO, kLse, kOtherO, kOtherLse, kOut, kOutLse, kOperands };

struct MergeRows {
  Loops<kOperands> rows;
  int64_t width = 1;                  // of a row
  int64_t o = 1, other = 1, out = 1;  // steps along it
};

// kLanes lanes have a row; a row's log-sum-exps are read by all of them before one writes it, as
// results may lie on operands.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    merge(MergeRows m, int lanes, const T* o, const typename Sum<T>::Type* lse, const T* other,
          const typename Sum<T>::Type* other_lse, T* out, typename Sum<T>::Type* out_lse) {
  using S = typename Sum<T>::Type;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = thread / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const bool there = row < m.rows.count;
  int64_t at[kOperands];
  m.rows.offsets(there ? row : 0, at);
  const S a = lse[at[kLse]], b = other_lse[at[kOtherLse]];
  __syncwarp();
  if (!there) return;
  const S nothing = static_cast<S>(-INFINITY), top = max(a, b);
  // No key seen so far at all: nothing to weigh.
  const bool any = top != nothing;
  const S of_a = any ? exp_of(a - top) : S{0}, of_b = any ? exp_of(b - top) : S{0};
  const S sum = of_a + of_b, x = any ? of_a / sum : S{0}, y = any ? of_b / sum : S{0};
  for (int64_t i = static_cast<int64_t>(lane) * N; i < m.width;
       i += static_cast<int64_t>(lanes) * N) {
    const Vec<T, N> from = load<N>(o + at[kO] + i * m.o);
    const Vec<T, N> from_other = load<N>(other + at[kOtherO] + i * m.other);
    Vec<T, N> to;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      to.x[j] = To<T>::of(x * number(from.x[j]) + y * number(from_other.x[j]));
    }
    store(out + at[kOut] + i * m.out, to);
  }
  if (lane == 0) out_lse[at[kOutLse]] = any ? top + log_of(sum) : nothing;
}

}  // namespace

void attention_merge_cuda(const KernelArgs& args) {
  const auto rows =
      nest_over<kOperands>(args, factors_of(args.signature.outputs()[1]),
                           {in_strides(args, 0), in_strides(args, 1), in_strides(args, 2),
                            in_strides(args, 3), out_strides(args, 0), out_strides(args, 1)});
  MergeRows m;
  m.rows = loops_of(rows);
  if (m.rows.count == 0) return;
  m.width = args.out[0].shape.back();
  m.o = args.in[0].strides.back();
  m.other = args.in[2].strides.back();
  m.out = args.out[0].strides.back();
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    using S = typename Sum<T>::Type;
    constexpr int kVector = kWide<T>;
    const bool vectors = wide_rows<T>(rows, kO, args.in[0].data, m.o, m.width) &&
                         wide_rows<T>(rows, kOtherO, args.in[2].data, m.other, m.width) &&
                         wide_rows<T>(rows, kOut, args.out[0].data, m.out, m.width);
    int lanes = 1;
    while (lanes < 32 && lanes * (vectors ? kVector : 1) < m.width) lanes *= 2;
    const auto launch = [&](auto kernel) {
      kernel<<<blocks_for(m.rows.count * lanes, kThreads), kThreads, 0,
               static_cast<cudaStream_t>(args.stream)>>>(
          m, lanes, args.in[0].as<const T>(), args.in[1].as<const S>(), args.in[2].as<const T>(),
          args.in[3].as<const S>(), args.out[0].as<T>(), args.out[1].as<S>());
    };
    if (vectors) {
      launch(merge<T, kVector>);
    } else {
      launch(merge<T, 1>);
    }
  });
  cuda_check(cudaGetLastError());
}

}  // namespace cleave
