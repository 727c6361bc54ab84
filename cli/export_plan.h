// A plan in the words of another program. What is written is read off the placements of the
// parameters; what the program cannot say is refused.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/plan_file.h"

namespace cleave {

// How the weights of one module (a scope with parameters right inside) are used on the tensor axis.
struct ModuleSplit {
  enum class Kind : uint8_t {
    kWhole,       // every rank has all of it
    kColumns,     // of a product: the dimensions that the result keeps
    kRows,        // of a product: the dimensions that are summed over; its result is partial
    kTableRows,   // of a look-up: the rows that are looked up
    kTableWidth,  // of a look-up: what a row holds
    kOther,       // in parts, in some other way
  };
  std::string name;  // "h.3.attn.qkv"
  Kind kind = Kind::kWhole;
  int64_t pieces = 1;  // that the cut dimension is made of one after the other, each cut for itself
  bool first = true;   // of the cut dimension: its number in the weight is 0
  bool multiplies = false;  // it is a product or a look-up, not a gain or a bias alone
};

// The plan as other programs speak of it.
struct Exported {
  int64_t data = 1, tensor = 1, context = 1, expert = 1;  // sizes of the axes
  int64_t sequences = 1;                                  // of one rank in one micro-batch
  int64_t micro_batches = 1;                              // of a step
  bool sequence_parallel = false;    // activations between the split products are split along the
                                     // sequence over the tensor axis
  std::vector<ModuleSplit> modules;  // in the order of the parameters
};

// Throws Error, naming the target, where the plan has what none of them can say: axes that do no
// more than repeat work, several tensor axes, parallelism of unknown kind.
Exported exported(const LoadedPlan& loaded, const std::string& target);

// `user`: null, or the model that the plan may be of.
std::string megatron_flags(const LoadedPlan& loaded, const Exported& e, const UserModel* user);
std::string dtensor_script(const LoadedPlan& loaded, const Exported& e);
std::string hf_tp_plan(const LoadedPlan& loaded, const Exported& e);
std::string deepspeed_config(const LoadedPlan& loaded, const Exported& e);

}  // namespace cleave
