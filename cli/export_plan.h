// A plan in the words of another program. What is written is read off the placements of the
// parameters; what the program cannot say is refused.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "cli/plan_file.h"

namespace cleave {

// Where an activation lies on the tensor axis.
enum class Held : uint8_t { kWhole, kBatch, kSequence, kInner, kPartial };

// How the weights of one module (a scope with parameters right inside) are used on the tensor axis.
struct ModuleSplit {
  enum class Kind : uint8_t {
    kWhole,       // every rank has all of it
    kColumns,     // of a product: the dimensions that the result keeps
    kRows,        // of a product: the dimensions that are summed over; its result is partial
    kTableRows,   // of a look-up: the rows that are looked up
    kTableWidth,  // of a look-up: what a row holds
    kPositions,   // no product: each rank reads its part of the sequence's rows
    kExperts,     // of several products in one weight: whole products
    kBias,        // no product: in parts like what it is added to
    kOther,       // in parts, in some other way
  };
  // Activations as they reach the module, and as what comes after it reads its results: before what
  // the module itself gathers, after what it sums.
  struct Edges {
    Held in = Held::kWhole, out = Held::kWhole;
    bool operator==(const Edges&) const = default;
  };
  std::string name;  // "h.3.attn.qkv"
  Kind kind = Kind::kWhole;
  int64_t pieces = 1;  // that the cut dimension is made of one after the other, each cut for itself
  bool first = true;   // of the cut dimension: its number in the weight is 0
  bool multiplies = false;     // it is a product or a look-up, not a gain or a bias alone
  bool looks_up = false;       // a look-up
  bool kept_in_parts = false;  // some parameter is kept in parts, however it is used
  Edges edges;
  int64_t experts = 0;        // of several products in one weight: how many
  std::set<std::string> ops;  // of what multiplies, and adds a bias to it: "h.*.mlp.fc.matmul"
  Kind usual = Kind::kOther;  // of what multiplies: as the usual split by tensors has it
  int usual_dim = 0;          // of the weight: that is in parts then
  std::optional<Kind> again;  // a table that is a product's weight elsewhere: how it is there
  Edges edges_again;
};

// What a plan does on an axis that few programs do.
struct Misfit {
  std::string what;          // "h.3.attn.core.attention is split along the sequence over tp"
  bool of_sequence = false;  // whole here, along the sequence there: the same for what splits none
  bool before_layers = false;    // what enters the layers whole is cut along the sequence first
  bool whole_attention = false;  // attention that each rank does all of
  int64_t heads = 0;             // else 0: attention that is not split by heads: how many there are
  std::string op;                // ... its name
  bool of_batch_axes = false;  // an axis of the batch, of experts or of the context does other work
  bool repeated = false;       // ... none at all: each rank does everything
  std::string axis;            // ... its name
};

// The plan as other programs speak of it.
struct Exported {
  int64_t data = 1, tensor = 1, context = 1, expert = 1;  // sizes of the axes
  int64_t sequences = 1;                                  // of one rank in one micro-batch
  int64_t micro_batches = 1;                              // of a step
  std::vector<ModuleSplit> modules;                       // in the order of the parameters
  std::set<std::string> attention;  // ops that multiply activations: "h.*.attn.attention"
  std::vector<Misfit> misfits;      // in the order of the ops
  bool rings =
      true;  // attention over the context passes keys and values round, nowhere gathers them
  int64_t batch = 1;              // sequences of a micro-batch, of all ranks
  int32_t stages = 1;             // of the pipeline
  int zero = 0;                   // as most weights have it
  std::vector<std::string> pins;  // the plan's
  bool roles = true;              // the mesh was planned with roles for all axes
};

struct Written {
  std::string text;
  std::vector<std::string> notes;  // what the text leaves out; the same computation without it
};

// Throws Error, naming the target, where the plan has what none of them can say: axes that do no
// more than repeat work, several tensor axes, parallelism of unknown kind.
Exported exported(const LoadedPlan& loaded, const std::string& target);

// Throws Error where the plan has some weights in parts over dp and others not, which none can say;
// a note where a pin has brought it as near as can be.
std::vector<std::string> expect_whole_zero(const LoadedPlan& loaded, const Exported& e,
                                           const std::string& target);

// `user`: null, or the model that the plan may be of.
Written megatron_flags(const LoadedPlan& loaded, const Exported& e, const UserModel* user);
Written dtensor_script(const LoadedPlan& loaded, const Exported& e);
Written hf_tp_plan(const LoadedPlan& loaded, const Exported& e);
Written deepspeed_config(const LoadedPlan& loaded, const Exported& e);

}  // namespace cleave
