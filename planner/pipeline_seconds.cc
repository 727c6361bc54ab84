#include "planner/pipeline_seconds.h"

namespace cleave {

std::vector<double> update_seconds(const Plan& plan, int32_t stages, bool counted) {
  std::vector<double> updates(static_cast<size_t>(stages), 0);
  for (size_t c = 0; c < plan.loads.size(); ++c) {
    const GroupLoad& l = plan.loads[c];
    updates[c % updates.size()] += l.seconds[2] + l.received[2] + (counted ? l.again[2] : l.starts);
  }
  return updates;
}

std::vector<ChunkSeconds> chunk_seconds(const Graph& graph, const Plan& plan, bool counted) {
  std::vector<ChunkSeconds> chunks(plan.loads.size());
  for (size_t c = 0; c < chunks.size(); ++c) {
    const GroupLoad& l = plan.loads[c];
    chunks[c].forward = l.seconds[0] + (counted ? l.again[0] : 0);
    chunks[c].backward = l.seconds[1] + (counted ? l.again[1] : 0);
    if (c > 0) chunks[c - 1].send_forward = plan.loads[c].received[0];
    if (c + 1 < chunks.size()) chunks[c + 1].send_backward = plan.loads[c].received[1];
  }
  if (plan.pipeline.schedule != ScheduleKind::kZeroBubble) return chunks;
  // What the chunk before waits for: whatever a transfer out of the chunk is made of.
  const auto& chunk_of = plan.pipeline.chunk_of;
  std::vector<bool> awaited(graph.nodes().size(), false);
  for (size_t n = graph.nodes().size(); n-- > 0;) {
    const Node& node = graph.nodes()[n];
    if (node.phase != Phase::kBackward || !(node.op->transfer || awaited[n])) continue;
    for (Value v : node.inputs) {
      const NodeId producer = graph.value(v).producer;
      if (producer != kNoNode) awaited[static_cast<size_t>(producer)] = true;
    }
  }
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    if (graph.nodes()[n].phase != Phase::kBackward || awaited[n] || graph.nodes()[n].op->transfer) {
      continue;
    }
    ChunkSeconds& c = chunks[static_cast<size_t>(chunk_of[n])];
    c.weight_gradient += plan.nodes[n].seconds;
    c.backward -= plan.nodes[n].seconds;
  }
  return chunks;
}

void set_step_seconds(const Graph& graph, Plan& plan, Schedules& schedules) {
  Pipeline& p = plan.pipeline;
  Arrangement arrangement;
  arrangement.stages = p.stages, arrangement.chunks = p.chunks;
  arrangement.schedule = p.schedule;
  arrangement.micro_batches = graph.micro_batches;
  const std::vector<double> no_updates(static_cast<size_t>(p.stages), 0);
  p.seconds = chunk_seconds(graph, plan);
  p.step_seconds = step_seconds(arrangement, p.seconds, no_updates, schedules);
  plan.predicted.step_seconds =
      step_seconds(arrangement, p.seconds, update_seconds(plan, p.stages), schedules);
  plan.certificate.cost = step_seconds(arrangement, chunk_seconds(graph, plan, true),
                                       update_seconds(plan, p.stages, true), schedules);
}

}  // namespace cleave
