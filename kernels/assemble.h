// Where the ops of assemble.cc put their operands: shared by their kernels.
#pragma once

#include <cstddef>

#include "graph/signature.h"

namespace cleave {

// The one dimension in which an operand and the output differ; a whole factor in both.
size_t differing_dim(const Signature& s, const OperandDims& operand);

// The factor that the output adds to its operands.
size_t stacked_factor(const Signature& s);

}  // namespace cleave
