#include "executor/measured.h"

#include <algorithm>
#include <array>
#include <map>

#include "executor/timeline_memory.h"
#include "executor/typing.h"
#include "graph/error.h"

namespace cleave {
namespace {

// Ops by parts of their names, for what their factors do not say.
struct Named {
  std::string_view part;
  KernelClass kernels;
};
constexpr std::array kNamed = {
    Named{"attention_merge", KernelClass::kPointwise},
    Named{"attention", KernelClass::kAttention},
    Named{"norm", KernelClass::kNorms},
    Named{"softmax", KernelClass::kNorms},
    Named{"cross_entropy", KernelClass::kLoss},
    Named{"stack", KernelClass::kCopies},
    Named{"concat", KernelClass::kCopies},
    Named{"unslice", KernelClass::kCopies},
    Named{"write_slice", KernelClass::kCopies},
    Named{"cast", KernelClass::kCopies},
    Named{"copy", KernelClass::kCopies},
    Named{"reshape", KernelClass::kCopies},
    Named{"transpose", KernelClass::kCopies},
    Named{"expand", KernelClass::kCopies},
    Named{"slice", KernelClass::kCopies},
    Named{"unbind", KernelClass::kCopies},
    Named{"fill", KernelClass::kCopies},
    Named{"matmul", KernelClass::kProducts},
    Named{"linear", KernelClass::kProducts},
    Named{"sum", KernelClass::kPointwise},
    Named{"max", KernelClass::kPointwise},
    Named{"rotary", KernelClass::kPointwise},
    Named{"dropout", KernelClass::kPointwise},
    Named{"chain", KernelClass::kPointwise},
};

// Calls visit(run, rank) for every run of the step.
template <class Visit>
void for_each_run(const StepResult& step, const Visit& visit) {
  for (size_t rank = 0; rank < step.runs.size(); ++rank) {
    for (const InstrRun& run : step.runs[rank]) visit(run, rank);
  }
}

const Instr& instr_of(const Program& program, const InstrRun& run) {
  return program.instrs[static_cast<size_t>(run.instr)];
}

template <class Share>
std::vector<Share> longest_first(std::vector<Share> shares) {
  std::stable_sort(shares.begin(), shares.end(),
                   [](const Share& a, const Share& b) { return a.seconds > b.seconds; });
  return shares;
}

}  // namespace

std::vector<StageTimeline> measured_timelines(const Program& program, const StepResult& step) {
  std::vector<StageTimeline> ranks;
  for (size_t r = 0; r < step.runs.size(); ++r) {
    StageTimeline& t = ranks.emplace_back();
    double end = step.seconds;
    for (const InstrRun& run : step.runs[r]) {
      t.events.push_back({.stream = kComputeStream,
                          .instr = run.instr,
                          .micro_batch = run.micro_batch,
                          .start = run.start,
                          .seconds = run.seconds});
      end = std::max(end, run.start + run.seconds);
    }
    const auto stage = static_cast<int32_t>(static_cast<int64_t>(r) / program.mesh.size());
    t.memory = memory_of(program, {}, stage, t.events, end);
    for (const MemoryPoint& p : t.memory) t.peak_bytes = std::max(t.peak_bytes, p.bytes);
  }
  return ranks;
}

std::string_view name_of(KernelClass c) {
  switch (c) {
    case KernelClass::kProducts: return "matrix products";
    case KernelClass::kAttention: return "attention";
    case KernelClass::kNorms: return "norms, softmax";
    case KernelClass::kLoss: return "loss";
    case KernelClass::kPointwise: return "pointwise, sums";
    case KernelClass::kCopies: return "copies, casts";
    case KernelClass::kOptimizer: return "optimizer";
    case KernelClass::kCommunication: return "communication";
    case KernelClass::kOther: break;
  }
  return "other";
}

KernelClass class_of(const Program& program, const Instr& instr) {
  if (is_collective(instr.kind) || instr.kind == InstrKind::kSend ||
      instr.kind == InstrKind::kReceive || copies_with_host(program, instr)) {
    return KernelClass::kCommunication;
  }
  if (instr.part == Part::kUpdate) return KernelClass::kOptimizer;
  if (instr.kind != InstrKind::kCompute) return KernelClass::kCopies;
  if (instr.op->fused_products > 0) {
    return instr.op->fused_products > 1 ? KernelClass::kAttention : KernelClass::kProducts;
  }
  for (const Named& n : kNamed) {
    if (instr.op->name.find(n.part) != std::string_view::npos) return n.kernels;
  }
  const bool by_element = !instr.op->element.empty() || instr.op->sums;
  return by_element ? KernelClass::kPointwise : KernelClass::kOther;
}

double KernelWork::least_seconds(const Cluster& cluster) const {
  return std::max(flops / (times_peak * cluster.peak_flops(dtype)),
                  bytes / cluster.device.bandwidth);
}

KernelWork work_of(const Program& program, const Instr& instr) {
  KernelWork work;
  const auto local_bytes = [&](TensorId t) {
    const ProgramTensor& tensor = program.tensor(t);
    return static_cast<double>(numel(tensor.layout.local_shape(program.mesh)) *
                               size_of(tensor.dtype));
  };
  if (instr.kind != InstrKind::kCompute) {
    for (const TensorId t : instr.in) work.bytes += local_bytes(t);
    for (const TensorId t : instr.out) work.bytes += local_bytes(t);
    return work;
  }
  const std::vector<TensorType> in = local_input_types(program, instr);
  std::vector<TensorType> out;
  for (const TensorId t : instr.out) {
    out.push_back({program.tensor(t).dtype, program.tensor(t).layout.local_shape(program.mesh)});
  }
  const std::vector<int64_t> sizes = local_sizes(instr, program.mesh);
  const OpCall call{*instr.signature, sizes, instr.attrs, in};
  work.bytes = instr.op->bytes(call, out);
  const KernelClass c = class_of(program, instr);
  if (c == KernelClass::kProducts || c == KernelClass::kAttention)
    work.flops = instr.op->flops(call);
  if (!in.empty() && is_f8(in[0].dtype)) {  // its scales are f32
    work.dtype = DType::kBF16, work.times_peak = 2;
    return work;
  }
  const auto first =
      std::find_if(in.begin(), in.end(), [](const TensorType& t) { return is_float(t.dtype); });
  if (first != in.end()) work.dtype = first->dtype;
  return work;
}

std::vector<ClassShare> class_shares(const Program& program, const Cluster& cluster,
                                     const StepResult& step) {
  std::map<KernelClass, ClassShare> by_class;
  const auto ranks = static_cast<double>(step.runs.size());
  for_each_run(step, [&](const InstrRun& run, size_t rank) {
    const Instr& instr = instr_of(program, run);
    const KernelWork work = work_of(program, instr);
    ClassShare& share = by_class[class_of(program, instr)];
    share.runs += rank == 0 ? 1 : 0;
    share.seconds += run.seconds / ranks;
    share.least_seconds += work.least_seconds(cluster) / ranks;
    share.flops += work.flops / ranks;
    share.bytes += work.bytes / ranks;
  });
  std::vector<ClassShare> shares;
  for (auto& [kernels, share] : by_class) {
    share.kernels = kernels;
    shares.push_back(share);
  }
  return longest_first(std::move(shares));
}

std::vector<OpShare> op_shares(const Program& program, const StepResult& step) {
  std::map<std::string, OpShare> by_name;
  for_each_run(step, [&](const InstrRun& run, size_t rank) {
    const std::string name(name_of(instr_of(program, run)));
    OpShare& share = by_name[name];
    share.name = name;
    share.runs += rank == 0 ? 1 : 0;
    share.seconds += run.seconds / static_cast<double>(step.runs.size());
  });
  std::vector<OpShare> shares;
  for (auto& [name, share] : by_name) shares.push_back(std::move(share));
  return longest_first(std::move(shares));
}

Gaps gaps_of(const StepResult& step, size_t most) {
  Gaps gaps;
  std::vector<Gap> all;
  for (size_t rank = 0; rank < step.runs.size(); ++rank) {
    double end = 0;
    int32_t last = -1;
    const auto gap_until = [&](double start, int32_t before) {
      if (start > end) all.push_back({start - end, static_cast<int32_t>(rank), last, before});
    };
    for (const InstrRun& run : step.runs[rank]) {
      gap_until(run.start, run.instr);
      end = std::max(end, run.start + run.seconds);
      last = run.instr;
    }
    gap_until(step.seconds, -1);
  }
  for (const Gap& g : all) gaps.seconds += g.seconds / static_cast<double>(step.runs.size());
  all = longest_first(std::move(all));
  all.resize(std::min(all.size(), most));
  gaps.longest = std::move(all);
  return gaps;
}

}  // namespace cleave
