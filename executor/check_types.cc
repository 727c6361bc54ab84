// The typing rules: what layout each operand and result of an instruction must have.
#include <algorithm>

#include "executor/typing.h"
#include "graph/error.h"
#include "kernels/assemble.h"

namespace cleave {
namespace {

template <class... Args>
[[noreturn]] void refuse(const std::string& subject, fmt::format_string<Args...> format,
                         Args&&... args) {
  throw InternalError(subject + ": " + fmt::format(format, std::forward<Args>(args)...));
}

std::string atoms_text(const std::vector<int64_t>& atoms) {
  return fmt::format("{}", fmt::join(atoms, "x"));
}

class InstrTyping {
 public:
  InstrTyping(const Program& program, size_t index)
      : p_(program), instr_(program.instrs[index]), subject_(describe_instr(program, index)) {}

  void check() {
    for (const auto* list : {&instr_.in, &instr_.out}) {
      for (TensorId t : *list) {
        if (t < 0 || static_cast<size_t>(t) >= p_.tensors.size()) {
          refuse(subject_, "there is no tensor {}", t);
        }
      }
    }
    if (instr_.kind == InstrKind::kCompute) {
      check_compute();
    } else {
      check_movement();
    }
    check_ring();
  }

 private:
  const ProgramTensor& in(size_t i) const { return p_.tensor(instr_.in[i]); }
  const ProgramTensor& out(size_t i) const { return p_.tensor(instr_.out[i]); }
  const std::string& axis_name(size_t a) const { return p_.mesh.axes[a].name; }

  // --- compute -----------------------------------------------------------------------------------

  void check_compute() {
    if (instr_.op == nullptr || instr_.signature == nullptr) refuse(subject_, "it has no op");
    const Signature& s = *instr_.signature;
    const bool none = instr_.in.empty() && s.inputs().size() == 1 && s.inputs()[0].empty();
    if ((instr_.in.size() != s.inputs().size() && !none) ||
        instr_.out.size() != s.outputs().size()) {
      refuse(subject_, "'{}' does not have {} operands and {} results", s.text(), instr_.in.size(),
             instr_.out.size());
    }
    if (instr_.letter_atoms.size() != s.factors().size()) {
      refuse(subject_, "atoms are given for {} factors, '{}' has {}", instr_.letter_atoms.size(),
             s.text(), s.factors().size());
    }
    for (size_t f = 0; f < s.factors().size(); ++f) {
      const auto& atoms = instr_.letter_atoms[f];
      if (atoms.empty() || std::any_of(atoms.begin(), atoms.end(), [](auto n) { return n < 1; })) {
        refuse(subject_, "factor '{}' has no size", s.factors()[f].letter);
      }
    }
    for (size_t i = 0; i < instr_.in.size(); ++i) check_atoms(in(i), s.inputs()[i]);
    for (size_t i = 0; i < instr_.out.size(); ++i) check_atoms(out(i), s.outputs()[i]);
    check_inference();
    check_splits();
    if (is_view(p_, instr_))
      instr_.attrs.integer_or("joins", 0) != 0 ? check_parts() : check_view();
  }

  // A factor of size 1 inside a compound has no atom in the operand.
  bool vanishes(const DimFactors& dim, int8_t factor) const {
    const auto& atoms = instr_.letter_atoms[static_cast<size_t>(factor)];
    return dim.size() > 1 && atoms.size() == 1 && atoms[0] == 1;
  }

  // A dimension's atoms are those of its factors, one after the other; a broadcast dimension, and a
  // compound of size 1, have atoms of size 1.
  void check_atoms(const ProgramTensor& t, const OperandDims& dims) {
    size_t at = 0;
    for (size_t d = 0; d < dims.size(); ++d) {
      std::vector<int64_t> want, got;
      for (int8_t f : dims[d]) {
        if (vanishes(dims[d], f)) continue;
        const auto& atoms = instr_.letter_atoms[static_cast<size_t>(f)];
        want.insert(want.end(), atoms.begin(), atoms.end());
      }
      for (; at < t.layout.atoms.size() && t.layout.atom_dim[at] == static_cast<int>(d); ++at) {
        got.push_back(t.layout.atoms[at]);
      }
      if (want.empty()) want.assign(std::max<size_t>(got.size(), 1), 1);
      if (got != want) {
        refuse(subject_, "dimension {} of {} has atoms {}, '{}' needs {}", d, t.name,
               atoms_text(got), instr_.signature->text(), atoms_text(want));
      }
    }
    if (at != t.layout.atoms.size()) {
      refuse(subject_, "{} has more dimensions than the {} of '{}'", t.name, dims.size(),
             instr_.signature->text());
    }
  }

