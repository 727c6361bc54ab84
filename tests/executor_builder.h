// Writes small programs by hand for the executor's tests.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "executor/program.h"
#include "graph/error.h"

namespace cleave::testing {

inline const Placement kWhole = Placement::replicate();
inline const Placement kPart = Placement::partial();
inline Placement cut(int atom) { return Placement::shard(atom); }
inline Split by(char letter, int8_t atom = 0) { return {letter, atom, false}; }
inline const Split kNone = {};
inline const Split kPassPartial = {0, 0, true};

class ProgramBuilder {
 public:
  Program program;

  explicit ProgramBuilder(std::vector<MeshAxis> axes) { program.mesh.axes = std::move(axes); }

  // A contiguous tensor in a buffer of its own; the atoms of each dimension.
  TensorId tensor(const std::string& name, const std::vector<std::vector<int64_t>>& dims,
                  Placements placements, DType dtype = DType::kF32) {
    ProgramTensor t;
    t.dtype = dtype;
    t.name = name;
    for (size_t d = 0; d < dims.size(); ++d) {
      for (int64_t atom : dims[d]) {
        t.layout.atoms.push_back(atom);
        t.layout.atom_dim.push_back(static_cast<int8_t>(d));
      }
    }
    t.layout.placements = std::move(placements);
    t.geometry.shape = t.layout.local_shape(program.mesh);
    t.geometry.strides = contiguous_strides(t.geometry.shape);
    t.buffer = static_cast<int32_t>(program.buffers.size());
    program.buffers.push_back({.bytes = numel(t.geometry.shape) * size_of(dtype)});
    return add(std::move(t));
  }

  // The next version of `of`, in its memory.
  TensorId over(const std::string& name, TensorId of) {
    ProgramTensor t = program.tensor(of);
    t.name = name;
    return add(std::move(t));
  }

  TensorId source(SourceKind kind, const std::string& name,
                  const std::vector<std::vector<int64_t>>& dims, Placements placements,
                  DType dtype = DType::kF32, Init init = {}) {
    const TensorId t = tensor(name, dims, std::move(placements), dtype);
    const bool kept = kind != SourceKind::kData;
    program.buffers.back().persistent = kept;
    program.sources.push_back({kind, name, init, {}, t, kept ? t : -1});
    return t;
  }

  // Factors take their atoms from the operands' dimensions; in a compound, one atom each.
  void compute(const OpDef& op, std::string_view factors, std::vector<TensorId> in,
               std::vector<TensorId> out, std::vector<Split> splits, Attrs attrs = {}) {
    Instr instr;
    instr.op = &op;
    instr.signature = &Signature::get(factors);
    instr.attrs = std::move(attrs);
    instr.in = std::move(in);
    instr.out = std::move(out);
    instr.splits = std::move(splits);
    instr.letter_atoms.resize(instr.signature->factors().size());
    for (size_t i = 0; i < instr.in.size(); ++i) {
      take_atoms(instr, program.tensor(instr.in[i]), instr.signature->inputs()[i]);
    }
    for (size_t i = 0; i < instr.out.size(); ++i) {
      take_atoms(instr, program.tensor(instr.out[i]), instr.signature->outputs()[i]);
    }
    program.instrs.push_back(std::move(instr));
  }

  // Makes `out` a view of `in`, as the op says.
  void view(const OpDef& op, std::string_view factors, TensorId in, TensorId out,
            std::vector<Split> splits, Attrs attrs = {}) {
    compute(op, factors, {in}, {out}, std::move(splits), std::move(attrs));
    const Instr& instr = program.instrs.back();
    const auto sizes = local_sizes(instr, program.mesh);
    const ProgramTensor& base = program.tensor(in);
    const std::vector<TensorType> types = {{base.dtype, base.geometry.shape}};
    const auto views = op.view({*instr.signature, sizes, instr.attrs, types}, base.geometry);
    CLEAVE_ASSERT(views.has_value(), "not a view");
    program.tensor(out).geometry = (*views)[0];
    program.tensor(out).buffer = base.buffer;
  }

  void move(InstrKind kind, int32_t axis, std::vector<TensorId> in, std::vector<TensorId> out,
            Reduction reduction = Reduction::kSum) {
    Instr instr;
    instr.kind = kind;
    instr.axis = axis;
    instr.in = std::move(in);
    instr.out = std::move(out);
    instr.reduction = reduction;
    program.instrs.push_back(std::move(instr));
  }

  void output(const std::string& name, TensorId t) { program.outputs.push_back({name, t}); }

  // Lookups by name, for changing one thing in a finished program.
  TensorId id(const std::string& name) const { return ids_.at(name); }
  ProgramTensor& at(const std::string& name) { return program.tensor(id(name)); }
  Placement& placement(const std::string& name, size_t axis) {
    return at(name).layout.placements[axis];
  }
  // The instruction that writes this tensor.
  Instr& making(const std::string& name) {
    for (Instr& instr : program.instrs) {
      for (TensorId t : instr.out) {
        if (t == id(name)) return instr;
      }
    }
    CLEAVE_ASSERT(false, "nothing makes {}", name);
    std::abort();
  }
  ProgramSource& source_named(const std::string& name) {
    for (ProgramSource& s : program.sources) {
      if (s.name == name) return s;
    }
    CLEAVE_ASSERT(false, "no source {}", name);
    std::abort();
  }

 private:
  TensorId add(ProgramTensor t) {
    const auto id = static_cast<TensorId>(program.tensors.size());
    ids_[t.name] = id;
    program.tensors.push_back(std::move(t));
    return id;
  }

  static void take_atoms(Instr& instr, const ProgramTensor& t, const OperandDims& dims) {
    size_t at = 0;
    for (size_t d = 0; d < dims.size(); ++d) {
      std::vector<int64_t> atoms;
      for (; at < t.layout.atoms.size() && t.layout.atom_dim[at] == static_cast<int>(d); ++at) {
        atoms.push_back(t.layout.atoms[at]);
      }
      for (size_t i = 0; i < dims[d].size(); ++i) {
        auto& letter = instr.letter_atoms[static_cast<size_t>(dims[d][i])];
        if (!letter.empty()) continue;
        letter = dims[d].size() == 1 ? atoms : std::vector<int64_t>{atoms.at(i)};
      }
    }
  }

  std::map<std::string, TensorId> ids_;
};

}  // namespace cleave::testing
