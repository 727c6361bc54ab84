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
  // What one op does with it.
  struct Use {
    Kind kind = Kind::kWhole;
    int64_t pieces = 1;  // that the cut dimension is made of one after the other, each cut alone
    bool first = true;   // of the cut dimension: its number in the weight is 0
    Edges edges;
    bool cut_like(const Use& other) const {
      return kind == other.kind && pieces == other.pieces && first == other.first;
    }
  };
  std::string name;  // "h.3.attn.qkv"
  Use use;
  bool multiplies = false;       // it is a product or a look-up, not a gain or a bias alone
  bool looks_up = false;         // a look-up
  bool stored_in_parts = false;  // between steps, some parameter over tp, however it is used
  int64_t experts = 0;           // of several products in one weight: how many
  std::set<std::string> ops;     // of what multiplies: "h.*.mlp.fc.matmul"
  Kind usual = Kind::kOther;     // of what multiplies: as the usual split by tensors has it
  int usual_dim = 0;             // of the weight: that is in parts then
  std::optional<Use> again;      // a table that is a product's weight elsewhere: how it is there
};

// What a plan does on an axis that few programs do.
struct Misfit {
  enum class Kind : uint8_t {
    kLayout,          // an op reads what is made in another layout
    kSequence,        // whole here, along the sequence there: the same for what splits none
    kEnters,          // the same of what enters the layers: made whole, read along the sequence
    kAttention,       // attention that is split, and not by heads
    kWholeAttention,  // attention that each rank does all of
    kOtherWork,       // an axis of the batch, of experts or of the context splits something else
    kRepeated,        // ... nothing: each rank does everything
  };
  Kind kind = Kind::kLayout;
  std::string what;   // "h.3.attn.core.attention is split along the sequence over tp"
  std::string op;     // of attention and of other work: its name
  int64_t heads = 1;  // of attention: how many there are
  std::string axis;   // of other work: its name
  int dim = -1;       // of other work: of the op's result, what the axis is for; -1: none

  bool of_attention() const { return kind == Kind::kAttention || kind == Kind::kWholeAttention; }
  bool of_other_axes() const { return kind == Kind::kOtherWork || kind == Kind::kRepeated; }
};

// The plan as other programs speak of it.
struct Exported {
  int64_t data = 1, tensor = 1, context = 1, expert = 1;  // sizes of the axes
  int32_t stages = 1;                                     // of the pipeline
  int64_t batch = 1;                 // sequences of a micro-batch, of all ranks
  int64_t sequences = 1;             // of one rank in one micro-batch
  int64_t micro_batches = 1;         // of a step
  bool fixed_micro_batches = false;  // asked for with --accumulate
  int zero = 0;                      // as most weights have it
  Cluster cluster;
  std::vector<std::string> pins;     // the plan's
  bool roles = true;                 // the mesh was planned with roles for all axes
  std::vector<ModuleSplit> modules;  // in the order of the parameters
  std::set<std::string> attention;   // ops that multiply activations: "h.*.attn.attention"
  std::vector<Misfit> misfits;       // in the order of the ops
  bool rings = true;                 // attention over the context passes keys and values round
};

// Of a module or a scope: it is in a repeated layer, "h.3.attn" or "h.*.attn".
bool in_layers(const std::string& name);

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