  // Element types and whole shapes are those that the op infers.
  void check_inference() {
    std::vector<int64_t> extents;
    for (const auto& atoms : instr_.letter_atoms) extents.push_back(numel(atoms));
    std::vector<TensorType> types;
    for (TensorId t : instr_.in) {
      types.push_back({p_.tensor(t).dtype, p_.tensor(t).layout.global_shape()});
    }
    const auto inferred = instr_.op->infer({*instr_.signature, extents, instr_.attrs, types});
    for (size_t i = 0; i < instr_.out.size(); ++i) {
      const TensorType got = {out(i).dtype, out(i).layout.global_shape()};
      if (i >= inferred.size() || got != inferred[i]) {
        refuse(subject_, "result {} is {}, the op gives {}", out(i).name, to_string(got),
               i < inferred.size() ? to_string(inferred[i]) : "nothing");
      }
    }
  }

  // --- rings -------------------------------------------------------------------------------------

  bool moves(const OperandDims& dims) const {
    const int f = instr_.ring.letter == 0 ? -1 : instr_.signature->factor(instr_.ring.letter);
    return f >= 0 && std::any_of(dims.begin(), dims.end(), [&](const DimFactors& d) {
             return std::find(d.begin(), d.end(), static_cast<int8_t>(f)) != d.end();
           });
  }

  void expect_ring(const ProgramTensor& t, const RingState& want) {
    if (t.ring == want) return;
    refuse(subject_, "{} is at step {} of a ring with {} merged, must be at {} with {}", t.name,
           t.ring.step, t.ring.merged, want.step, want.merged);
  }

  // In which state of a ring each operand and result is. Outside of rings, in none.
  void check_ring() {
    const auto [axis, letter, step] = instr_.ring;
    if (instr_.kind == InstrKind::kShift) {
      const auto along = static_cast<int8_t>(instr_.axis);
      for (size_t i = 0; i < instr_.in.size(); ++i) {
        const RingState& from = in(i).ring;
        if (from.axis >= 0 && (from.axis != along || !from.moves)) {
          refuse(subject_, "{} does not pass round axis {}", in(i).name, axis_name(size_t(along)));
        }
        expect_ring(out(i), shifted(from, along, p_.mesh));
      }
    } else if (instr_.kind == InstrKind::kCopy) {
      for (size_t i = 0; i < instr_.in.size(); ++i) expect_ring(out(i), in(i).ring);
    } else if (instr_.kind != InstrKind::kCompute || axis < 0) {
      for (size_t i = 0; i < instr_.in.size(); ++i) expect_ring(in(i), {});
      for (size_t i = 0; i < instr_.out.size(); ++i) expect_ring(out(i), {});
    } else if (letter != 0) {
      const RingState moved = step == 0 ? RingState{} : RingState{axis, step, 0, true};
      for (size_t i = 0; i < instr_.in.size(); ++i) {
        expect_ring(in(i), moves(instr_.signature->inputs()[i]) ? moved : RingState{});
      }
      for (size_t i = 0; i < instr_.out.size(); ++i) {
        expect_ring(out(i), {axis, step, 1, moves(instr_.signature->outputs()[i])});
      }
    } else {
      const size_t results = instr_.out.size();
      if (step < 1 || instr_.in.size() != 2 * results) refuse(subject_, "nothing to merge");
      for (size_t i = 0; i < results; ++i) {
        const bool moved = in(results + i).ring.moves;
        expect_ring(in(i), {axis, moved ? step : step - 1, step, moved});
        expect_ring(in(results + i), {axis, step, 1, moved});
        expect_ring(out(i), merged_ring(in(results + i).ring, p_.mesh));
      }
    }
  }

