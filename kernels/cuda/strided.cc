#include "kernels/cuda/strided.h"

#include <utility>

#include "graph/error.h"
#include "kernels/loops.h"

namespace cleave {

HostLoops loops_over(const KernelArgs& args, const OperandDims& over,
                     std::vector<OperandRef> operands) {
  HostLoops loops;
  loops.operands = std::move(operands);
  std::vector<Shape> strides;
  for (const OperandRef& o : loops.operands) {
    strides.push_back(factor_strides(args, *o.dims, *o.view));
  }
  for (const int8_t factor : factors_of(over)) {
    const auto f = static_cast<size_t>(factor);
    const int64_t size = args.extents[f].local;
    if (size == 1) continue;
    bool joins = !loops.sizes.empty();
    for (size_t i = 0; i < strides.size() && joins; ++i) {
      joins = loops.steps.back()[i] == strides[i][f] * size;
    }
    if (!joins) {
      loops.sizes.push_back(1);
      loops.steps.emplace_back(strides.size());
    }
    loops.sizes.back() *= size;
    for (size_t i = 0; i < strides.size(); ++i) loops.steps.back()[i] = strides[i][f];
  }
  CLEAVE_ASSERT(loops.sizes.size() <= static_cast<size_t>(kMostLoops),
                "operands lie in {} loops, and kernels take {}", loops.sizes.size(), kMostLoops);
  return loops;
}

bool in_vectors(const HostLoops& loops, int length) {
  if (loops.sizes.empty() || loops.sizes.back() % length != 0) return false;
  for (size_t i = 0; i < loops.operands.size(); ++i) {
    const TensorView& view = *loops.operands[i].view;
    if (loops.steps.back()[i] != 1) return false;
    if (reinterpret_cast<uintptr_t>(view.data) % 16 != 0) return false;
    for (size_t d = 0; d + 1 < loops.steps.size(); ++d) {
      if (loops.steps[d][i] * size_of(view.dtype) % 16 != 0) return false;
    }
  }
  return true;
}

Positions positions_of(const Extent& extent) {
  CLEAVE_ASSERT(extent.cuts.size() <= static_cast<size_t>(Positions::kMost),
                "a factor is cut {} times", extent.cuts.size());
  Positions p;
  int64_t size = extent.local;
  for (size_t c = extent.cuts.size(); c-- > 0; ++p.cuts) {
    const Cut& cut = extent.cuts[c];
    p.chunk[p.cuts] = size / cut.blocks;
    p.apart[p.cuts] = p.chunk[p.cuts] * cut.parts;
    p.first[p.cuts] = p.chunk[p.cuts] * cut.index;
    size *= cut.parts;
  }
  return p;
}

PlacedLoops placed_loops(const KernelArgs& args) {
  constexpr int kX = PlacedLoops::kX, kY = PlacedLoops::kY, kIndex = PlacedLoops::kIndex;
  const auto factors = factors_of(args.signature.inputs()[0]);
  const Shape x = in_strides(args, 0), y = out_strides(args, 0);
  PlacedLoops placed;
  auto& loops = placed.loops;
  Shape weights(factors.size());  // whole strides
  int64_t weight = 1;
  for (size_t d = factors.size(); d-- > 0;) {
    weights[d] = weight;
    weight *= args.extents[static_cast<size_t>(factors[d])].global;
  }
  bool cut_before = true;
  for (size_t d = 0; d < factors.size(); ++d) {
    const auto f = static_cast<size_t>(factors[d]);
    const Extent& extent = args.extents[f];
    const bool cut = !extent.cuts.empty();
    if (extent.local == 1 && !cut) continue;
    bool joins = !cut && !cut_before;
    if (joins) {
      const int64_t* const before = loops.steps[loops.rank - 1];
      joins = before[kX] == x[f] * extent.local && before[kY] == y[f] * extent.local &&
              before[kIndex] == weights[d] * extent.local;
    }
    if (!joins) {
      CLEAVE_ASSERT(loops.rank < kMostLoops, "more than {} loops", kMostLoops);
      loops.sizes[loops.rank++] = 1;
    }
    const int last = loops.rank - 1;
    loops.sizes[last] *= extent.local;
    loops.steps[last][kX] = x[f];
    loops.steps[last][kY] = y[f];
    loops.steps[last][kIndex] = weights[d];
    placed.positions[last] = positions_of(extent);
    placed.lengths[last] = 1;
    loops.count *= extent.local;
    cut_before = cut;
  }
  loops.small = loops.count <= INT32_MAX;
  return placed;
}

bool make_vectors(PlacedLoops& placed, const KernelArgs& args, int length) {
  constexpr int kX = PlacedLoops::kX, kY = PlacedLoops::kY;
  auto& loops = placed.loops;
  if (loops.rank == 0) return false;
  const int last = loops.rank - 1;
  if (loops.sizes[last] % length != 0) return false;
  for (const int64_t step : loops.steps[last]) {
    if (step != 1) return false;
  }
  for (int d = 0; d < last; ++d) {
    if (loops.steps[d][kX] % length != 0 || loops.steps[d][kY] % length != 0) return false;
  }
  const Positions& inner = placed.positions[last];
  for (int c = 0; c < inner.cuts; ++c) {
    if (inner.chunk[c] % length != 0) return false;
  }
  for (const void* data : {args.in[0].data, args.out[0].data}) {
    if (reinterpret_cast<uintptr_t>(data) % 16 != 0) return false;
  }
  loops.sizes[last] /= length;
  loops.count /= length;
  placed.lengths[last] = length;
  loops.small = loops.count <= INT32_MAX;
  return true;
}

void no_kernel_for(DType dtype) {
  throw InternalError(fmt::format("a kernel of floats is called for {}", name_of(dtype)));
}

}  // namespace cleave
