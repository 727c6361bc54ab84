// The arena: where each buffer lies so that buffers that are live together do not overlap.
#pragma once

#include <compare>
#include <span>
#include <vector>

#include "executor/program.h"

namespace cleave {

inline constexpr int64_t kArenaAlignment = 64;

// A buffer's size and the time, in instructions, that it is live, both ends included.
struct Lifetime {
  int64_t bytes = 0;
  int32_t first = -1, last = -1;
  auto operator<=>(const Lifetime&) const = default;
};

struct Placing {
  std::vector<int64_t> offsets;  // one a lifetime, multiples of kArenaAlignment
  int64_t peak = 0;
};

// The best of a few greedy strategies; deterministic.
Placing place(std::span<const Lifetime> lifetimes);
// No placing can have a lower peak: the most bytes that are live at once, each buffer aligned.
int64_t most_live_bytes(std::span<const Lifetime> lifetimes);

// By buffer, in instructions of the program's list, as one micro-batch runs them. Persistent ones
// are always live; data from the first instruction of their part to their last reader; what an
// output lies in, to the end; what instructions that go to a GPU together (OpDef::together) read
// and make, while the first and the last of them run. A buffer that nothing touches has last -1.
std::vector<Lifetime> buffer_lifetimes(const Program& program);
// Scratch memory of the instruction's kernel, where its operands lie as they do.
int64_t workspace_bytes_of(const Program& program, const Instr& instr);
// Of the kernel that needs most, of one stage.
int64_t largest_workspace(const Program& program, int32_t stage = 0);

// By stage: its memory could not be less. What is live at once, and workspace.
std::vector<int64_t> least_peak_bytes(const Program& program);

// How a stage's memory is laid out. What a chunk holds over several of its parts, while other
// micro-batches or chunks run in between, lies in a frame, of which there is one for each
// micro-batch in flight. All else is an item by itself; what was made at the step's start and is
// read by every micro-batch lives until the last.
struct StageItems {
  struct Frame {
    int32_t chunk = 0, slots = 1;
    Lifetime life;  // of all its slots; without their bytes
    std::vector<int32_t> buffers = {};
    std::vector<Lifetime> lives = {};  // by place in `buffers`
  };
  std::vector<int32_t> persistent;  // buffers
  std::vector<int32_t> buffers;     // items
  std::vector<Lifetime> lives;      // by place in `buffers`
  std::vector<Frame> frames;
};
StageItems stage_items(const Program& program, const std::vector<Lifetime>& lifetimes,
                       int32_t stage);

}  // namespace cleave
