#include "executor/program.h"

#include <algorithm>

#include "executor/fuse.h"
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
    case InstrKind::kShift: return "shift";
    case InstrKind::kSlice: return "slice";
    case InstrKind::kMask: return "mask";
    case InstrKind::kCopy: return "copy";
    case InstrKind::kSend: return "send";
    case InstrKind::kReceive: return "receive";
  }
  return "?";
}

std::string_view name_of(Part part) {
  switch (part) {
    case Part::kBegin: return "begin";
    case Part::kForward: return "forward";
    case Part::kBackward: return "backward";
    case Part::kWeightGradient: return "weight gradient";
    case Part::kUpdate: return "update";
  }
  return "?";
}

bool once_a_step(Part part) { return part == Part::kBegin || part == Part::kUpdate; }

bool is_unsplit(const Instr& instr) {
  return instr.kind == InstrKind::kCompute && instr.ring.axis < 0 &&
         std::all_of(instr.splits.begin(), instr.splits.end(),
                     [](const Split& s) { return s.letter == 0 && !s.partial; });
}

std::vector<PartRun> step_order(const Program& program, int32_t stage) {
  std::vector<PartRun> order = {{Part::kBegin, stage, 0}};
  if (program.schedule.order.empty()) {
    for (int32_t m = 0; m < program.schedule.micro_batches; ++m) {
      for (Part part : {Part::kForward, Part::kBackward}) order.push_back({part, 0, m});
    }
  } else {
    for (const Unit& u : program.schedule.order[static_cast<size_t>(stage)]) {
      const Part part = u.kind == UnitKind::kForward    ? Part::kForward
                        : u.kind == UnitKind::kBackward ? Part::kBackward
                                                        : Part::kWeightGradient;
      order.push_back({part, u.chunk, u.micro_batch});
    }
  }
  order.push_back({Part::kUpdate, stage, program.schedule.micro_batches - 1});
  return order;
}

bool runs(const Program& program, const PartRun& run, const Instr& instr) {
  if (instr.part != run.part) return false;
  return once_a_step(run.part) ? program.stage_of(instr.chunk) == program.stage_of(run.chunk)
                               : instr.chunk == run.chunk;
}

int32_t slots_of(const Program& program, int32_t chunk) {
  std::vector<int32_t> left(static_cast<size_t>(program.schedule.micro_batches), 0);
  const std::vector<PartRun> order = step_order(program, program.stage_of(chunk));
  const auto here = [&](const PartRun& run) {
    return !once_a_step(run.part) && run.chunk == chunk;
  };
  for (const PartRun& run : order) {
    if (here(run)) ++left[static_cast<size_t>(run.micro_batch)];
  }
  int32_t most = 1, newest = -1;
  size_t oldest = 0;
  for (const PartRun& run : order) {
    if (!here(run)) continue;
    newest = std::max(newest, run.micro_batch);
    most = std::max(most, newest - static_cast<int32_t>(oldest) + 1);
    --left[static_cast<size_t>(run.micro_batch)];
    while (oldest < left.size() && left[oldest] == 0) ++oldest;
  }
  return most;
}

bool is_collective(InstrKind kind) {
  return kind == InstrKind::kAllReduce || kind == InstrKind::kAllGather ||
         kind == InstrKind::kReduceScatter || kind == InstrKind::kAllToAll ||
         kind == InstrKind::kShift;
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
  if (instr.ring.letter != 0) {
    const auto axis = static_cast<size_t>(instr.ring.axis);
    const int64_t ranks = mesh.axes[axis].size;
    Extent& extent = extents[static_cast<size_t>(instr.signature->factor(instr.ring.letter))];
    extent.cuts.push_back(
        {.parts = ranks, .index = (coordinates[axis] - instr.ring.step + ranks) % ranks});
    extent.local /= ranks;
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
  if (const RingState& r = tensor.ring; r.axis >= 0) {
    text += fmt::format(" {} {}", r.moves ? "after" : "step", r.step);
    if (r.merged > 0) text += fmt::format(" of {}", r.merged);
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
  if (instr.ring.axis >= 0) {
    text += fmt::format("{}ring {}: ", text.empty() ? " [" : ", ",
                        program.mesh.axes[static_cast<size_t>(instr.ring.axis)].name);
    text += instr.ring.letter == 0 ? std::string("merge")
                                   : fmt::format("{} step {}", instr.ring.letter, instr.ring.step);
  }
  return text.empty() ? text : text + "]";
}

}  // namespace

TensorType outer_type(const Program& program, const ProgramSource& source) {
  const ProgramTensor& t = program.tensor(source.tensor);
  return {source.narrow ? DType::kF32 : t.dtype, t.layout.global_shape()};
}

std::string to_text(const Program& program) {
  std::string text = fmt::format("mesh {}\n", program.mesh.to_string());
  const Schedule& schedule = program.schedule;
  const bool pipeline = schedule.stages > 1;
  if (pipeline) {
    text += fmt::format("pipeline {} of {} stages, {} chunks a stage\n", name_of(schedule.kind),
                        schedule.stages, schedule.chunks);
  }
  if (schedule.micro_batches > 1) text += fmt::format("micro-batches {}\n", schedule.micro_batches);
  if (program.arena_bytes > 0) {
    text +=
        fmt::format("arena {} bytes, workspace {}\n", program.arena_bytes, program.workspace_bytes);
  }
  for (size_t s = 0; pipeline && s < program.memory.size(); ++s)
    text += fmt::format("stage {}: arena {} bytes\n", s, program.memory[s].arena_bytes);
  if (!program.fusions.empty()) text += fmt::format("fused {}\n", fusions_text(program));
  for (const ProgramSource& s : program.sources) {
    text += fmt::format("{} {}: {}{}{}\n", name_of(s.kind), s.name, describe(program, s.tensor),
                        s.narrow ? " of an f32" : "", s.on_host ? " on the host" : "");
  }
  for (size_t i = 0; i < program.instrs.size(); ++i) {
    const Instr& instr = program.instrs[i];
    const bool begins = i == 0 || program.instrs[i - 1].part != instr.part ||
                        program.instrs[i - 1].chunk != instr.chunk;
    if (pipeline && begins)
      text += fmt::format("{} of chunk {}\n", name_of(instr.part), instr.chunk);
    text += fmt::format("{:4} {}", i, name_of(instr));
    if (instr.kind == InstrKind::kCompute) {
      text += fmt::format(" {}{}{}", instr.signature->text(), describe_splits(program, instr),
                          is_view(program, instr) ? " view" : "");
    } else if (instr.axis >= 0) {
      text += " over " + program.mesh.axes[static_cast<size_t>(instr.axis)].name;
    } else if (instr.peer >= 0) {
      text +=
          fmt::format(" {} chunk {}", instr.kind == InstrKind::kSend ? "to" : "from", instr.peer);
    }
    text += fmt::format(": {} -> {}", describe(program, instr.in), describe(program, instr.out));
    if (instr.fused != 0) text += fmt::format("  fused: {}", fusions_text(instr));
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
  for (const KeptTensor& k : program.kept) {
    text += fmt::format("kept {}: {}\n", describe(program, k.tensor), program.tensor(k.final).name);
  }
  return text;
}

}  // namespace cleave
