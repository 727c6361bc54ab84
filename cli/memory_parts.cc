#include "cli/memory_parts.h"

#include <charconv>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "executor/lower.h"
#include "executor/memory_layout.h"
#include "graph/error.h"
#include "planner/of_weights.h"

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

// Which of these lifetimes are live at the moment at which most bytes are.
std::vector<size_t> fullest(const std::vector<Lifetime>& lives) {
  std::map<int64_t, int64_t> change;  // by time
  for (const Lifetime& l : lives) {
    if (l.last < 0) continue;
    change[l.first] += l.bytes;
    change[int64_t{l.last} + 1] -= l.bytes;
  }
  int64_t live = 0, most = -1, moment = 0;
  for (const auto& [time, bytes] : change) {
    live += bytes;
    if (live > most) most = live, moment = time;
  }
  std::vector<size_t> result;
  for (size_t i = 0; i < lives.size(); ++i) {
    if (lives[i].last >= 0 && lives[i].first <= moment && moment <= lives[i].last) {
      result.push_back(i);
    }
  }
  return result;
}

// Buffers of one stage that are live together at its fullest moment, and how often each: what a
// chunk keeps, for every micro-batch in flight.
std::vector<std::pair<int32_t, int64_t>> at_the_peak(const Program& program, int32_t stage) {
  StageItems items = stage_items(program, buffer_lifetimes(program), stage);
  std::vector<std::pair<int32_t, int64_t>> result;
  for (int32_t b : items.persistent) result.emplace_back(b, 1);
  const size_t plain = items.lives.size();
  for (const StageItems::Frame& f : items.frames) {
    items.lives.push_back(f.life);
    items.lives.back().bytes = f.slots * most_live_bytes(f.lives);
  }
  for (size_t i : fullest(items.lives)) {
    if (i < plain) {
      result.emplace_back(items.buffers[i], 1);
      continue;
    }
    const StageItems::Frame& f = items.frames[i - plain];
    for (size_t j : fullest(f.lives)) result.emplace_back(f.buffers[j], f.slots);
  }
  return result;
}

}  // namespace

MemoryParts memory_parts(const Graph& graph, const Plan& plan) {
  Program program = lower_unplaced(graph, plan);
  plan_memory(program);
  int32_t stage = 0;  // that needs most
  while (program.memory[static_cast<size_t>(stage)].arena_bytes < program.arena_bytes) ++stage;
  const std::vector<bool> of_weights = values_of_weights(graph);
  // The first tensor of a buffer says what it is for.
  std::vector<Value> holds(program.buffers.size(), kNoValue);
  for (const ProgramSource& s : program.sources) {
    if (s.rest < 0) continue;
    const ProgramSource& rest = program.sources[static_cast<size_t>(s.rest)];
    const int32_t b = program.tensor(rest.tensor).buffer;
    holds[static_cast<size_t>(b)] = graph.source_named(s.name)->value;
  }
  for (const ProgramTensor& t : program.tensors) {
    if (t.buffer < 0) continue;
    Value& v = holds[static_cast<size_t>(t.buffer)];
    if (v == kNoValue) v = value_of(graph, t);
  }
  MemoryParts parts;
  parts.peak = program.arena_bytes;
  int64_t known = 0;
  for (const auto& [b, times] : at_the_peak(program, stage)) {
    const Buffer& buffer = program.buffers[static_cast<size_t>(b)];
    const Value v = holds[static_cast<size_t>(b)];
    if (v == kNoValue) continue;
    const ValueInfo& info = graph.value(v);
    const bool source = info.producer == kNoNode;
    const bool weights = of_weights[static_cast<size_t>(v)];
    const Phase phase = source ? Phase::kForward : graph.node(info.producer).phase;
    int64_t* part = nullptr;
    if (buffer.persistent) {
      const Source* s = graph.source_of(v);  // none: a copy that is kept from step to step
      part = s == nullptr                          ? &parts.copies
             : s->kind == SourceKind::kState       ? &parts.optimizer
             : s->kind == SourceKind::kAccumulator ? &parts.gradients
                                                   : &parts.weights;
    } else if (phase == Phase::kForward) {
      part = weights ? &parts.copies : &parts.activations;
    } else if (phase == Phase::kBackward && weights) {
      part = &parts.gradients;
    }
    if (part == nullptr) continue;
    *part += times * buffer.bytes;
    known += times * buffer.bytes;
  }
  CLEAVE_ASSERT(known <= parts.peak, "parts of {} bytes, of a peak of {}", known, parts.peak);
  parts.working = parts.peak - known;
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
