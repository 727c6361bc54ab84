// Random numbers for measurements: never zeros, on which a GPU is faster.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "graph/types.h"

namespace cleave {

// Numbers in [-1, 1), which depend on the seed and the index alone; of i32, 0 or 1.
void fill_random(void* data, DType dtype, int64_t count, uint64_t seed, cudaStream_t stream);

}  // namespace cleave