  // The ring of a step: its letter has one atom that divides, is not split otherwise, and is the
  // one that the op merges over; the axis splits what stays.
  void check_ring_letter() {
    const auto [axis, letter, step] = instr_.ring;
    if (axis < 0) return;
    if (static_cast<size_t>(axis) >= p_.mesh.axes.size())
      refuse(subject_, "there is no axis {}", axis);
    const int64_t parts = p_.mesh.axes[static_cast<size_t>(axis)].size;
    if (step < 0 || step >= parts) refuse(subject_, "a ring of {} has no step {}", parts, step);
    if (letter == 0) return;
    const int f = instr_.signature->factor(letter);
    if (f < 0 || instr_.op->merge == nullptr || instr_.op->merges != letter) {
      refuse(subject_, "{} does not merge over '{}'", instr_.op->name, letter);
    }
    const auto& atoms = instr_.letter_atoms[static_cast<size_t>(f)];
    if (atoms.size() != 1 || atoms[0] % parts != 0) {
      refuse(subject_, "'{}' of {} does not divide by axis {} of {}", letter, atoms_text(atoms),
             axis_name(static_cast<size_t>(axis)), parts);
    }
    for (size_t a = 0; a < instr_.splits.size(); ++a) {
      const Split& split = instr_.splits[a];
      if (split.letter == letter || (static_cast<int8_t>(a) == axis && split.letter == 0)) {
        refuse(subject_, "axis {} splits '{}' in a ring of '{}'", axis_name(a),
               split.letter == 0 ? '-' : split.letter, letter);
      }
    }
    const auto stays = static_cast<int8_t>(
        instr_.signature->factor(instr_.splits[static_cast<size_t>(axis)].letter));
    for (const auto* list : {&instr_.signature->inputs(), &instr_.signature->outputs()}) {
      for (const OperandDims& dims : *list) {
        bool stay = false;
        for (const DimFactors& d : dims) stay |= std::find(d.begin(), d.end(), stays) != d.end();
        if ((stay && moves(dims)) ||
            (list == &instr_.signature->outputs() && !stay && !moves(dims))) {
          refuse(subject_, "'{}' is no ring of '{}'", instr_.signature->text(), letter);
        }
      }
    }
  }

  void check_splits() {
    if (instr_.splits.size() != p_.mesh.axes.size()) {
      refuse(subject_, "it has {} splits for {} mesh axes", instr_.splits.size(),
             p_.mesh.axes.size());
    }
    check_ring_letter();
    auto rest = instr_.letter_atoms;  // what earlier axes left of each atom
    for (size_t a = 0; a < instr_.splits.size(); ++a) {
      const Split& split = instr_.splits[a];
      if (split.partial) {
        check_partial(a, split);
      } else if (split.letter == 0) {
        for (size_t i = 0; i < instr_.in.size(); ++i) expect(in(i), a, Placement::replicate());
        for (size_t i = 0; i < instr_.out.size(); ++i) expect(out(i), a, Placement::replicate());
      } else {
        check_split(a, split, rest);
      }
    }
  }

  void check_partial(size_t a, const Split& split) {
    if (split.letter != 0) {
      refuse(subject_, "axis {} both splits '{}' and passes partial sums", axis_name(a),
             split.letter);
    }
    if (!instr_.op->linear) {
      refuse(subject_, "partial sums on axis {} enter {}, which is not linear", axis_name(a),
             instr_.op->name);
    }
    bool any = false;
    for (size_t i = 0; i < instr_.in.size(); ++i) {
      const bool floating = is_float(in(i).dtype);
      any |= floating;
      expect(in(i), a, floating ? Placement::partial() : Placement::replicate());
    }
    if (!any) refuse(subject_, "no operand can be a partial sum on axis {}", axis_name(a));
    for (size_t i = 0; i < instr_.out.size(); ++i) expect(out(i), a, Placement::partial());
  }

