// What the ranks execute: local ops, collectives, sends and copies in a fixed order, with a static
// memory layout. Every rank of a pipeline stage runs that stage's instructions (SPMD); a rank's
// coordinates on the stage's mesh are read when it runs. Without a pipeline there is one stage.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"
#include "planner/mesh.h"
#include "planner/schedule.h"

namespace cleave {

using TensorId = int32_t;

// Where a tensor stands in a ring along a mesh axis (see Instr::Ring).
struct RingState {
  int8_t axis = -1;  // -1: in none, as tensors are between nodes
  // What moves is held by the rank that lies this many places after the one whose part it is; of
  // what stays, the step that was merged last.
  int32_t step = 0;
  int32_t merged = 0;  // results of so many steps; 0: no partial result
  bool moves = false;
  bool operator==(const RingState&) const = default;
};

// A typed local tensor: what the whole value is, and which part of it a rank holds.
struct ProgramTensor {
  DType dtype = DType::kF32;
  Layout layout;
  std::string name;     // for messages: "%12" or a source's name
  int32_t buffer = -1;  // several tensors share a buffer: views, and in-place versions
  Geometry geometry;    // how the local tensor lies in its buffer
  int32_t chunk = 0;    // whose instructions make and read it
  RingState ring = {};
};

// Persistent ones may hold several parameters, accumulators or kept copies side by side, where an
// instruction with the attribute `joins` (fuse_siblings.cc) reads them as one tensor.
struct Buffer {
  int64_t bytes = 0;
  bool persistent = false;  // kept from step to step: parameters, states and what is kept of them
  bool host = false;        // in the host's memory; only copies touch it. Persistent
  int32_t chunk = 0;        // of its tensors
  // Set by plan_memory. Where it lies in its stage's arena, or its part of the host's: of
  // micro-batch m, at offset + m % slots * stride. There are several slots when micro-batches in
  // flight hold it together.
  int64_t offset = -1;
  int32_t slots = 1;
  int64_t stride = 0;
  // First and last instruction that touches it; set by plan_memory. Persistent: always live.
  int32_t first = -1, last = -1;

  int64_t offset_of(int64_t micro_batch) const {
    return offset + (slots == 1 ? 0 : micro_batch % slots * stride);
  }
};

// The part of a step that an instruction belongs to.
enum class Part : uint8_t {
  kBegin,           // once, before everything else
  kForward,         // once a micro-batch, when the schedule says
  kBackward,        // likewise
  kWeightGradient,  // likewise, in schedules that have such units
  kUpdate,          // once, after everything else
};
std::string_view name_of(Part part);  // "weight gradient"
bool once_a_step(Part part);

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
  kShift,          // each rank's part goes to the next rank of the axis
  kSlice,          // replicate -> shard, no communication
  kMask,           // replicate -> partial sum: the first rank of the group keeps the value, the
                   // others hold zeros; no communication
  kCopy,           // the same type
  kSend,           // `in` to the same rank of the stage of chunk `peer`; does not wait
  kReceive,        // `out` from the same rank of the stage of chunk `peer`; waits
};
std::string_view name_of(InstrKind kind);  // "all-reduce"
bool is_collective(InstrKind kind);        // of several ranks of one stage

struct Instr {
  InstrKind kind = InstrKind::kCompute;
  std::vector<TensorId> in, out;
  // kCompute.
  const OpDef* op = nullptr;
  const Signature* signature = nullptr;
  Attrs attrs;
  std::vector<std::vector<int64_t>> letter_atoms;  // for each factor: its atoms, whole sizes
  std::vector<Split> splits;                       // one a mesh axis
  // The node it came from; -1: added by lowering. Of a send and its receive: the transfer.
  NodeId node = kNoNode;
  // One of the steps in which a node sees one part of a factor after the other: at step i a rank
  // with coordinate c has part c - i. Or, without a letter, the merging of a step's results (the
  // second half of the operands) with those of the steps before.
  struct Ring {
    int8_t axis = -1;  // -1: none of it
    char letter = 0;   // of the factor that passes round: of one atom
    int32_t step = 0;
  };
  Ring ring = {};
  // Collectives, kSlice, kMask: the mesh axis. A collective moves all its pairs (in[i], out[i]) at
  // once.
  int32_t axis = -1;
  Reduction reduction = Reduction::kSum;
  int32_t peer = -1;     // kSend, kReceive: the other chunk
  bool bundled = false;  // one of those that move many values at once, see planner/bundles.h
  std::string where;     // for reports: "h.0.attn gpt2.cc:31"
  Part part = Part::kForward;
  int32_t chunk = 0;
  uint32_t fused = 0;  // by bits: which of fusions() (fuse.h) have made it
};
// Whether it computes, and neither is split on an axis, nor of partial sums, nor in a ring.
bool is_unsplit(const Instr& instr);

