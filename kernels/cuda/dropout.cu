// Dropout, with exactly the CPU's mask: which elements are kept depends on where they lie in the
// whole tensor alone (kernels/dropout_mask.h).
#include "kernels/cuda/check.h"
#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/loops.cuh"

namespace cleave {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 132 * 16;

// at[i] = where the element with this row-major index of the shard lies in operand i.
__device__ void placed_offsets(const PlacedLoops& placed, int64_t element,
                               int64_t (&at)[PlacedLoops::kOperands]) {
  const auto& loops = placed.loops;
  for (int64_t& offset : at) offset = 0;
  for (int d = loops.rank - 1; d >= 0; --d) {
    const int64_t size = loops.sizes[d];
    const int64_t rest =
        loops.small ? static_cast<uint32_t>(element) / static_cast<uint32_t>(size) : element / size;
    const int64_t index = (element - rest * size) * placed.lengths[d];
    at[PlacedLoops::kX] += index * loops.steps[d][PlacedLoops::kX];
    at[PlacedLoops::kY] += index * loops.steps[d][PlacedLoops::kY];
    at[PlacedLoops::kIndex] +=
        position(placed.positions[d], index) * loops.steps[d][PlacedLoops::kIndex];
    element = rest;
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    drop(const T* x, T* y, PlacedLoops loops, DropoutRule rule, const int* step) {
  using S = typename Sum<T>::Type;
  const DeviceMask<S> mask(rule, *step);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < loops.loops.count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    int64_t at[PlacedLoops::kOperands];
    placed_offsets(loops, i, at);
    const Vec<T, N> from = load<N>(x + at[PlacedLoops::kX]);
    S keep[N];
    mask.fill(static_cast<uint64_t>(at[PlacedLoops::kIndex]), keep);
    Vec<T, N> to;
#pragma unroll
    for (int j = 0; j < N; ++j) to.x[j] = To<T>::of(number(from.x[j]) * keep[j]);
    store(y + at[PlacedLoops::kY], to);
  }
}

}  // namespace

void dropout_cuda(const KernelArgs& args) {
  with_device_float(args.in[0].dtype, [&]<class T>(T) {
    constexpr int kVector = 16 / static_cast<int>(sizeof(T));
    PlacedLoops loops = placed_loops(args);
    const bool vectors = make_vectors(loops, args, kVector);
    const unsigned blocks = blocks_for(loops.loops.count, kThreads, kBlocks);
    if (blocks == 0) return;
    const DropoutRule rule(args.seed, args.attrs.text("name"), args.attrs.real("p"));
    const auto* x = args.in[0].as<const T>();
    const auto* step = args.in[1].as<const int>();
    const auto stream = static_cast<cudaStream_t>(args.stream);
    if (vectors) {
      drop<T, kVector><<<blocks, kThreads, 0, stream>>>(x, args.out[0].as<T>(), loops, rule, step);
    } else {
      drop<T, 1><<<blocks, kThreads, 0, stream>>>(x, args.out[0].as<T>(), loops, rule, step);
    }
  });
  cuda_check(cudaGetLastError());
}

}  // namespace cleave