  void check_split(size_t a, const Split& split, std::vector<std::vector<int64_t>>& rest) {
    const Signature& s = *instr_.signature;
    const int f = s.factor(split.letter);
    if (f < 0) {
      refuse(subject_, "axis {} splits '{}', which '{}' does not have", axis_name(a), split.letter,
             s.text());
    }
    const Factor& factor = s.factors()[static_cast<size_t>(f)];
    if (factor.whole) {
      refuse(subject_, "axis {} splits '{}', which is whole", axis_name(a), split.letter);
    }
    auto& atoms = rest[static_cast<size_t>(f)];
    if (split.atom < 0 || static_cast<size_t>(split.atom) >= atoms.size()) {
      refuse(subject_, "axis {} splits atom {} of '{}', which has {}", axis_name(a), split.atom,
             split.letter, atoms.size());
    }
    int64_t& size = atoms[static_cast<size_t>(split.atom)];
    if (size % p_.mesh.axes[a].size != 0) {
      refuse(subject_, "{} of factor '{}' does not divide by axis {} of {}", size, split.letter,
             axis_name(a), p_.mesh.axes[a].size);
    }
    size /= p_.mesh.axes[a].size;
    const bool ring = static_cast<int8_t>(a) == instr_.ring.axis;
    const auto moving = [&](const OperandDims& dims, const ProgramTensor& t) {
      return ring && moves(dims) ? atom_index(dims, s.factor(instr_.ring.letter), 0, t) : -1;
    };
    for (size_t i = 0; i < instr_.in.size(); ++i) {
      const int atom =
          std::max(atom_index(s.inputs()[i], f, split.atom, in(i)), moving(s.inputs()[i], in(i)));
      expect(in(i), a, atom < 0 ? Placement::replicate() : Placement::shard(atom));
    }
    for (size_t i = 0; i < instr_.out.size(); ++i) {
      const int atom = std::max(atom_index(s.outputs()[i], f, split.atom, out(i)),
                                moving(s.outputs()[i], out(i)));
      expect(out(i), a,
             atom >= 0            ? Placement::shard(atom)
             : s.reduced_in(f, i) ? Placement::partial(factor.reduction)
                                  : Placement::replicate());
    }
  }

  // Which atom of the operand is atom `k` of factor `f`; -1 when the operand lacks the factor.
  int atom_index(const OperandDims& dims, int f, int k, const ProgramTensor& t) {
    int found = -1;
    const auto& dim_of = t.layout.atom_dim;
    for (size_t d = 0; d < dims.size(); ++d) {
      int at = static_cast<int>(
          std::lower_bound(dim_of.begin(), dim_of.end(), static_cast<int8_t>(d)) - dim_of.begin());
      for (int8_t g : dims[d]) {
        if (g == f && found >= 0) {
          refuse(subject_, "{} carries factor '{}' twice, which cannot be split", t.name,
                 instr_.signature->factors()[static_cast<size_t>(f)].letter);
        }
        if (g == f) found = at + k;
        if (!vanishes(dims[d], g))
          at += static_cast<int>(instr_.letter_atoms[static_cast<size_t>(g)].size());
      }
    }
    return found;
  }

  void expect(const ProgramTensor& t, size_t axis, const Placement& want) {
    const Placement& got = t.layout.placements[axis];
    if (got == want) return;
    refuse(subject_, "{} is {} on axis {}, must be {}", t.name, to_string(got, t.layout),
           axis_name(axis), to_string(want, t.layout));
  }

  void check_view() {
    const auto types = local_input_types(p_, instr_);
    const auto sizes = local_sizes(instr_, p_.mesh);
    const auto views =
        instr_.op->view({*instr_.signature, sizes, instr_.attrs, types}, in(0).geometry);
    if (!views) refuse(subject_, "{} cannot be a view of {}", out(0).name, in(0).name);
    for (size_t i = 0; i < instr_.out.size(); ++i) {
      if (out(i).buffer != in(0).buffer || i >= views->size() || out(i).geometry != (*views)[i] ||
          out(i).dtype != in(0).dtype) {
        refuse(subject_, "{} does not lie where a view of {} must", out(i).name, in(0).name);
      }
    }
  }

