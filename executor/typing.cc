#include "executor/typing.h"

#include "graph/error.h"

namespace cleave {

std::string_view name_of(const Instr& instr) {
  return instr.kind == InstrKind::kCompute && instr.op != nullptr ? instr.op->name
                                                                  : name_of(instr.kind);
}

std::string describe_instr(const Program& program, size_t index) {
  const Instr& instr = program.instrs[index];
  std::string operands;
  for (TensorId t : instr.in) {
    const bool known = t >= 0 && static_cast<size_t>(t) < program.tensors.size();
    operands += (operands.empty() ? "" : ", ") + (known ? program.tensor(t).name : "?");
  }
  return fmt::format("instruction {} {}({})", index, name_of(instr), operands);
}

// Whether its operands are made where they belong in its result (fuse_parts.cc): nothing is left to
// do, either.
static bool joins(const Instr& instr) { return instr.attrs.integer_or("joins", 0) != 0; }

bool is_view(const Program& program, const Instr& instr) {
  return instr.kind == InstrKind::kCompute && (instr.op->view != nullptr || joins(instr)) &&
         !instr.in.empty() && !instr.out.empty() &&
         program.tensor(instr.out[0]).buffer == program.tensor(instr.in[0]).buffer;
}

bool copies_with_host(const Program& program, const Instr& instr) {
  const auto on_host = [&](TensorId t) {
    return program.buffers[static_cast<size_t>(program.tensor(t).buffer)].host;
  };
  return instr.kind == InstrKind::kCopy && (on_host(instr.in[0]) || on_host(instr.out[0]));
}

std::vector<TensorType> local_input_types(const Program& program, const Instr& instr) {
  std::vector<TensorType> types;
  for (TensorId t : instr.in) {
    types.push_back({program.tensor(t).dtype, program.tensor(t).layout.local_shape(program.mesh)});
  }
  return types;
}

RingState shifted(RingState from, int8_t axis, const Mesh& mesh) {
  const auto parts = static_cast<int32_t>(mesh.axes[static_cast<size_t>(axis)].size);
  if (from.axis < 0) from = {.axis = axis, .step = 0, .merged = 0, .moves = true};
  from.step = (from.step + 1) % parts;
  const bool whole = from.merged == 0 || from.merged == parts;
  return from.step == 0 && whole ? RingState{} : from;
}

RingState merged_ring(RingState found, const Mesh& mesh) {
  const auto parts = static_cast<int32_t>(mesh.axes[static_cast<size_t>(found.axis)].size);
  found.merged = found.step + 1;
  return found.merged == parts && !found.moves ? RingState{} : found;
}

ByteRange byte_range(const Geometry& geometry, DType dtype) {
  int64_t low = geometry.offset, high = geometry.offset + 1;
  for (size_t d = 0; d < geometry.shape.size(); ++d) {
    if (geometry.shape[d] == 0) return {};
    const int64_t reach = (geometry.shape[d] - 1) * geometry.strides[d];
    (reach < 0 ? low : high) += reach;
  }
  return {low * size_of(dtype), high * size_of(dtype)};
}

namespace {

// Whether the elements' places are apart when they are taken modulo m: those of each lie within a
// range, by the strides that are no multiples of m.
bool apart_within(const Geometry& a, const Geometry& b, int64_t m) {
  const auto width = [m](const Geometry& g) {
    int64_t reach = 0;
    for (size_t d = 0; d < g.shape.size(); ++d) {
      if (g.strides[d] % m != 0) reach += (g.shape[d] - 1) * g.strides[d];
    }
    return reach;
  };
  const int64_t distance = ((b.offset - a.offset) % m + m) % m;
  return width(a) < distance && distance + width(b) < m;
}

}  // namespace

bool may_overlap(const ProgramTensor& a, const ProgramTensor& b) {
  if (a.buffer != b.buffer) return false;
  const Geometry &x = a.geometry, &y = b.geometry;
  if (!byte_range(x, a.dtype).overlaps(byte_range(y, b.dtype))) return false;
  for (size_t d = 0; d < x.strides.size() && a.dtype == b.dtype; ++d) {
    if (x.strides[d] > 1 && apart_within(x, y, x.strides[d])) return false;
  }
  return true;
}

}  // namespace cleave
