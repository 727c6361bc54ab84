#include "executor/instr_batches.h"

#include <algorithm>
#include <utility>

#include "executor/memory_layout.h"
#include "executor/typing.h"
#include "kernels/cuda/workspace.h"

namespace cleave {
namespace {

// A batch that is being collected, with the memory that it touches.
class Collected {
 public:
  explicit Collected(const Program& program) : program_(program) {}

  bool takes(const Instr& instr, int64_t workspace) const {
    if (batch_.instrs.empty()) return true;
    const Instr& other = program_.instrs[static_cast<size_t>(batch_.instrs[0])];
    if (instr.kind != InstrKind::kCompute || other.kind != InstrKind::kCompute ||
        instr.op != other.op || instr.op->cuda_many == nullptr) {
      return false;
    }
    if (workspace_ + workspace > program_.memory[0].workspace_bytes) return false;
    const auto apart = [&](TensorId t, const std::vector<TensorId>& others) {
      return std::none_of(others.begin(), others.end(), [&](TensorId o) { return meet(t, o); });
    };
    return std::all_of(instr.in.begin(), instr.in.end(),
                       [&](TensorId t) { return apart(t, written_); }) &&
           std::all_of(instr.out.begin(), instr.out.end(),
                       [&](TensorId t) { return apart(t, written_) && apart(t, read_); });
  }

  void add(int32_t i, int64_t workspace) {
    const Instr& instr = program_.instrs[static_cast<size_t>(i)];
    batch_.instrs.push_back(i);
    batch_.workspaces.push_back(workspace_);
    workspace_ += workspace;
    read_.insert(read_.end(), instr.in.begin(), instr.in.end());
    written_.insert(written_.end(), instr.out.begin(), instr.out.end());
  }

  InstrBatch take() {
    workspace_ = 0;
    read_.clear();
    written_.clear();
    return std::exchange(batch_, {});
  }

 private:
  // In the arena: buffers that are live at different times may lie on each other, and parts of one
  // may lie between each other.
  bool meet(TensorId a, TensorId b) const {
    const ProgramTensor &x = program_.tensor(a), &y = program_.tensor(b);
    if (x.buffer == y.buffer) return may_overlap(x, y);
    return range_of(x).overlaps(range_of(y));
  }
  ByteRange range_of(const ProgramTensor& tensor) const {
    const int64_t offset = program_.buffers[static_cast<size_t>(tensor.buffer)].offset;
    ByteRange range = byte_range(tensor.geometry, tensor.dtype);
    range.first += offset, range.last += offset;
    return range;
  }

  const Program& program_;
  InstrBatch batch_;
  int64_t workspace_ = 0;
  std::vector<TensorId> read_, written_;
};

}  // namespace

std::vector<InstrBatch> instr_batches(const Program& program, std::span<const int32_t> instrs) {
  std::vector<InstrBatch> all;
  Collected now(program);
  for (size_t k = 0; k < instrs.size(); ++k) {
    const Instr& instr = program.instrs[static_cast<size_t>(instrs[k])];
    const int64_t workspace = aligned_workspace(workspace_bytes_of(program, instr));
    if (!now.takes(instr, workspace)) all.push_back(now.take());
    now.add(instrs[k], workspace);
  }
  if (!instrs.empty()) all.push_back(now.take());
  return all;
}

}  // namespace cleave
