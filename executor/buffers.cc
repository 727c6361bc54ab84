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
    for (const ProgramSource& s : program_.sources)
      new_buffer(s.tensor, s.kind != SourceKind::kData);
    std::vector<Instr> instrs = std::move(program_.instrs);
    program_.instrs.clear();
    for (size_t i = 0; i < instrs.size(); ++i) {
      Instr& instr = instrs[i];
      if (is_collective(instr.kind)) make_contiguous(instr, static_cast<int32_t>(i));
      if (!make_views(instr)) {
        for (TensorId t : instr.out) {
          const SharingWish* w = wish_of[static_cast<size_t>(t)];
          if (w == nullptr || !share(t, w->target, static_cast<int32_t>(i), instr)) {
            new_buffer(t, false);
          }
        }
      }
      program_.instrs.push_back(std::move(instr));
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

  // Collectives take contiguous memory: operands that are views are copied first. `i`: where the
  // instruction stands among those of the lowering.
  void make_contiguous(Instr& instr, int32_t i) {
    for (TensorId& t : instr.in) {
      ProgramTensor packed = program_.tensor(t);
      const Shape strides = contiguous_strides(packed.geometry.shape);
      if (packed.geometry.strides == strides) continue;
      packed.geometry.offset = 0;
      packed.geometry.strides = strides;
      Instr copy;
      copy.kind = InstrKind::kCopy;
      copy.in = {t};
      copy.phase = instr.phase;
      copy.where = instr.where;
      t = static_cast<TensorId>(program_.tensors.size());
      copy.out = {t};
      program_.tensors.push_back(std::move(packed));
      buffer_of_.push_back(-1);
      last_read_.push_back(i);
      new_buffer(t, false);
      program_.instrs.push_back(std::move(copy));
    }
  }

  bool make_views(const Instr& instr) {
    if (instr.kind != InstrKind::kCompute || instr.op->view == nullptr || instr.in.empty())
      return false;
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
      if (!w.must ||
          buffer_of_[static_cast<size_t>(w.tensor)] == buffer_of_[static_cast<size_t>(w.target)]) {
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
  std::vector<int32_t> buffer_of_;              // by tensor
  std::vector<int32_t> last_read_;              // by tensor: instruction, or past the end
  std::vector<std::vector<TensorId>> members_;  // by buffer
};

}  // namespace

void assign_buffers(Program& program, const std::vector<SharingWish>& wishes) {
  Assigner(program).run(wishes);
}

}  // namespace cleave
