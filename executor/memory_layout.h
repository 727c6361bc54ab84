// The arena: where each buffer lies so that buffers that are live together do not overlap.
#pragma once

#include <span>
#include <vector>

#include "executor/program.h"

namespace cleave {

inline constexpr int64_t kArenaAlignment = 64;

// A buffer's size and the time, in instructions, that it is live, both ends included.
struct Lifetime {
  int64_t bytes = 0;
  int32_t first = -1, last = -1;
};

struct Placing {
  std::vector<int64_t> offsets;  // one a lifetime, multiples of kArenaAlignment
  int64_t peak = 0;
};

// The best of a few greedy strategies; deterministic.
Placing place(std::span<const Lifetime> lifetimes);
// No placing can have a lower peak: the most bytes that are live at once, each buffer aligned.
int64_t most_live_bytes(std::span<const Lifetime> lifetimes);

// By buffer. Persistent ones are always live; data from the start to their last reader; what an
// output lies in, to the end. A buffer that nothing touches has last -1.
std::vector<Lifetime> buffer_lifetimes(const Program& program);
// Scratch memory of the kernel that needs most.
int64_t largest_workspace(const Program& program);

}  // namespace cleave
