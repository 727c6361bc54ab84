// One declaration per line of ops.def, and the table of all of them.
#pragma once

#include <span>
#include <string_view>

#include "graph/op.h"
#include "graph/transfer.h"

namespace cleave::ops {

#define OP(name) extern const OpDef name;
#include "kernels/ops.def"
#undef OP

// Every op, in the order of ops.def; the transfer last.
std::span<const OpDef* const> all();
// The op with this name; null when there is none.
const OpDef* find(std::string_view name);

// The target of a token without a loss, unless the attribute `ignore` of a cross_entropy says
// another.
inline constexpr int64_t kIgnoredTarget = -100;

}  // namespace cleave::ops
