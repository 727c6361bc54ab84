// A contraction of two operands as a matrix product: which factors are rows, columns, summed over
// or independent, and how they lie.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/loops.h"

namespace cleave {

// The factors by where they occur, each list in the order of the operand named first.
struct Classes {
  std::vector<int8_t> batch;  // a, b, c
  std::vector<int8_t> m;      // a, c
  std::vector<int8_t> n;      // b, c
  std::vector<int8_t> k;      // a, b
};

inline Classes classify(const Signature& s) {
  Classes classes;
  const OperandDims &a = s.inputs()[0], &b = s.inputs()[1], &c = s.outputs()[0];
  for (const int8_t f : factors_of(c)) {
    const bool in_a = Signature::carries(a, f), in_b = Signature::carries(b, f);
    (in_a && in_b ? classes.batch : in_a ? classes.m : classes.n).push_back(f);
  }
  for (const int8_t f : factors_of(b)) {
    if (!Signature::carries(c, f)) classes.k.push_back(f);
  }
  return classes;
}

inline int64_t size_of(const KernelArgs& args, std::span<const int8_t> factors) {
  int64_t size = 1;
  for (const int8_t f : factors) size *= args.extents[static_cast<size_t>(f)].local;
  return size;
}

// The one stride that these factors make together, when there is one; else -1.
inline int64_t common_stride(const KernelArgs& args, std::span<const int8_t> factors,
                             const Shape& strides) {
  const LoopNest<1> nest = nest_over<1>(args, factors, {strides});
  if (nest.sizes.empty()) return 1;
  return nest.sizes.size() == 1 ? nest.steps[0][0] : -1;
}

// Row-major strides for the factors batch, rows, columns.
inline Shape packed_strides(const KernelArgs& args, std::span<const int8_t> batch,
                            std::span<const int8_t> rows, std::span<const int8_t> columns) {
  Shape strides(args.extents.size(), 0);
  int64_t stride = 1;
  for (const auto& list : {columns, rows, batch}) {
    for (size_t i = list.size(); i-- > 0;) {
      strides[static_cast<size_t>(list[i])] = stride;
      stride *= args.extents[static_cast<size_t>(list[i])].local;
    }
  }
  return strides;
}

}  // namespace cleave
