// What of a program waits for what: who makes each tensor, who reads it, which instructions may be
// issued early or late without changing what is computed.
#pragma once

#include <cstdint>
#include <vector>

#include "executor/program.h"

namespace cleave {

// The instructions of a part of a chunk (once a step: of a stage) in the program's order; views are
// left out.
struct ProgramPart {
  Part part = Part::kForward;
  int32_t chunk = 0;  // once a step: the stage
  std::vector<int32_t> instrs;
};

struct ProgramFlow {
  std::vector<ProgramPart> parts;
  std::vector<int32_t> part;  // by instruction: its place among the parts; -1: a view

  std::vector<TensorId> root;                 // by tensor: what it is a view of, or itself
  std::vector<int32_t> producer;              // by root: an instruction; -1: a source
  std::vector<std::vector<int32_t>> readers;  // by root: instructions, ascending

  // By instruction: it writes memory that an earlier one touches, or that is kept between steps.
  std::vector<bool> overwrites;
  std::vector<std::vector<int32_t>> touchers;  // by buffer that is overwritten; else empty

  // By instruction of a pass: only the update waits for it, and it is a collective or waits for one
  // that is so.
  std::vector<bool> lazy;
  // By instruction of a pass: it needs nothing that its unit makes, but what is so itself, and is a
  // collective or local step, or makes what one needs of parameters and states alone.
  std::vector<bool> ahead;
  // By instruction of the update: a collective or local step that comes before all of its stage's
  // computation there: what the last pass leaves to be combined.
  std::vector<bool> early;

  int32_t part_of(Part part, int32_t chunk) const;  // -1: there is none
  bool in_update(int32_t instr) const {
    return parts[static_cast<size_t>(part[static_cast<size_t>(instr)])].part == Part::kUpdate;
  }
};

ProgramFlow program_flow(const Program& program);

}  // namespace cleave
