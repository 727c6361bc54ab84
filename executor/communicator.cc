#include "executor/communicator.h"

#include <algorithm>
#include <tuple>

#include "graph/error.h"

namespace cleave {

int64_t CollectiveTensor::bytes() const {
  int64_t n = size_of(dtype);
  for (int64_t s : sizes) n *= s;
  return n;
}

std::array<int64_t, 5> CollectiveTensor::local(int8_t cut, int64_t ranks) const {
  std::array<int64_t, 5> result = sizes;
  if (cut >= 0) result[static_cast<size_t>(cut)] /= ranks;
  return result;
}

CollectiveTensor collective_tensor(const Program& program, const Instr& instr, size_t pair) {
  const ProgramTensor& in = program.tensor(instr.in[pair]);
  const ProgramTensor& out = program.tensor(instr.out[pair]);
  const auto axis = static_cast<size_t>(instr.axis);
  const int from = in.layout.placements[axis].atom, to = out.layout.placements[axis].atom;
  std::vector<int64_t> sizes = in.layout.local_atoms(program.mesh);
  if (instr.kind == InstrKind::kShift) {
    CollectiveTensor part;
    part.dtype = in.dtype;
    part.sizes[4] = numel(sizes);
    return part;
  }
  if (from >= 0) sizes[static_cast<size_t>(from)] *= program.mesh.axes[axis].size;

  // The first atom that is cut becomes size 1, the second size 3; what lies around them is folded.
  CollectiveTensor t;
  t.dtype = in.dtype;
  const int one = from < 0 ? to : to < 0 ? from : std::min(from, to);
  const int two = from < 0 || to < 0 ? -1 : std::max(from, to);
  size_t slot = 0;
  for (int i = 0; i < static_cast<int>(sizes.size()); ++i) {
    if (i == one) slot = 1;
    if (i == two) slot = 3;
    t.sizes[slot] *= sizes[static_cast<size_t>(i)];
    if (i == one) slot = 2;
    if (i == two) slot = 4;
  }
  if (from >= 0) t.in_cut = from == one ? 1 : 3;
  if (to >= 0) t.out_cut = to == one ? 1 : 3;
  return t;
}

std::string to_string(const std::vector<CollectiveCount>& counts, const Mesh& mesh) {
  std::string text;
  for (const CollectiveCount& c : counts) {
    text += fmt::format(
        "{}{} {}{} of {:.0f} bytes", text.empty() ? "" : ", ", c.count, name_of(c.kind),
        c.axis < 0 ? "" : " on " + mesh.axes[static_cast<size_t>(c.axis)].name, c.bytes);
  }
  return text.empty() ? "no collectives" : text;
}

double bytes_sent(InstrKind kind, int64_t bytes, int64_t ranks) {
  if (kind == InstrKind::kShift) return static_cast<double>(bytes);
  const double part =
      static_cast<double>(bytes) * static_cast<double>(ranks - 1) / static_cast<double>(ranks);
  return kind == InstrKind::kAllReduce ? 2 * part : part;
}

void CollectiveCounter::add(InstrKind kind, int32_t axis, double bytes, int64_t times) {
  const auto before = [](const CollectiveCount& a, const CollectiveCount& b) {
    return std::tie(a.kind, a.axis) < std::tie(b.kind, b.axis);
  };
  const CollectiveCount one{kind, axis, 0, 0};
  auto at = std::lower_bound(counts_.begin(), counts_.end(), one, before);
  if (at == counts_.end() || before(one, *at)) at = counts_.insert(at, one);
  at->count += times;
  at->bytes += bytes * static_cast<double>(times);
}

std::vector<CollectiveCount> count_collectives(const Program& program, int32_t stage) {
  CollectiveCounter counter;
  for (const Instr& instr : program.instrs) {
    const bool send = instr.kind == InstrKind::kSend;
    if ((!send && !is_collective(instr.kind)) || program.stage_of(instr.chunk) != stage) continue;
    const int64_t ranks = send ? 1 : program.mesh.axes[static_cast<size_t>(instr.axis)].size;
    double bytes = 0;
    for (size_t i = 0; i < instr.in.size(); ++i) {
      // What the group holds together is a gather's result, and the operand of the others.
      const bool gather = instr.kind == InstrKind::kAllGather;
      const ProgramTensor& t = program.tensor(gather ? instr.out[i] : instr.in[i]);
      const int64_t n = numel(t.layout.local_shape(program.mesh)) * size_of(t.dtype);
      bytes += send ? static_cast<double>(n) : bytes_sent(instr.kind, n, ranks);
    }
    counter.add(instr.kind, instr.axis, bytes,
                once_a_step(instr.part) ? 1 : program.micro_batches());
  }
  return counter.counts();
}

void Communicator::send(const Message& message, std::span<const std::byte> bytes) {
  put(message, bytes);
  counter_.add(InstrKind::kSend, -1, static_cast<double>(bytes.size()));
}

void Communicator::receive(const Message& message, std::span<std::byte> bytes) {
  take(message, bytes);
}

void Communicator::run(InstrKind kind, int32_t axis, Reduction reduction,
                       std::span<const CollectiveTensor> tensors) {
  CLEAVE_ASSERT(axis >= 0 && static_cast<size_t>(axis) < mesh_.axes.size(), "no axis {}", axis);
  switch (kind) {
    case InstrKind::kAllReduce: all_reduce(axis, reduction, tensors); break;
    case InstrKind::kAllGather: all_gather(axis, tensors); break;
    case InstrKind::kReduceScatter: reduce_scatter(axis, reduction, tensors); break;
    case InstrKind::kAllToAll: all_to_all(axis, tensors); break;
    case InstrKind::kShift: shift(axis, tensors); break;
    default: CLEAVE_ASSERT(false, "{} is not a collective", name_of(kind));
  }
  const int64_t ranks = mesh_.axes[static_cast<size_t>(axis)].size;
  double bytes = 0;
  for (const CollectiveTensor& t : tensors) {
    bytes += bytes_sent(kind, kind == InstrKind::kAllToAll ? t.bytes() / ranks : t.bytes(), ranks);
  }
  counter_.add(kind, axis, bytes);
}

}  // namespace cleave
