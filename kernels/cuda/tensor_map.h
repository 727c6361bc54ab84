// What the copy engine of compute capability 9.0 knows of a tensor (hopper.cuh).
#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>

#include "graph/types.h"

namespace cleave {

// Of a tensor of 16-bit numbers, the innermost dimension first and dense, of which boxes of `rows`
// rows and `chunk` columns are moved, 32 or 64, as a tile has them (hopper.cuh). `steps`: elements
// from one row to the next, and so on. Throws InternalError when the driver takes no such tensor,
// as where steps or the beginning are no multiples of 16 bytes.
CUtensorMap tensor_map(DType dtype, void* data, const std::array<int64_t, 4>& sizes,
                       const std::array<int64_t, 3>& steps, int rows, int chunk);

}  // namespace cleave