  void check_parts() {
    const auto types = local_input_types(p_, instr_);
    const auto sizes = local_sizes(instr_, p_.mesh);
    const auto parts =
        parts_of(*instr_.op, {*instr_.signature, sizes, instr_.attrs, types}, out(0).geometry);
    if (!parts) refuse(subject_, "{} cannot be put together in place", out(0).name);
    for (size_t i = 0; i < instr_.in.size(); ++i) {
      if (in(i).buffer != out(0).buffer || i >= parts->size() || in(i).geometry != (*parts)[i] ||
          in(i).dtype != out(0).dtype) {
        refuse(subject_, "{} does not lie where a part of {} must", in(i).name, out(0).name);
      }
    }
  }

  // --- collectives and copies --------------------------------------------------------------------

  void check_movement() {
    if (instr_.kind == InstrKind::kSend || instr_.kind == InstrKind::kReceive) {
      const bool send = instr_.kind == InstrKind::kSend;
      if (instr_.in.size() != (send ? 1 : 0) || instr_.out.size() != (send ? 0 : 1)) {
        refuse(subject_, "it has {} operands and {} results", instr_.in.size(), instr_.out.size());
      }
      return;
    }
    if (instr_.in.empty() || instr_.in.size() != instr_.out.size()) {
      refuse(subject_, "{} operands and {} results are not pairs", instr_.in.size(),
             instr_.out.size());
    }
    const bool copy = instr_.kind == InstrKind::kCopy;
    if (!copy && (instr_.axis < 0 || static_cast<size_t>(instr_.axis) >= p_.mesh.axes.size())) {
      refuse(subject_, "there is no mesh axis {}", instr_.axis);
    }
    for (size_t i = 0; i < instr_.in.size(); ++i) {
      const Layout &from = in(i).layout, &to = out(i).layout;
      if (in(i).dtype != out(i).dtype || from.atoms != to.atoms || from.atom_dim != to.atom_dim) {
        refuse(subject_, "{} ({} {}) and {} ({} {}) are not the same value", in(i).name,
               name_of(in(i).dtype), atoms_text(from.atoms), out(i).name, name_of(out(i).dtype),
               atoms_text(to.atoms));
      }
      for (size_t a = 0; a < p_.mesh.axes.size(); ++a) {
        if (copy || static_cast<int32_t>(a) != instr_.axis) expect(out(i), a, from.placements[a]);
      }
      if (!copy) check_axis(i);
      if (is_collective(instr_.kind)) check_contiguous(i);
    }
  }

  void check_axis(size_t i) {
    const auto axis = static_cast<size_t>(instr_.axis);
    const Placement& from = in(i).layout.placements[axis];
    const Placement& to = out(i).layout.placements[axis];
    switch (instr_.kind) {
      case InstrKind::kAllReduce:
        expect(in(i), axis, Placement::partial(instr_.reduction));
        expect(out(i), axis, Placement::replicate());
        break;
      case InstrKind::kAllGather:
        need_shard(in(i), axis);
        expect(out(i), axis, Placement::replicate());
        break;
      case InstrKind::kReduceScatter:
        expect(in(i), axis, Placement::partial(instr_.reduction));
        if (instr_.reduction == Reduction::kLogSumExp) {
          refuse(subject_, "a reduce-scatter takes sums or maxima, not {}",
                 name_of(instr_.reduction));
        }
        need_shard(out(i), axis);
        break;
      case InstrKind::kAllToAll:
        need_shard(in(i), axis);
        need_shard(out(i), axis);
        if (from.atom == to.atom) {
          refuse(subject_, "{} and {} are split alike", in(i).name, out(i).name);
        }
        break;
      case InstrKind::kShift:
        need_shard(in(i), axis);
        expect(out(i), axis, from);
        break;
      case InstrKind::kSlice:
        expect(in(i), axis, Placement::replicate());
        need_shard(out(i), axis);
        break;
      case InstrKind::kMask:
        expect(in(i), axis, Placement::replicate());
        expect(out(i), axis, Placement::partial());
        break;
      default: break;
    }
    if (instr_.kind == InstrKind::kShift) return;  // whole parts move, however they are cut further
    if (from.is_shard()) check_last(in(i), axis);
    if (to.is_shard()) check_last(out(i), axis);
  }

  void need_shard(const ProgramTensor& t, size_t axis) {
    const Placement& got = t.layout.placements[axis];
    if (got.is_shard()) return;
    refuse(subject_, "{} is {} on axis {}, must be a shard", t.name, to_string(got, t.layout),
           axis_name(axis));
  }

