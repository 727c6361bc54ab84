#include "executor/instr_costs.h"

#include <algorithm>
#include <string>
#include <unordered_map>

#include "executor/typing.h"
#include "graph/error.h"

namespace cleave {
namespace {

double local_bytes(const Program& program, TensorId t) {
  const ProgramTensor& tensor = program.tensor(t);
  return static_cast<double>(numel(tensor.layout.local_shape(program.mesh)) *
                             size_of(tensor.dtype));
}

// What an op's seconds depend on, but for its attributes: equal layers cost the same.
std::string key_of(const Program& program, const Instr& instr, const std::vector<int64_t>& sizes) {
  std::string key;
  const auto add = [&](const auto& value) {
    key.append(reinterpret_cast<const char*>(&value), sizeof value);
  };
  add(instr.op), add(instr.signature);
  for (const int64_t s : sizes) add(s);
  for (const TensorId t : instr.in) add(program.tensor(t).dtype);
  for (const TensorId t : instr.out) add(program.tensor(t).dtype);
  return key;
}

bool is_one_instr(const Plan& plan, NodeId n) {
  if (n == kNoNode) return false;
  const std::vector<MemberSplit::OnAxis>& axes = plan.nodes[static_cast<size_t>(n)].axes;
  return std::none_of(axes.begin(), axes.end(),
                      [](const MemberSplit::OnAxis& on) { return on.expanded || on.ring >= 0; });
}

}  // namespace

StepKind step_kind(InstrKind kind) {
  switch (kind) {
    case InstrKind::kAllReduce: return StepKind::kAllReduce;
    case InstrKind::kAllGather: return StepKind::kAllGather;
    case InstrKind::kReduceScatter: return StepKind::kReduceScatter;
    case InstrKind::kAllToAll: return StepKind::kAllToAll;
    case InstrKind::kShift: return StepKind::kShift;
    case InstrKind::kSlice: return StepKind::kSlice;
    case InstrKind::kMask: return StepKind::kMask;
    default: break;
  }
  CLEAVE_ASSERT(false, "{} is no step of a plan", name_of(kind));
}

InstrCosts::InstrCosts(const Program& program, const Cluster& cluster, const Plan* plan)
    : program_(program), cluster_(cluster) {
  for (size_t a = 0; a < program.mesh.axes.size(); ++a)
    links_.push_back(axis_links(cluster, program.mesh, a));
  struct Known {
    const Attrs* attrs;
    double seconds;
  };
  std::unordered_map<std::string, std::vector<Known>> known;
  std::vector<bool> kept(program.tensors.size(), false);  // there from the step before
  for (const KeptTensor& k : program.kept) kept[static_cast<size_t>(k.tensor)] = true;
  for (size_t i = 0; i < program.instrs.size(); ++i) {
    const Instr& instr = program.instrs[i];
    if (!instr.out.empty() && kept[static_cast<size_t>(instr.out[0])]) {
      seconds_.push_back(0);
      continue;
    }
    if (instr.kind != InstrKind::kCompute || is_view(program, instr)) {
      seconds_.push_back(whole(i));
      continue;
    }
    // One GPU's program is fused: an instruction is not what its node was.
    if (plan != nullptr && !program.gpu && is_one_instr(*plan, instr.node)) {
      seconds_.push_back(plan->nodes[static_cast<size_t>(instr.node)].seconds);
      continue;
    }
    std::vector<Known>& like = known[key_of(program, instr, local_sizes(instr, program.mesh))];
    auto at = std::find_if(like.begin(), like.end(),
                           [&](const Known& k) { return *k.attrs == instr.attrs; });
    if (at == like.end()) at = like.insert(at, {&instr.attrs, compute_seconds(instr)});
    seconds_.push_back(at->seconds);
  }
}

double InstrCosts::compute_seconds(const Instr& instr) const {
  const std::vector<TensorType> in = local_input_types(program_, instr);
  std::vector<TensorType> out;
  for (const TensorId t : instr.out) {
    out.push_back({program_.tensor(t).dtype, program_.tensor(t).layout.local_shape(program_.mesh)});
  }
  const std::vector<int64_t> sizes = local_sizes(instr, program_.mesh);
  return op_seconds(cluster_, *instr.op, {*instr.signature, sizes, instr.attrs, in}, out);
}

double InstrCosts::whole(size_t i) const {
  const Instr& instr = program_.instrs[i];
  if (instr.kind == InstrKind::kCompute || instr.kind == InstrKind::kReceive) return 0;
  double sum = 0;
  if (instr.kind == InstrKind::kSend) {
    for (const TensorId t : instr.in) sum += local_bytes(program_, t);
    return transfer_seconds(cluster_, program_.mesh, program_.stage_of(instr.chunk),
                            program_.stage_of(instr.peer), sum);
  }
  if (is_collective(instr.kind)) {
    for (size_t pair = 0; pair < instr.out.size(); ++pair) sum += bytes(i, pair);
    return collective_seconds(i, sum);
  }
  for (const TensorId t : instr.out) sum += local_bytes(program_, t);
  if (copies_with_host(program_, instr)) return host_copy_seconds(cluster_, sum);
  return local_copy_seconds(cluster_, sum) + cluster_.device.op_latency;
}

double InstrCosts::bytes(size_t i, size_t pair) const {
  const Instr& instr = program_.instrs[i];
  const int64_t ranks = program_.mesh.axes[static_cast<size_t>(instr.axis)].size;
  const double in = local_bytes(program_, instr.in[pair]);
  const auto n = static_cast<double>(ranks);
  switch (instr.kind) {
    case InstrKind::kAllReduce: return 2 * in * (n - 1) / n;
    case InstrKind::kAllGather: return in * (n - 1);
    case InstrKind::kShift: return in;
    default: return in * (n - 1) / n;
  }
}

double InstrCosts::collective_seconds(size_t i, double bytes) const {
  const Instr& instr = program_.instrs[i];
  return cleave::collective_seconds(step_kind(instr.kind), bytes,
                                    links_[static_cast<size_t>(instr.axis)]);
}

}  // namespace cleave
