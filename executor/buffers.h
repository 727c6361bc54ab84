// Which tensors of a program share memory: views, and versions written in place.
#pragma once

#include <vector>

#include "executor/program.h"

namespace cleave {

// A tensor that would lie in another's memory, overwriting it. `must`: a state's final tensor,
// which is copied into its state's memory when it cannot be made there. `in_place`: the instruction
// that writes the tensor may read the target at the same time.
struct SharingWish {
  TensorId tensor = -1;
  TensorId target = -1;
  bool must = false;
  bool in_place = false;
};

// Gives every tensor a buffer and a geometry: results of view ops lie in their input's buffer when
// the local geometry allows, and operands of instructions with the attribute `joins` in the
// result's; a wish is granted when nothing reads the target's memory after the tensor is written.
// The tensors of parameters and states are persistent, and what is kept of parameters, whose final
// tensors must lie where they began. Appends the copies that unmet `must` wishes need, as if all
// were made at once and after the outputs were read, and redirects their sources' final tensors.
void assign_buffers(Program& program, const std::vector<SharingWish>& wishes);

}  // namespace cleave