  // The earlier axis cuts first, so an atom is put together and cut from the last axis inwards.
  void check_last(const ProgramTensor& t, size_t axis) {
    for (size_t later = axis + 1; later < p_.mesh.axes.size(); ++later) {
      if (t.layout.placements[later] != t.layout.placements[axis]) continue;
      refuse(subject_, "axis {} moves an atom of {} that the later axis {} splits too",
             axis_name(axis), t.name, axis_name(later));
    }
  }

  void check_contiguous(size_t i) {
    for (const ProgramTensor* t : {&in(i), &out(i)}) {
      if (t->geometry.strides != contiguous_strides(t->geometry.shape)) {
        refuse(subject_, "{} is not contiguous", t->name);
      }
    }
  }

  const Program& p_;
  const Instr& instr_;
  const std::string subject_;
};

}  // namespace

void check_types(const Program& program, size_t index) { InstrTyping(program, index).check(); }

void check_tensor(const Program& program, TensorId id) {
  const ProgramTensor& t = program.tensor(id);
  const Layout& layout = t.layout;
  const std::string subject = "tensor " + t.name;
  if (layout.atom_dim.size() != layout.atoms.size()) {
    refuse(subject, "{} atoms, but dimensions for {}", layout.atoms.size(), layout.atom_dim.size());
  }
  for (size_t i = 0; i < layout.atoms.size(); ++i) {
    const int step = layout.atom_dim[i] - (i == 0 ? -1 : layout.atom_dim[i - 1]);
    if (layout.atoms[i] < 1 || step > 1 || step < (i == 0 ? 1 : 0)) {
      refuse(subject, "its atoms {} do not make up dimensions", atoms_text(layout.atoms));
    }
  }
  if (layout.placements.size() != program.mesh.axes.size()) {
    refuse(subject, "{} placements for {} mesh axes", layout.placements.size(),
           program.mesh.axes.size());
  }
  std::vector<int64_t> rest = layout.atoms;
  const Placement* partial = nullptr;
  for (size_t a = 0; a < layout.placements.size(); ++a) {
    const Placement& p = layout.placements[a];
    const MeshAxis& axis = program.mesh.axes[a];
    if (p.is_shard()) {
      if (p.atom < 0 || static_cast<size_t>(p.atom) >= rest.size()) {
        refuse(subject, "axis {} splits atom {} of {}", axis.name, p.atom, rest.size());
      }
      int64_t& size = rest[static_cast<size_t>(p.atom)];
      if (size % axis.size != 0) {
        refuse(subject, "{} does not divide by axis {} of {}", size, axis.name, axis.size);
      }
      size /= axis.size;
    } else if (p.is_partial()) {
      if (!is_float(t.dtype)) {
        refuse(subject, "partial results of type {} on axis {}", name_of(t.dtype), axis.name);
      }
      // A sum of maxima is not the maximum of sums: with two kinds the order would matter.
      if (partial != nullptr && partial->reduction != p.reduction) {
        refuse(subject, "it mixes partial results of kinds {} and {}", name_of(partial->reduction),
               name_of(p.reduction));
      }
      partial = &p;
    }
  }
  const Geometry& g = t.geometry;
  if (g.shape != layout.local_shape(program.mesh)) {
    refuse(subject, "its geometry has shape {}, its layout {}", to_string(g.shape),
           to_string(layout.local_shape(program.mesh)));
  }
  if (g.strides.size() != g.shape.size()) {
    refuse(subject, "{} strides for {} dimensions", g.strides.size(), g.shape.size());
  }
  if (t.buffer < 0 || static_cast<size_t>(t.buffer) >= program.buffers.size()) {
    refuse(subject, "there is no buffer {}", t.buffer);
  }
  const ByteRange range = byte_range(g, t.dtype);
  const int64_t bytes = program.buffers[static_cast<size_t>(t.buffer)].bytes;
  if (range.first < 0 || range.last > bytes) {
    refuse(subject, "bytes {} to {} lie outside its buffer of {}", range.first, range.last, bytes);
  }
}

}  // namespace cleave
