// Loops over strided tensors, as the host prepares them and kernels take them: by value. The
// counterpart of kernels/loops.h, which nvcc cannot read (it cannot read fmt). What runs on the
// device is in loops.cuh.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "graph/kernel_args.h"

namespace cleave {

// The most loops that a kernel takes.
inline constexpr int kMostLoops = 12;

// Nested loops, and how far a step of each moves in each of N operands.
template <int N>
struct DeviceLoops {
  int rank = 0;
  bool small = true;  // 32 bits are enough to count the elements
  int64_t count = 1;  // of elements
  int64_t sizes[kMostLoops] = {};
  int64_t steps[kMostLoops][N] = {};
};

// An operand of a call.
struct OperandRef {
  const OperandDims* dims;
  const TensorView* view;
};
inline OperandRef input(const KernelArgs& args, size_t i) {
  return {&args.signature.inputs()[i], &args.in[i]};
}
inline OperandRef output(const KernelArgs& args, size_t o) {
  return {&args.signature.outputs()[o], &args.out[o]};
}

// Loops over operands that lie in any way; those that can be one are.
struct HostLoops {
  std::vector<OperandRef> operands;
  std::vector<int64_t> sizes;               // outermost first; at most kMostLoops
  std::vector<std::vector<int64_t>> steps;  // [loops, operands]
};
// Over the factors of `over`, in its order.
HostLoops loops_over(const KernelArgs& args, const OperandDims& over,
                     std::vector<OperandRef> operands);

// Whether every operand can be accessed `length` elements at a time, 16 bytes at once, along the
// innermost loop.
bool in_vectors(const HostLoops& loops, int length);

// The loops for a kernel; the innermost goes `length` elements at a time.
template <int N>
DeviceLoops<N> device_loops(const HostLoops& host, int length = 1) {
  DeviceLoops<N> loops;
  for (size_t d = 0; d < host.sizes.size(); ++d) {
    const int64_t unit = d + 1 == host.sizes.size() ? length : 1;
    loops.sizes[d] = host.sizes[d] / unit;
    for (size_t i = 0; i < N; ++i) loops.steps[d][i] = host.steps[d][i] * unit;
    loops.count *= loops.sizes[d];
    ++loops.rank;
  }
  loops.small = loops.count <= INT32_MAX;
  return loops;
}

// The blocks of so many threads that count elements need, at most `most`.
inline unsigned blocks_for(int64_t count, int threads, int64_t most = INT32_MAX) {
  const int64_t blocks = (count + threads - 1) / threads;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}

// Extent::position for the device.
struct Positions {
  static constexpr int kMost = 6;
  int cuts = 0;  // in the order in which they are undone
  int64_t chunk[kMost] = {}, apart[kMost] = {}, first[kMost] = {};
};
Positions positions_of(const Extent& extent);

// The loops over an operand, x, of a shard and its result, y, with where each element lies in the
// whole tensor; each loop but those of factors that are not cut is one factor.
struct PlacedLoops {
  enum { kX, kY, kIndex, kOperands };  // a step of kIndex is that of the whole tensor, row-major
  DeviceLoops<kOperands> loops;
  Positions positions[kMostLoops];
  int64_t lengths[kMostLoops] = {};  // elements that a step of the loop goes
};
// Over input 0 and output 0, which have the same dimensions.
PlacedLoops placed_loops(const KernelArgs& args);
// Lets the innermost loop go `length` elements at a time, when the operands, and the positions,
// can.
bool make_vectors(PlacedLoops& placed, const KernelArgs& args, int length);

// A float in memory whose type is known only when the kernel runs.
struct AnyFloat {
  void* data = nullptr;
  DType dtype = DType::kF32;
};
inline AnyFloat any_float(const TensorView& view) { return {view.data, view.dtype}; }

// Throws InternalError: a kernel of floats is called for something else.
[[noreturn]] void no_kernel_for(DType dtype);

}  // namespace cleave