// A state or parameter, kept in a persistent buffer from step to step, or a data input, filled
// before each step. Contiguous, and apart from all others, but not always at its buffer's start.
struct ProgramSource {
  SourceKind kind = SourceKind::kData;
  std::string name;
  Init init;
  std::vector<std::string> roles;
  TensorId tensor = -1;  // read at the start of a step
  TensorId final = -1;   // parameters and states: same buffer and layout as `tensor` at the end
  // Where it lies. Data that several chunks read are a source of each, of one name.
  int32_t chunk = 0;
  // Of data: kForward, filled before every micro-batch's forward of the chunk; kUpdate, filled
  // before the update with what the last micro-batch was given.
  Part part = Part::kForward;
  bool on_host = false;  // a state kept in the host's memory
  // A checkpoint may lack it: it then begins as in a new run.
  bool optional = false;
  // A parameter of f32 whose `tensor` and `final` are of bf16, to the nearest, as the program reads
  // it; from outside it is an f32. `rest`: the source that keeps the rest of its bits
  // (graph/bf16_rest.h) beside it, which is not seen from outside; -1: another program keeps them.
  bool narrow = false;
  int32_t rest = -1;
  bool is_rest = false;
};

// What is made of parameters when a step begins, and lies there from the step before: the update
// makes it of the new parameters in the same memory. A runtime may make it only when sources were
// set from outside; making it again changes nothing.
struct KeptTensor {
  TensorId tensor = -1;  // made in kBegin, of parameters alone
  TensorId final = -1;   // by the update, with the parameter's final value
};

struct ProgramOutput {
  std::string name;
  TensorId tensor = -1;  // replicated on every axis
};

// One rank's memory in one stage.
struct StageMemory {
  int64_t arena_bytes = 0;      // the peak
  int64_t workspace_bytes = 0;  // largest kernel workspace, part of arena_bytes
  int64_t host_bytes = 0;       // in the host's memory
};

struct Program {
  Mesh mesh;  // of one stage
  // Stages, chunks, micro-batches, and in what order each stage works. An empty order: one stage,
  // which runs its instructions before the update so many times, with new data each time.
  Schedule schedule;
  std::vector<ProgramTensor> tensors;
  std::vector<Buffer> buffers;
  // The instructions of one part and chunk stand together, in the order in which they run.
  std::vector<Instr> instrs;
  std::vector<ProgramSource> sources;
  std::vector<KeptTensor> kept;
  std::vector<ProgramOutput> outputs;
  // By stage, and the largest of them; set by plan_memory.
  std::vector<StageMemory> memory;
  int64_t arena_bytes = 0, workspace_bytes = 0, host_bytes = 0;
  bool gpu = false;  // the workspaces are those of the GPU's kernels
  // How often each of fusions() (fuse.h) was made, in their order; empty: none was tried.
  std::vector<int> fusions;

  ProgramTensor& tensor(TensorId t) { return tensors[static_cast<size_t>(t)]; }
  const ProgramTensor& tensor(TensorId t) const { return tensors[static_cast<size_t>(t)]; }
  int64_t micro_batches() const { return schedule.micro_batches; }
  int32_t stages() const { return schedule.stages; }
  int32_t stage_of(int32_t chunk) const { return chunk % schedule.stages; }
  // Rank s * mesh.size() + r is rank r of stage s.
  int64_t ranks() const { return schedule.stages * mesh.size(); }
};

// What a source is from outside, in whole: an f32 when it is narrow.
TensorType outer_type(const Program& program, const ProgramSource& source);

// One run of a part of a chunk. Of kBegin and kUpdate: of all chunks of the stage.
struct PartRun {
  Part part = Part::kForward;
  int32_t chunk = 0;
  int32_t micro_batch = 0;
};
// What a stage does in a step, from kBegin to kUpdate.
std::vector<PartRun> step_order(const Program& program, int32_t stage);
// The instructions that a run executes belong to its part, and to its chunk or, once a step, stage.
bool runs(const Program& program, const PartRun& run, const Instr& instr);
// So many micro-batches of a chunk can be in flight at once: the oldest unfinished one and those
// up to the newest that has begun.
int32_t slots_of(const Program& program, int32_t chunk);

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
// and as, they began, and so does what is kept of parameters; with several micro-batches, the
// update comes last. Of a pipeline also: a chunk touches its own tensors only; every send has one
// receive of the same value and layout, and none waits for ever under the schedule; nothing but
// what is persistent, or was made at the step's start, passes from one micro-batch to another.
void check(const Program& program);

// Sets the offset and the slots of every buffer so that buffers live at the same time do not
// overlap, and the arenas' sizes to the peaks. Deterministic.
void plan_memory(Program& program);

// One line an instruction, with local shapes and placements; for --dump and tests.
std::string to_text(const Program& program);

}  // namespace cleave
