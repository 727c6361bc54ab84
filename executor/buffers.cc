#include "executor/buffers.h"

#include <algorithm>
#include <map>
#include <set>

#include "executor/typing.h"
#include "graph/error.h"
#include "kernels/assemble.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

class Assigner {
 public:
  explicit Assigner(Program& program)
      : program_(program),
        buffer_of_(program.tensors.size(), -1),
        last_read_(program.tensors.size(), -1) {}

  void run(std::vector<SharingWish> wishes) {
    note_accesses();
    for (const KeptTensor& k : program_.kept) {
      wishes.push_back({.tensor = k.final, .target = k.tensor, .must = true});
      persistent_.insert(k.tensor);
    }
    for (const ProgramSource& s : program_.sources) {
      if (s.kind != SourceKind::kData) persistent_.insert(s.tensor);
    }
    std::vector<SharingWish> wish_of(program_.tensors.size());
    for (const SharingWish& w : wishes) {
      SharingWish& known = wish_of[static_cast<size_t>(w.tensor)];
      const bool in_place = w.in_place || (known.in_place && known.target == w.target);
      known = w;
      known.in_place = in_place;
    }
    plan_parts(wish_of);
    plan_wholes(wish_of);
    for (const ProgramSource& s : program_.sources) {
      if (make_part(s.tensor)) continue;
      new_buffer(s.tensor, s.kind != SourceKind::kData);
      program_.buffers.back().host = s.on_host;
    }
    std::vector<Instr> instrs = std::move(program_.instrs);
    program_.instrs.clear();
    for (size_t i = 0; i < instrs.size(); ++i) {
      Instr& instr = instrs[i];
      if (is_collective(instr.kind)) make_contiguous(instr, static_cast<int32_t>(i));
      if (!make_views(instr)) {
        for (TensorId t : instr.out) {
          if (make_part(t)) continue;
          const SharingWish& w = wish_of[static_cast<size_t>(t)];
          if (w.target < 0 || !share(w, static_cast<int32_t>(i), instr)) {
            new_buffer(t, persistent_.contains(t));
          }
        }
      }
      if (instr.part == Part::kBegin) {
        for (TensorId t : instr.out) made_at_begin_.insert(buffer(t));
      }
      program_.instrs.push_back(std::move(instr));
    }
    copy_unmet(wishes);
    for (size_t t = 0; t < program_.tensors.size(); ++t) {
      if (buffer_of_[t] < 0) new_buffer(static_cast<TensorId>(t), false);  // a source's copy
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
    for (const KeptTensor& k : program_.kept) last_read_[static_cast<size_t>(k.final)] = end;
  }

  void new_buffer(TensorId t, bool persistent) {
    const ProgramTensor& tensor = program_.tensor(t);
    buffer_of_[static_cast<size_t>(t)] = static_cast<int32_t>(program_.buffers.size());
    program_.tensor(t).buffer = buffer_of_[static_cast<size_t>(t)];
    Buffer b;
    b.bytes = numel(tensor.layout.local_shape(program_.mesh)) * size_of(tensor.dtype);
    b.persistent = persistent;
    b.chunk = tensor.chunk;
    program_.buffers.push_back(b);
    members_.push_back({t});
  }

  void join(TensorId t, TensorId host) {
    const int32_t b = buffer_of_[static_cast<size_t>(host)];
    buffer_of_[static_cast<size_t>(t)] = program_.tensor(t).buffer = b;
    members_[static_cast<size_t>(b)].push_back(t);
  }

  // Where operands lie of the instructions that join them: what is joined must have no other wish.
  void plan_parts(const std::vector<SharingWish>& wish_of) {
    for (Instr& instr : program_.instrs) {
      if (!instr.attrs.has("joins")) continue;
      const TensorId whole = instr.out[0];
      const std::vector<int64_t> sizes = local_sizes(instr, program_.mesh);
      const auto types = types_of(instr);
      const auto parts = parts_of(*instr.op, {*instr.signature, sizes, instr.attrs, types},
                                  program_.tensor(whole).geometry);
      if (!parts || wish_of[static_cast<size_t>(whole)].target >= 0) {
        instr.attrs.set("joins", int64_t{0});
        continue;
      }
      for (size_t i = 0; i < instr.in.size(); ++i) {
        program_.tensor(instr.in[i]).geometry = (*parts)[i];
        part_of_[instr.in[i]] = whole;
        if (persistent_.contains(instr.in[i])) persistent_.insert(whole);
      }
      part_of_[whole] = whole;
      parts_in_[instr.in] = whole;
    }
  }

  // What is taken apart into tensors that wish to lie where the parts of a whole do, each in the
  // place of one, wishes to lie where the whole does: a sum of accumulators, element by element.
  void plan_wholes(std::vector<SharingWish>& wish_of) const {
    std::map<TensorId, std::vector<TensorId>> targets;  // of what each is taken apart into
    for (const Instr& instr : program_.instrs) {
      if (instr.kind != InstrKind::kCompute) continue;
      if (instr.op != &ops::unbind && instr.op != &ops::slice) continue;
      for (TensorId t : instr.out)
        targets[instr.in[0]].push_back(wish_of[static_cast<size_t>(t)].target);
    }
    for (const auto& [t, parts] : targets) {
      const auto whole = parts_in_.find(parts);
      SharingWish& wish = wish_of[static_cast<size_t>(t)];
      if (whole == parts_in_.end() || wish.target >= 0) continue;
      wish = {.tensor = t, .target = whole->second, .in_place = true};
    }
  }

  bool make_part(TensorId t) {
    const auto found = part_of_.find(t);
    if (found == part_of_.end()) return false;
    const TensorId whole = found->second;
    if (buffer(whole) < 0) new_buffer(whole, persistent_.contains(whole));
    if (t != whole) join(t, whole);
    return true;
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
      copy.part = instr.part;
      copy.chunk = instr.chunk;
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

  std::vector<TensorType> types_of(const Instr& instr) const {
    std::vector<TensorType> types;
    for (TensorId t : instr.in) {
      types.push_back({program_.tensor(t).dtype, program_.tensor(t).geometry.shape});
    }
    return types;
  }

  bool make_views(const Instr& instr) {
    if (instr.kind != InstrKind::kCompute || instr.op->view == nullptr || instr.in.empty())
      return false;
    const ProgramTensor& base = program_.tensor(instr.in[0]);
    const std::vector<int64_t> sizes = local_sizes(instr, program_.mesh);
    const auto types = types_of(instr);
    const auto views = instr.op->view({*instr.signature, sizes, instr.attrs, types}, base.geometry);
    if (!views) return false;
    for (size_t o = 0; o < instr.out.size(); ++o) {
      program_.tensor(instr.out[o]).geometry = (*views)[o];
      join(instr.out[o], instr.in[0]);
    }
    return true;
  }

  // Whether the tensor, written by instruction i, can overwrite the target's memory; then it does.
  bool share(const SharingWish& wish, int32_t i, const Instr& instr) {
    const auto [t, target] = std::pair(wish.tensor, wish.target);
    ProgramTensor& a = program_.tensor(t);
    const ProgramTensor& b = program_.tensor(target);
    if (a.dtype != b.dtype || a.layout != b.layout) return false;
    const int32_t buffer = buffer_of_[static_cast<size_t>(target)];
    if (buffer < 0 || b.geometry.shape != a.geometry.shape ||
        b.geometry.strides != a.geometry.strides || outlives_micro_batch(target, instr)) {
      return false;
    }
    for (TensorId m : members_[static_cast<size_t>(buffer)]) {
      if (!may_overlap(program_.tensor(m), b)) continue;
      const int32_t last = last_read_[static_cast<size_t>(m)];
      if (last > i) return false;
      // A reader in the same instruction must be an op that works in place on this very operand.
      if (last == i && (m != target || !wish.in_place || instr.kind != InstrKind::kCompute)) {
        return false;
      }
    }
    a.geometry.offset = b.geometry.offset;
    join(t, target);
    return true;
  }

  // Whether what every micro-batch writes here would be read by the next one.
  bool outlives_micro_batch(TensorId target, const Instr& instr) const {
    return !once_a_step(instr.part) && made_at_begin_.contains(buffer(target));
  }

  int32_t buffer(TensorId t) const { return buffer_of_[static_cast<size_t>(t)]; }

  // Copies a tensor into memory of its own, or into that of `target`.
  TensorId add_copy(TensorId from, TensorId target) {
    ProgramTensor copy = program_.tensor(target < 0 ? from : target);
    copy.name = program_.tensor(from).name;
    if (target < 0) {
      copy.geometry.offset = 0;
      copy.geometry.strides = contiguous_strides(copy.geometry.shape);
    }
    const TensorId t = static_cast<TensorId>(program_.tensors.size());
    program_.tensors.push_back(std::move(copy));
    buffer_of_.push_back(-1);
    if (target < 0) {
      new_buffer(t, false);
    } else {
      join(t, target);
    }
    Instr instr;
    instr.kind = InstrKind::kCopy;
    instr.in = {from};
    instr.out = {t};
    instr.part = Part::kUpdate;
    instr.chunk = program_.tensor(from).chunk;
    instr.where = program_.tensor(target < 0 ? from : target).name;
    program_.instrs.push_back(std::move(instr));
    return t;
  }

  // What a copy overwrites, an output or another copy may still have to read: outputs first get
  // memory of their own; then a copy is made once no other reads its target, and when there is none
  // such, something that is still to be read moves out of the way.
  void copy_unmet(const std::vector<SharingWish>& wishes) {
    std::vector<SharingWish> pending;
    for (const SharingWish& w : wishes) {
      if (!w.must || (buffer(w.tensor) == buffer(w.target) &&
                      program_.tensor(w.tensor).geometry == program_.tensor(w.target).geometry)) {
        continue;
      }
      pending.push_back(w);
    }
    for (ProgramOutput& o : program_.outputs) {
      if (std::any_of(pending.begin(), pending.end(),
                      [&](auto& w) { return buffer(w.target) == buffer(o.tensor); })) {
        o.tensor = add_copy(o.tensor, -1);
      }
    }
    while (!pending.empty()) {
      const auto free = std::find_if(pending.begin(), pending.end(), [&](const SharingWish& w) {
        return std::none_of(pending.begin(), pending.end(), [&](const SharingWish& other) {
          return buffer(other.tensor) == buffer(w.target);
        });
      });
      if (free == pending.end()) {
        pending.front().tensor = add_copy(pending.front().tensor, -1);
        continue;
      }
      const TensorId t = add_copy(free->tensor, free->target);
      for (ProgramSource& s : program_.sources) {
        if (s.tensor == free->target) s.final = t;
      }
      for (KeptTensor& k : program_.kept) {
        if (k.tensor == free->target) k.final = t;
      }
      pending.erase(free);
    }
  }

  Program& program_;
  std::vector<int32_t> buffer_of_;                      // by tensor
  std::vector<int32_t> last_read_;                      // by tensor: instruction, or past the end
  std::vector<std::vector<TensorId>> members_;          // by buffer
  std::set<int32_t> made_at_begin_;                     // buffers
  std::map<TensorId, TensorId> part_of_;                // what lies in another, or has others in it
  std::map<std::vector<TensorId>, TensorId> parts_in_;  // the same, by all parts of a whole
  std::set<TensorId> persistent_;                       // those that the step begins with
};

}  // namespace

void assign_buffers(Program& program, const std::vector<SharingWish>& wishes) {
  Assigner(program).run(wishes);
}

}  // namespace cleave
