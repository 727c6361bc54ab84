#include "executor/stages.h"

#include <algorithm>
#include <map>

#include "graph/error.h"
#include "planner/cut.h"
#include "planner/made_once.h"

namespace cleave {

Stages::Stages(const Graph& graph, const Plan& plan)
    : graph_(graph), plan_(plan), begun_(made_once(graph)) {
  const Pipeline& p = plan.pipeline;
  const auto micro_batches = static_cast<int32_t>(graph.micro_batches);
  if (p.stages == 1) {
    schedule_.micro_batches = micro_batches;
    one_stage();
    return;
  }
  CLEAVE_ASSERT(p.chunk_of.size() == graph.nodes().size(), "{} nodes have a chunk, of {}",
                p.chunk_of.size(), graph.nodes().size());
  for (int32_t chunk : p.chunk_of) {
    CLEAVE_ASSERT(chunk >= 0 && chunk < p.stages * p.chunks, "chunk {} of {} stages", chunk,
                  p.stages);
  }
  schedule_ = make_schedule(p.schedule, p.stages, p.chunks, micro_batches);
  source_chunks_ = source_chunks(graph, p.chunk_of);
  pipeline();
}

int32_t Stages::chunk_of_value(Value v) const {
  if (schedule_.stages == 1) return 0;
  const ValueInfo& info = graph_.value(v);
  return info.producer == kNoNode ? source_chunks_[static_cast<size_t>(info.source)]
                                  : chunk_of(info.producer);
}

bool Stages::receives(NodeId n) const {
  const Node& node = graph_.node(n);
  return node.op->transfer && chunk_of_value(node.inputs[0]) != chunk_of(n);
}

// Nodes in their order; a part has begun when its first node has.
void Stages::one_stage() {
  sections_ = {{.part = Part::kBegin},
               {.part = Part::kForward},
               {.part = Part::kBackward},
               {.part = Part::kUpdate}};
  size_t part = 0;
  for (size_t n = 0; n < graph_.nodes().size(); ++n) {
    part = std::max(part, 1 + static_cast<size_t>(graph_.nodes()[n].phase));
    sections_[begun_[n] ? 0 : part].items.push_back({static_cast<NodeId>(n)});
  }
  sections_[2].ends_pass = graph_.micro_batches > 1;
  sections_[3].begins_update = true;
}

// By node of the backward: whether another chunk waits for what it leads to.
std::vector<bool> Stages::awaited_backward() const {
  std::vector<bool> awaited(graph_.nodes().size(), false);
  for (size_t n = awaited.size(); n-- > 0;) {
    const Node& node = graph_.nodes()[n];
    if (node.phase != Phase::kBackward) continue;
    if (!awaited[n] && !receives(static_cast<NodeId>(n))) continue;
    for (Value v : node.inputs) {
      const NodeId producer = graph_.value(v).producer;
      if (producer == kNoNode || graph_.node(producer).phase != Phase::kBackward) continue;
      // Through a transfer the need does not pass: the sender's own half is awaited in any case.
      awaited[static_cast<size_t>(producer)] = true;
    }
  }
  return awaited;
}

Part Stages::part_of(NodeId n, const std::vector<bool>& awaited) const {
  switch (graph_.node(n).phase) {
    case Phase::kForward: return is_begun(n) ? Part::kBegin : Part::kForward;
    case Phase::kBackward: break;
    case Phase::kUpdate: return Part::kUpdate;
  }
  const bool split = schedule_.kind == ScheduleKind::kZeroBubble;
  return split && !awaited[static_cast<size_t>(n)] ? Part::kWeightGradient : Part::kBackward;
}

void Stages::pipeline() {
  const std::vector<bool> awaited = awaited_backward();
  // By part and chunk (once a step: stage): the items, and after which node they come.
  std::map<std::pair<Part, int32_t>, std::vector<std::pair<NodeId, SectionItem>>> items;
  const auto key = [&](Part part, int32_t chunk) {
    return std::pair(part, once_a_step(part) ? chunk % schedule_.stages : chunk);
  };
  const auto part_by_node = [&](NodeId n) { return part_of(n, awaited); };
  for (size_t i = 0; i < graph_.nodes().size(); ++i) {
    const auto n = static_cast<NodeId>(i);
    const Node& node = graph_.node(n);
    const Part part = part_by_node(n);
    items[key(part, chunk_of(n))].push_back({n, {n, false}});
    if (!receives(n)) continue;
    const Part sender = part == Part::kWeightGradient ? Part::kBackward : part;
    const auto from = key(sender, chunk_of_value(node.inputs[0]));
    const NodeId producer = graph_.value(node.inputs[0]).producer;
    const bool here =
        producer != kNoNode && key(part_by_node(producer), chunk_of(producer)) == from;
    items[from].push_back({here ? producer : -1, {n, true}});  // first: what is there
  }
  const auto add = [&](Part part, int32_t chunk) {
    Section section{.part = part, .chunk = chunk};
    auto& list = items[{part, chunk}];
    std::stable_sort(list.begin(), list.end(), [](const auto& a, const auto& b) {
      return std::pair(a.first, a.second.sends) < std::pair(b.first, b.second.sends);
    });
    for (const auto& [turn, item] : list) section.items.push_back(item);
    section.begins_update = part == Part::kUpdate;
    sections_.push_back(std::move(section));
  };
  for (int32_t s = 0; s < schedule_.stages; ++s) add(Part::kBegin, s);
  for (int32_t c = 0; c < schedule_.stages * schedule_.chunks; ++c) {
    add(Part::kForward, c);
    add(Part::kBackward, c);
    if (schedule_.kind == ScheduleKind::kZeroBubble) add(Part::kWeightGradient, c);
    sections_.back().ends_pass = graph_.micro_batches > 1;
  }
  for (int32_t s = 0; s < schedule_.stages; ++s) add(Part::kUpdate, s);
}

}  // namespace cleave
