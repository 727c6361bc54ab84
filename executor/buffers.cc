#include "executor/buffers.h"

#include <algorithm>

#include "graph/error.h"

namespace cleave {
namespace {

class Assigner {
 public:
  explicit Assigner(Program& program)
      : program_(program),
        buffer_of_(program.tensors.size(), -1),
        last_read_(program.tensors.size(), -1) {}

  void run(const std::vector<SharingWish>& wishes) {
    note_accesses();
    std::vector<const SharingWish*> wish_of(program_.tensors.size(), nullptr);
    for (const SharingWish& w : wishes) wish_of[static_cast<size_t>(w.tensor)] = &w;
    for (const ProgramSource& s : program_.sources) new_buffer(s.tensor, s.kind != SourceKind::kData);
    for (size_t i = 0; i < program_.instrs.size(); ++i) {
      Instr& instr = program_.instrs[i];
      if (make_views(instr)) continue;
      for (TensorId t : instr.out) {
        const SharingWish* w = wish_of[static_cast<size_t>(t)];
        if (w == nullptr || !share(t, w->target, static_cast<int32_t>(i), instr)) new_buffer(t, false);
      }
    }
    copy_unmet(wishes);
    for (size_t t = 0; t < program_.tensors.size(); ++t) {
      if (buffer_of_[t] < 0) new_buffer(static_cast<TensorId>(t), false);  // a source's copy
      program_.tensors[t].buffer = buffer_of_[t];
    }
  }

 private:
  void note_accesses() {
    const int32_t end = static_cast<int32_t>(program_.instrs.size());
    for (int32_t i = 0; i < end; ++i) {
      const Instr& instr = program_.instrs[static_cast<size_t>(i)];
      for (TensorId t : instr.in) last_read_[static_cast<size_t>(t)] = i;
    }
    for (const ProgramOutput& o : program_.outputs) last_read_[static_cast<size_t>(o.tensor)] = end;
    for (const ProgramSource& s : program_.sources) {
      if (s.final >= 0) last_read_[static_cast<size_t>(s.final)] = end;
    }
  }

  void new_buffer(TensorId t, bool persistent) {
    const ProgramTensor& tensor = program_.tensor(t);
    buffer_of_[static_cast<size_t>(t)] = static_cast<int32_t>(program_.buffers.size());
    Buffer b;
    b.bytes = numel(tensor.layout.local_shape(program_.mesh)) * size_of(tensor.dtype);
    b.persistent = persistent;
    program_.buffers.push_back(b);
    members_.push_back({t});
  }

  void join(TensorId t, TensorId host) {
    const int32_t b = buffer_of_[static_cast<size_t>(host)];
    buffer_of_[static_cast<size_t>(t)] = b;
    members_[static_cast<size_t>(b)].push_back(t);
  }

  bool make_views(const Instr& instr) {
    if (instr.kind != InstrKind::kCompute || instr.op->view == nullptr || instr.in.empty()) return false;
    const ProgramTensor& base = program_.tensor(instr.in[0]);
    const std::vector<int64_t> sizes = local_sizes(instr, program_.mesh);
    std::vector<TensorType> types;
    for (TensorId t : instr.in) {
      types.push_back({program_.tensor(t).dtype, program_.tensor(t).geometry.shape});
    }
    const auto views = instr.op->view({*instr.signature, sizes, instr.attrs, types}, base.geometry);
    if (!views) return false;
    for (size_t o = 0; o < instr.out.size(); ++o) {
      program_.tensor(instr.out[o]).geometry = (*views)[o];
      join(instr.out[o], instr.in[0]);
    }
    return true;
  }

  // Whether t, written by instruction i, can overwrite the target's memory.
  bool share(TensorId t, TensorId target, int32_t i, const Instr& instr) {
    const ProgramTensor& a = program_.tensor(t);
    const ProgramTensor& b = program_.tensor(target);
    if (a.dtype != b.dtype || a.layout != b.layout) return false;
    const int32_t buffer = buffer_of_[static_cast<size_t>(target)];
    if (buffer < 0 || b.geometry.offset != 0 || b.geometry.shape != a.geometry.shape ||
        b.geometry.strides != a.geometry.strides) {
      return false;
    }
    for (TensorId m : members_[static_cast<size_t>(buffer)]) {
      const int32_t last = last_read_[static_cast<size_t>(m)];
      if (last > i) return false;
      // A reader in the same instruction must be an op that works in place on this very operand.
      if (last == i && (m != target || instr.kind != InstrKind::kCompute)) return false;
    }
    join(t, target);
    return true;
  }

  void copy_unmet(const std::vector<SharingWish>& wishes) {
    for (const SharingWish& w : wishes) {
      if (!w.must || buffer_of_[static_cast<size_t>(w.tensor)] == buffer_of_[static_cast<size_t>(w.target)]) {
        continue;
      }
      ProgramTensor copy = program_.tensor(w.target);
      copy.name = program_.tensor(w.tensor).name;
      const TensorId t = static_cast<TensorId>(program_.tensors.size());
      program_.tensors.push_back(std::move(copy));
      buffer_of_.push_back(-1);
      join(t, w.target);
      Instr instr;
      instr.kind = InstrKind::kCopy;
      instr.in = {w.tensor};
      instr.out = {t};
      instr.phase = Phase::kUpdate;
      instr.where = program_.tensor(w.target).name;
      program_.instrs.push_back(std::move(instr));
      for (ProgramSource& s : program_.sources) {
        if (s.tensor == w.target) s.final = t;
      }
    }
  }

  Program& program_;
  std::vector<int32_t> buffer_of_;  // by tensor
  std::vector<int32_t> last_read_;  // by tensor: instruction, or past the end
  std::vector<std::vector<TensorId>> members_;  // by buffer
};

}  // namespace

void assign_buffers(Program& program, const std::vector<SharingWish>& wishes) {
  Assigner(program).run(wishes);
}

}  // namespace cleave
