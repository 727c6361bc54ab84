// Instructions that a device is given together: neighbours of one op that need nothing of each
// other.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "executor/program.h"

namespace cleave {

struct InstrBatch {
  std::vector<int32_t> instrs;
  std::vector<int64_t> workspaces;  // where each one's begins, in bytes from that of the program
};

// The instructions, which run in this order, in batches: several only of an op with a launcher for
// many (OpDef::cuda_many), whose memory in the arena allows any order, and whose workspaces fit
// into the program's together. REQUIRES: the program is laid out, for a GPU, and of one stage.
std::vector<InstrBatch> instr_batches(const Program& program, std::span<const int32_t> instrs);

}  // namespace cleave
