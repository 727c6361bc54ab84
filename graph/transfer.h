// The one op that belongs to no kernel folder: a value's way from one pipeline chunk to another.
#pragma once

#include "graph/op.h"

namespace cleave {

// "transfer": the identity. What it reads lies in one chunk, its result in another; between two
// stages the executor sends and receives, within one chunk it is a copy.
extern const OpDef transfer_op;

}  // namespace cleave
