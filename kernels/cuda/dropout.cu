// Dropout, with exactly the CPU's mask: which elements are kept depends on where they lie in the
// whole tensor alone (kernels/dropout_mask.h).
#include "kernels/cuda/check.h"
#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/loops.cuh"

namespace cleave {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 132 * 16;

// The loops over an operand, x, of a shard and its result, y, with where each element lies in the
// whole tensor; each loop but those of factors that are not cut is one factor.
struct PlacedLoops {
  enum { kX, kY, kIndex, kOperands };  // a step of kIndex is that of the whole tensor, row-major
  using Nest = Loops<kOperands>;
  Nest loops;
  Shard shards[Nest::kMost];
  int64_t inner_length = 1;  // elements that a step of the innermost loop goes

  // at[i] = where the element with this row-major index of the shard lies in operand i.
  __device__ void offsets(int64_t element, int64_t (&at)[kOperands]) const {
    for (int64_t& offset : at) offset = 0;
    for (int d = loops.dims - 1; d >= 0; --d) {
      int64_t index;
      element = loops.divided(element, d, index);
      if (d == loops.dims - 1) index *= inner_length;
      at[kX] += index * loops.step[d][kX];
      at[kY] += index * loops.step[d][kY];
      at[kIndex] += shards[d].position(index) * loops.step[d][kIndex];
    }
  }
};

// Over input 0 and output 0, which have the same dimensions.
PlacedLoops placed_loops(const KernelArgs& args) {
  const auto factors = factors_of(args.signature.inputs()[0]);
  const Shape x = in_strides(args, 0), y = out_strides(args, 0);
  Shape weights(x.size(), 0);  // whole strides
  int64_t weight = 1;
  for (size_t d = factors.size(); d-- > 0;) {
    const auto f = static_cast<size_t>(factors[d]);
    weights[f] = weight;
    weight *= args.extents[f].global;
  }
  PlacedLoops placed;
  LoopNest<PlacedLoops::kOperands> run;  // of factors that are not cut
  const auto add = [&](const LoopNest<PlacedLoops::kOperands>& nest, const Extent& extent) {
    for (size_t d = 0; d < nest.sizes.size(); ++d) {
      const int last = placed.loops.dims;
      placed.loops.add(nest.sizes[d]);
      for (size_t o = 0; o < nest.steps[d].size(); ++o) {
        placed.loops.step[last][o] = nest.steps[d][o];
      }
      placed.shards[last] = shard_of(extent);
    }
  };
  for (const int8_t factor : factors) {
    const auto f = static_cast<size_t>(factor);
    const Extent& extent = args.extents[f];
    if (extent.cuts.empty()) {
      run.add(extent.local, {x[f], y[f], weights[f]});
      continue;
    }
    add(run, {});
    add({.sizes = {extent.local}, .steps = {{x[f], y[f], weights[f]}}}, extent);
    run = {};
  }
  add(run, {});
  return placed;
}

// Lets the innermost loop go `length` elements at a time, when the operands, and the positions,
// can.
bool make_vectors(PlacedLoops& placed, const KernelArgs& args, int length) {
  auto& loops = placed.loops;
  if (loops.dims == 0) return false;
  const int last = loops.dims - 1;
  if (loops.size[last] % length != 0) return false;
  for (const int64_t step : loops.step[last]) {
    if (step != 1) return false;
  }
  for (int d = 0; d < last; ++d) {
    if (loops.step[d][PlacedLoops::kX] % length != 0) return false;
    if (loops.step[d][PlacedLoops::kY] % length != 0) return false;
  }
  const Shard& inner = placed.shards[last];
  for (int c = 0; c < inner.cuts; ++c) {
    if (inner.chunk[c] % length != 0) return false;
  }
  for (const void* data : {args.in[0].data, args.out[0].data}) {
    if (reinterpret_cast<uintptr_t>(data) % 16 != 0) return false;
  }
  loops.resize_inner(loops.size[last] / length);
  placed.inner_length = length;
  return true;
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    drop(const T* x, T* y, PlacedLoops loops, DropoutRule rule, const int* step) {
  using S = typename Sum<T>::Type;
  const DeviceMask<S> mask(rule, *step);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < loops.loops.count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    int64_t at[PlacedLoops::kOperands];
    loops.offsets(i, at);
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
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    constexpr int kVector = kWide<T>;
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
