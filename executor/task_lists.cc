#include "executor/task_lists.h"

#include "executor/list_builder.h"
#include "executor/typing.h"

namespace cleave {
namespace {

int32_t tiers(const Cluster& cluster) { return static_cast<int32_t>(cluster.tiers.size()); }

}  // namespace

int32_t stream_count(const Cluster& cluster) { return 1 + tiers(cluster) + 6; }

int32_t stream_of(const Program& program, const Cluster& cluster, const Instr& instr) {
  if (is_collective(instr.kind))
    return 1 + static_cast<int32_t>(cluster.tier_of(program.mesh, static_cast<size_t>(instr.axis)));
  const int32_t up = instr.peer > instr.chunk ? 0 : 1;
  const int32_t others = 1 + tiers(cluster);
  if (instr.kind == InstrKind::kSend) return others + up;
  if (instr.kind == InstrKind::kReceive) return others + 2 + up;
  if (!copies_with_host(program, instr)) return kComputeStream;
  const int32_t to = program.tensor(instr.out[0]).buffer;
  return others + 4 + (program.buffers[static_cast<size_t>(to)].host ? 0 : 1);
}

std::string stream_name(const Cluster& cluster, int32_t stream) {
  if (stream == kComputeStream) return "computation";
  if (stream <= tiers(cluster))
    return "collectives over " + cluster.tiers[static_cast<size_t>(stream - 1)].name;
  static constexpr const char* kNames[] = {
      "sends to later chunks",        "sends to earlier chunks", "receives from later chunks",
      "receives from earlier chunks", "copies to the host",      "copies from the host"};
  return kNames[stream - 1 - tiers(cluster)];
}

StepTasks step_tasks(const Program& program, const Cluster& cluster, const TimelineOptions& options,
                     const Plan* plan) {
  StepTasks step;
  step.micro_batches = static_cast<int32_t>(program.micro_batches());
  const ProgramFlow flow = program_flow(program);
  const InstrCosts costs(program, cluster, plan);
  std::map<NodeId, SlotId> messages;
  step.stages.resize(static_cast<size_t>(program.stages()));
  for (int32_t s = 0; s < program.stages(); ++s) {
    StepTasks::Stage& stage = step.stages[static_cast<size_t>(s)];
    stage.streams = stream_count(cluster);
    ListBuilder builder({program, cluster, options, flow, costs}, messages, step, stage);
    for (const PartRun& run : step_order(program, s)) {
      if (const int32_t list = builder.list_of(run); list >= 0)
        stage.order.push_back({list, run.micro_batch});
    }
    builder.finish();
  }
  return step;
}

}  // namespace cleave
