// Combining the partial results of several ranks, element by element.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "graph/signature.h"
#include "graph/types.h"

namespace cleave {

// out[i] = in[0][i] combined with in[1][i], in[2][i], ... in this order, for i in [0, n). `out` may
// be one of the inputs. f32 and f64; sums are taken in the same type. A NaN stays a NaN.
void reduce(Reduction reduction, DType dtype, std::span<const std::byte* const> in, std::byte* out,
            int64_t n);

}  // namespace cleave
