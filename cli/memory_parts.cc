#include "cli/memory_parts.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "executor/lower.h"
#include "executor/memory_layout.h"
#include "viz/weights.h"

namespace cleave {
namespace {

// The value that a tensor of a program holds, in one form or another; kNoValue: unknown.
Value value_of(const Graph& graph, const ProgramTensor& tensor) {
  if (const Source* s = graph.source_named(tensor.name)) return s->value;
  Value v = kNoValue;
  if (tensor.name.starts_with('%')) {
    std::from_chars(tensor.name.data() + 1, tensor.name.data() + tensor.name.size(), v);
  }
  return v;
}

// The instruction during which the most bytes are live.
int32_t fullest(const Program& program, const std::vector<Lifetime>& lives) {
  std::vector<int64_t> change(program.instrs.size() + 2);
  for (size_t b = 0; b < lives.size(); ++b) {
    const Lifetime& l = lives[b];
    if (l.last < 0 || program.buffers[b].host) continue;
    change[static_cast<size_t>(std::max(l.first, 0))] += l.bytes;
    change[static_cast<size_t>(l.last) + 1] -= l.bytes;
  }
  int64_t live = 0, most = -1;
  int32_t at = 0;
  for (size_t t = 0; t < change.size(); ++t) {
    live += change[t];
    if (live > most) most = live, at = static_cast<int32_t>(t);
  }
  return at;
}

// Of a pipeline's fullest stage, from what its chunks hold at the end of their forwards.
MemoryParts stage_parts(const Graph& graph, const Plan& plan) {
  const auto stages = static_cast<size_t>(plan.pipeline.stages);
  std::vector<double> held(stages, 0), kept(stages, 0);
  for (size_t g = 0; g < plan.loads.size(); ++g) {
    const double flying = g < plan.costing.in_flight.size() ? plan.costing.in_flight[g] : 1;
    kept[g % stages] += flying * static_cast<double>(plan.loads[g].kept_bytes);
    held[g % stages] += static_cast<double>(plan.loads[g].state_bytes);
  }
  size_t fullest = 0;
  for (size_t s = 1; s < stages; ++s) {
    if (held[s] + kept[s] > held[fullest] + kept[fullest]) fullest = s;
  }
  // A source lies where it is first read.
  std::vector<int32_t> stage_of(graph.values().size(), -1);
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    for (Value v : graph.nodes()[n].inputs) {
      int32_t& stage = stage_of[static_cast<size_t>(v)];
      if (stage < 0) stage = plan.pipeline.stage_of(static_cast<NodeId>(n));
    }
  }
  MemoryParts parts;
  parts.peak = plan.predicted.peak_bytes;
  for (const Source& s : graph.sources()) {
    const auto v = static_cast<size_t>(s.value);
    if (s.kind == SourceKind::kData || stage_of[v] != static_cast<int32_t>(fullest)) continue;
    const int64_t bytes =
        numel(plan.layout(s.value, 0).local_shape(plan.mesh)) * size_of(graph.type(s.value).dtype);
    (s.kind == SourceKind::kParameter ? parts.weights
     : s.kind == SourceKind::kState   ? parts.optimizer
                                      : parts.gradients) += bytes;
  }
  parts.activations = static_cast<int64_t>(kept[fullest]);
  parts.working = std::max<int64_t>(
      0, parts.peak - parts.weights - parts.optimizer - parts.gradients - parts.activations);
  return parts;
}

}  // namespace

MemoryParts memory_parts(const Graph& graph, const Plan& plan) {
  if (plan.pipeline.stages > 1) return stage_parts(graph, plan);
  const Program program = lower(graph, plan);
  // Of the stage that needs most; what its micro-batches in flight hold, as often as it is held.
  int32_t stage = 0;
  while (program.memory[static_cast<size_t>(stage)].arena_bytes < program.arena_bytes) ++stage;
  std::vector<Lifetime> lives = buffer_lifetimes(program);
  for (size_t b = 0; b < lives.size(); ++b) {
    const Buffer& buffer = program.buffers[b];
    lives[b].bytes *= buffer.slots;
    if (program.stage_of(buffer.chunk) != stage) lives[b] = {};
  }
  const std::vector<bool> of_weights = values_of_weights(graph);
  const int32_t moment = fullest(program, lives);

  // The first tensor of a buffer says what it is for.
  std::vector<Value> holds(program.buffers.size(), kNoValue);
  for (const ProgramTensor& t : program.tensors) {
    if (t.buffer < 0) continue;
    Value& v = holds[static_cast<size_t>(t.buffer)];
    if (v == kNoValue) v = value_of(graph, t);
  }
  MemoryParts parts;
  parts.peak = program.arena_bytes;
  int64_t known = 0;
  for (size_t b = 0; b < lives.size(); ++b) {
    const Lifetime& l = lives[b];
    if (l.last < 0 || l.first > moment || l.last < moment || program.buffers[b].host) continue;
    const Value v = holds[b];
    if (v == kNoValue) continue;
    const ValueInfo& info = graph.value(v);
    const bool source = info.producer == kNoNode;
    const bool weights = of_weights[static_cast<size_t>(v)];
    const Phase phase = source ? Phase::kForward : graph.node(info.producer).phase;
    int64_t* part = nullptr;
    if (program.buffers[b].persistent) {
      const Source* s = graph.source_of(v);
      const SourceKind kind = s == nullptr ? SourceKind::kParameter : s->kind;
      part = kind == SourceKind::kState         ? &parts.optimizer
             : kind == SourceKind::kAccumulator ? &parts.gradients
                                                : &parts.weights;
    } else if (phase == Phase::kForward) {
      part = weights ? &parts.copies : &parts.activations;
    } else if (phase == Phase::kBackward && weights) {
      part = &parts.gradients;
    }
    if (part == nullptr) continue;
    *part += l.bytes;
    known += l.bytes;
  }
  parts.working = std::max<int64_t>(parts.peak - known, 0);
  return parts;
}

nlohmann::ordered_json memory_json(const MemoryParts& m) {
  return {{"weights", m.weights},
          {"optimizer", m.optimizer},
          {"gradients", m.gradients},
          {"activations", m.activations},
          {"weight_copies", m.copies},
          {"working", m.working},
          {"peak", m.peak}};
}

}  // namespace cleave
