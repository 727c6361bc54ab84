// Where the ops of assemble.cc put their operands: shared by their kernels, and by those who have
// the operands made there.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "graph/op.h"

namespace cleave {

// The one dimension in which an operand and the output differ; a whole factor in both.
size_t differing_dim(const Signature& s, const OperandDims& operand);

// The factor that the output adds to its operands.
size_t stacked_factor(const Signature& s);

// Of an op that only puts its operands together: each operand as a view of the result.
std::optional<std::vector<Geometry>> parts_of(const OpDef& op, const OpCall& call,
                                              const Geometry& whole);

}  // namespace cleave
