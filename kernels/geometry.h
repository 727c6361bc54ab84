// Where views lie: strides of dimensions from those of their factors, and back.
#pragma once

#include <optional>

#include "graph/op.h"
#include "kernels/loops.h"

namespace cleave {

inline constexpr int64_t kNoStride = -1;

// The stride of each factor in an operand with this geometry; kNoStride for those it lacks.
inline Shape strides_of_factors(const OpCall& call, const OperandDims& dims,
                                const Geometry& geometry) {
  Shape strides(call.extents.size(), kNoStride);
  for (size_t d = 0; d < dims.size(); ++d) {
    int64_t stride = geometry.strides[d];
    for (size_t i = dims[d].size(); i-- > 0;) {
      strides[static_cast<size_t>(dims[d][i])] = stride;
      stride *= call.extents[static_cast<size_t>(dims[d][i])];
    }
  }
  return strides;
}

// Strides along dimensions of size 1 do not matter; they become those of a row-major tensor, so
// that a tensor which is contiguous also looks so.
inline void settle_unit_strides(Geometry& geometry) {
  int64_t next = 1;
  for (size_t d = geometry.shape.size(); d-- > 0;) {
    if (geometry.shape[d] == 1) geometry.strides[d] = next;
    next = geometry.strides[d] * geometry.shape[d];
  }
}

// The geometry of an operand whose factors have these strides; factors without one are broadcast.
// Nothing when the factors of a compound dimension have no common stride.
inline std::optional<Geometry> geometry_from(const OpCall& call, const OperandDims& dims,
                                             const Shape& factor_strides, int64_t offset) {
  Geometry result{offset, shape_of(dims, call.extents), {}};
  for (const DimFactors& dim : dims) {
    LoopNest<1> nest;
    for (const int8_t f : dim) {
      const int64_t stride = factor_strides[static_cast<size_t>(f)];
      nest.add(call.extents[static_cast<size_t>(f)], {stride == kNoStride ? 0 : stride});
    }
    if (nest.sizes.size() > 1) return std::nullopt;
    result.strides.push_back(nest.sizes.empty() ? 1 : nest.steps[0][0]);
  }
  settle_unit_strides(result);
  return result;
}

}  // namespace cleave
