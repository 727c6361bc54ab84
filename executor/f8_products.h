// Products of linear layers in floats of 8 bits.
#pragma once

#include <vector>

#include "executor/buffers.h"
#include "executor/fuse.h"
#include "executor/program.h"

namespace cleave {

// Rewrites the program of one rank, whose tensors have no buffers yet. Of every product of a weight
// in the forward, but the last one, and the two of its backward, the operands become codes of 8
// bits: e4m3 of weights and activations, e5m2 of gradients. A tensor becomes codes once, where it
// is made, together with the codes of its transpose when a product needs those; a weight once a
// step. Results stay as they are. Products whose sizes are no multiples of 16 are left.
//
// With delayed scaling the program keeps the sizes of the last kF8History steps as states,
// "f8.history" and "f8.weights.history"; one of zeros makes a step scale by the tensors themselves.
// A program without an update does so always. Adds the wishes for what is written in place.
void use_f8(Program& program, const F8Options& options, std::vector<SharingWish>& wishes);

inline constexpr int64_t kF8History = 16;

}  // namespace cleave
