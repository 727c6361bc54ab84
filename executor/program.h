// What one rank executes: local ops, collectives and copies in a fixed order, with a static memory
// layout. The program is the same for every rank (SPMD); a rank's coordinates on the mesh are read
// when it runs.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"
#include "planner/mesh.h"

namespace cleave {

using TensorId = int32_t;

// A typed local tensor: what the whole value is, and which part of it a rank holds.
struct ProgramTensor {
  DType dtype = DType::kF32;
  Layout layout;
  std::string name;     // for messages: "%12" or a source's name
  int32_t buffer = -1;  // several tensors share a buffer: views, and in-place versions
  Geometry geometry;    // how the local tensor lies in its buffer
};

struct Buffer {
  int64_t bytes = 0;
  bool persistent = false;  // kept from step to step: parameters and states
  int64_t offset = -1;      // in the arena; set by plan_memory
  // First and last instruction that touches it; set by plan_memory. Persistent: always live.
  int32_t first = -1, last = -1;
};

// One part of an op's iteration space is split on one mesh axis: the letter, and which of the
// letter's atoms. letter 0: the op is not split on that axis. partial: the op is linear, and its
// operands and results are partial sums on that axis.
struct Split {
  char letter = 0;
  int8_t atom = 0;
  bool partial = false;
  bool operator==(const Split&) const = default;
};

enum class InstrKind : uint8_t {
  kCompute,        // one op on local tensors
  kAllReduce,      // partial -> replicate, for each pair (in, out)
  kAllGather,      // shard -> replicate
  kReduceScatter,  // partial -> shard
  kAllToAll,       // shard -> shard of another atom
  kSlice,          // replicate -> shard, no communication
  kMask,           // replicate -> partial sum: the first rank of the group keeps the value, the
                   // others hold zeros; no communication
  kCopy,           // the same type
};
std::string_view name_of(InstrKind kind);  // "all-reduce"
bool is_collective(InstrKind kind);

struct Instr {
  InstrKind kind = InstrKind::kCompute;
  std::vector<TensorId> in, out;
  // kCompute.
  const OpDef* op = nullptr;
  const Signature* signature = nullptr;
  Attrs attrs;
  std::vector<std::vector<int64_t>> letter_atoms;  // for each factor: its atoms, whole sizes
  std::vector<Split> splits;                       // one a mesh axis
  NodeId node = kNoNode;                           // the node it came from; -1: added by lowering
  // All others but kCopy: the mesh axis. A collective moves all its pairs (in[i], out[i]) at once.
  int32_t axis = -1;
  Reduction reduction = Reduction::kSum;
  std::string where;  // for reports: "h.0.attn gpt2.cc:31"
  Phase phase = Phase::kForward;
};

// A state or parameter, kept in a persistent buffer from step to step, or a data input, filled
// before each step.
struct ProgramSource {
  SourceKind kind = SourceKind::kData;
  std::string name;
  Init init;
  std::vector<std::string> roles;
  TensorId tensor = -1;  // read at the start of a step
  TensorId final = -1;   // parameters and states: same buffer and layout as `tensor` at the end
};

struct ProgramOutput {
  std::string name;
  TensorId tensor = -1;  // replicated on every axis
};

struct Program {
  Mesh mesh;
  // Above 1, a step runs the instructions before the update (Phase::kUpdate), which then come
  // first, so many times, with new data each time.
  int64_t micro_batches = 1;
  std::vector<ProgramTensor> tensors;
  std::vector<Buffer> buffers;
  std::vector<Instr> instrs;
  std::vector<ProgramSource> sources;
  std::vector<ProgramOutput> outputs;
  int64_t arena_bytes = 0;      // of one rank; set by plan_memory: the peak
  int64_t workspace_bytes = 0;  // largest kernel workspace, part of arena_bytes

  ProgramTensor& tensor(TensorId t) { return tensors[static_cast<size_t>(t)]; }
  const ProgramTensor& tensor(TensorId t) const { return tensors[static_cast<size_t>(t)]; }
};

// The local extent of every factor of a compute instruction, for the rank at these coordinates.
std::vector<Extent> local_extents(const Instr& instr, const Mesh& mesh,
                                  const std::vector<int64_t>& coordinates);
// The same sizes without positions: equal on every rank.
std::vector<int64_t> local_sizes(const Instr& instr, const Mesh& mesh);

// Refuses a program that does not compose: throws InternalError naming the instruction, the
// tensors and the rule broken. What is checked: every operand of a compute instruction has the
// layout that the instruction's splits imply, and every result too; a partial sum enters only
// linear ops; collectives take and give the placements of their kind, leave other axes alone, and
// never cut or gather an atom that a later axis has split; every tensor is written before it is
// read, and not overwritten while still to be read; local shapes divide; buffers that are live
// together do not overlap in the arena (when laid out); outputs are replicated; states end where,
// and as, they began; with several micro-batches, the update comes last.
void check(const Program& program);

// Sets the offset of every buffer so that buffers live at the same time do not overlap, and
// arena_bytes to the peak. Deterministic.
void plan_memory(Program& program);

// One line an instruction, with local shapes and placements; for --dump and tests.
std::string to_text(const Program& program);

}  // namespace cleave
