#include "executor/program.h"

#include "executor/typing.h"
#include "graph/error.h"

namespace cleave {

std::string_view name_of(InstrKind kind) {
  switch (kind) {
    case InstrKind::kCompute: return "compute";
    case InstrKind::kAllReduce: return "all-reduce";
    case InstrKind::kAllGather: return "all-gather";
    case InstrKind::kReduceScatter: return "reduce-scatter";
    case InstrKind::kAllToAll: return "all-to-all";
    case InstrKind::kSlice: return "slice";
    case InstrKind::kMask: return "mask";
    case InstrKind::kCopy: return "copy";
  }
  return "?";
}

bool is_collective(InstrKind kind) {
  return kind == InstrKind::kAllReduce || kind == InstrKind::kAllGather ||
         kind == InstrKind::kReduceScatter || kind == InstrKind::kAllToAll;
}

std::vector<Extent> local_extents(const Instr& instr, const Mesh& mesh,
                                  const std::vector<int64_t>& coordinates) {
  std::vector<std::vector<int64_t>> atoms = instr.letter_atoms;  // what is left of them
  std::vector<Extent> extents(atoms.size());
  for (size_t f = 0; f < atoms.size(); ++f) {
    extents[f].global = extents[f].local = numel(atoms[f]);
  }
  for (size_t a = 0; a < instr.splits.size(); ++a) {
    const Split& split = instr.splits[a];
    if (split.letter == 0) continue;
    const int f = instr.signature->factor(split.letter);
    CLEAVE_ASSERT(f >= 0, "'{}' has no factor '{}'", instr.signature->text(), split.letter);
    std::vector<int64_t>& parts = atoms[static_cast<size_t>(f)];
    const auto atom = static_cast<size_t>(split.atom);
    CLEAVE_ASSERT(atom < parts.size(), "factor '{}' has {} atoms, not {}", split.letter,
                  parts.size(), atom + 1);
    const int64_t ranks = mesh.axes[a].size;
    CLEAVE_ASSERT(parts[atom] % ranks == 0, "{} of factor '{}' does not divide by axis {} of {}",
                  parts[atom], split.letter, mesh.axes[a].name, ranks);
    Extent& extent = extents[static_cast<size_t>(f)];
    const Shape before(parts.begin(), parts.begin() + static_cast<int64_t>(atom));
    extent.cuts.push_back({.blocks = numel(before), .parts = ranks, .index = coordinates[a]});
    extent.local /= ranks;
    parts[atom] /= ranks;
  }
  return extents;
}

std::vector<int64_t> local_sizes(const Instr& instr, const Mesh& mesh) {
  const std::vector<int64_t> first_rank(mesh.axes.size(), 0);
  std::vector<int64_t> sizes;
  for (const Extent& e : local_extents(instr, mesh, first_rank)) sizes.push_back(e.local);
  return sizes;
}

namespace {

std::string describe(const Program& program, TensorId t) {
  const ProgramTensor& tensor = program.tensor(t);
  std::string text =
      fmt::format("{} {}{}", tensor.name, name_of(tensor.dtype), to_string(tensor.geometry.shape));
  if (!program.mesh.axes.empty()) {
    text += fmt::format(" {}", to_string(tensor.layout, program.mesh));
  }
  return text;
}

std::string describe(const Program& program, const std::vector<TensorId>& tensors) {
  std::string text;
  for (TensorId t : tensors) text += (text.empty() ? "" : ", ") + describe(program, t);
  return text;
}

// " [tp: n, dp: partial]"; empty when nothing is split.
std::string describe_splits(const Program& program, const Instr& instr) {
  std::string text;
  for (size_t a = 0; a < instr.splits.size(); ++a) {
    const Split& s = instr.splits[a];
    if (s.letter == 0 && !s.partial) continue;
    text += fmt::format("{}{}: ", text.empty() ? " [" : ", ", program.mesh.axes[a].name);
    if (s.partial) {
      text += "partial";
      continue;
    }
    text += s.letter;
    const int f = instr.signature->factor(s.letter);
    if (f >= 0 && instr.letter_atoms[static_cast<size_t>(f)].size() > 1) {
      text += fmt::format(".{}", s.atom);
    }
  }
  return text.empty() ? text : text + "]";
}

}  // namespace

std::string to_text(const Program& program) {
  std::string text = fmt::format("mesh {}\n", program.mesh.to_string());
  if (program.micro_batches > 1) text += fmt::format("micro-batches {}\n", program.micro_batches);
  if (program.arena_bytes > 0) {
    text +=
        fmt::format("arena {} bytes, workspace {}\n", program.arena_bytes, program.workspace_bytes);
  }
  for (const ProgramSource& s : program.sources) {
    text += fmt::format("{} {}: {}\n", name_of(s.kind), s.name, describe(program, s.tensor));
  }
  for (size_t i = 0; i < program.instrs.size(); ++i) {
    const Instr& instr = program.instrs[i];
    text += fmt::format("{:4} {}", i, name_of(instr));
    if (instr.kind == InstrKind::kCompute) {
      text += fmt::format(" {}{}{}", instr.signature->text(), describe_splits(program, instr),
                          is_view(program, instr) ? " view" : "");
    } else if (instr.axis >= 0) {
      text += " over " + program.mesh.axes[static_cast<size_t>(instr.axis)].name;
    }
    text += fmt::format(": {} -> {}", describe(program, instr.in), describe(program, instr.out));
    if (!instr.where.empty()) text += "  # " + instr.where;
    text += '\n';
  }
  for (const ProgramOutput& o : program.outputs) {
    text += fmt::format("output {}: {}\n", o.name, describe(program, o.tensor));
  }
  for (const ProgramSource& s : program.sources) {
    if (s.final >= 0 && s.final != s.tensor) {
      text += fmt::format("final {}: {}\n", s.name, program.tensor(s.final).name);
    }
  }
  return text;
}

}  // namespace cleave
