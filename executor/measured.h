// What was measured of a step: its timeline in the form of the prediction's, where its time went by
// classes of kernels, and the longest waits between them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "executor/runtime.h"
#include "executor/timeline.h"

namespace cleave {

// One of each rank, of a step that was recorded: every instruction on the stream of computation,
// and the memory in use. Where the seconds went is left out.
std::vector<StageTimeline> measured_timelines(const Program& program, const StepResult& step);

// What kernels are limited by.
enum class KernelClass : uint8_t {
  kProducts,       // matrix products, also those that add or scale
  kAttention,      // products fused with a softmax
  kNorms,          // and softmax
  kLoss,           // the cross-entropy
  kPointwise,      // one element after the other, and sums over some dimensions
  kCopies,         // moves and casts
  kOptimizer,      // what the update does
  kCommunication,  // collectives and messages
  kOther,
};
std::string_view name_of(KernelClass c);
KernelClass class_of(const Program& program, const Instr& instr);

// What an instruction has to do at least, of one rank.
struct KernelWork {
  double flops = 0;  // of matrix products; 0: it has none
  double bytes = 0;  // every operand and result once
  DType dtype = DType::kF32;
  double times_peak = 1;  // of that type, at which they are computed: 2 for floats of 8 bits
  // Seconds by the device's dense peak or its bandwidth, whichever takes longer.
  double least_seconds(const Cluster& cluster) const;
};
KernelWork work_of(const Program& program, const Instr& instr);

// Of all runs of a class in a step, the mean of the ranks.
struct ClassShare {
  KernelClass kernels = KernelClass::kOther;
  int64_t runs = 0;  // of one rank
  double seconds = 0, least_seconds = 0;
  double flops = 0, bytes = 0;
};
// The longest first.
std::vector<ClassShare> class_shares(const Program& program, const Cluster& cluster,
                                     const StepResult& step);
// The same by op or kind of instruction.
struct OpShare {
  std::string name;
  int64_t runs = 0;
  double seconds = 0;
};
std::vector<OpShare> op_shares(const Program& program, const StepResult& step);

// Time in which a rank runs nothing, before one instruction and after another; -1: the step's
// begin or its end.
struct Gap {
  double seconds = 0;
  int32_t rank = 0, after = -1, before = -1;
};
struct Gaps {
  double seconds = 0;  // all of them, the mean of the ranks
  std::vector<Gap> longest;
};
Gaps gaps_of(const StepResult& step, size_t most);

}  // namespace cleave
