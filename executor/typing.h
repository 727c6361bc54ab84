// Small questions about an instruction that the check, the memory layout and the runtimes share.
#pragma once

#include <string>
#include <vector>

#include "executor/program.h"

namespace cleave {

// "matmul" or "all-gather".
std::string_view name_of(const Instr& instr);
// "instruction 12 all-gather(%7, %8)".
std::string describe_instr(const Program& program, size_t index);

// Whether the instruction only renames its input's memory: its op has a view, and its outputs share
// the buffer of input 0.
bool is_view(const Program& program, const Instr& instr);

// Whether the instruction is a copy between the device's memory and the host's.
bool copies_with_host(const Program& program, const Instr& instr);

// The local types of a compute instruction's operands.
std::vector<TensorType> local_input_types(const Program& program, const Instr& instr);

// Bytes from the start of a buffer that a tensor touches, [first, last); everything between its
// lowest and its highest element.
struct ByteRange {
  int64_t first = 0, last = 0;
  bool overlaps(const ByteRange& other) const { return first < other.last && other.first < last; }
};
ByteRange byte_range(const Geometry& geometry, DType dtype);
// Whether the two tensors may share memory: same buffer, overlapping ranges.
bool may_overlap(const ProgramTensor& a, const ProgramTensor& b);

// The state of a tensor after the ranks of the axis have passed it on once, and of the results of
// all steps up to that of `found`, the results of one. What is complete and at home is in no ring.
RingState shifted(RingState from, int8_t axis, const Mesh& mesh);
RingState merged_ring(RingState found, const Mesh& mesh);

// The checks of one tensor by itself, and of one instruction's placements; see check(). They throw
// InternalError.
void check_tensor(const Program& program, TensorId t);
void check_types(const Program& program, size_t index);

// Those of the parts of a step. Several micro-batches: what runs in each comes before the update.
void check_order(const Program& program);
// A pipeline's chunks touch their own tensors; sends and receives are pairs; nobody waits for ever;
// nothing passes from one micro-batch to another.
void check_pipeline(const Program& program);
// Under the schedule, buffers that are live together never overlap, and all lie in their stage's
// arena below the workspace.
void check_arena(const Program& program);

}  // namespace cleave
