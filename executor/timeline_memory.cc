#include "executor/timeline_memory.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "executor/memory_layout.h"

namespace cleave {
namespace {

size_t at(int32_t index) { return static_cast<size_t>(index); }

int64_t aligned(int64_t bytes) {
  return (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
}

// A buffer of one micro-batch.
struct Use {
  double from = 0, to = 0;
  size_t first = 0, last = 0;  // events: what begins and ends at one time does so in their order
};

}  // namespace

std::vector<MemoryPoint> memory_of(const Program& program, const StepTasks::Stage& tasks,
                                   int32_t stage, const std::vector<TimelineEvent>& events,
                                   double step_seconds) {
  std::vector<bool> begun(program.buffers.size(), false);  // made once, for all micro-batches
  for (const Instr& instr : program.instrs) {
    if (instr.part != Part::kBegin) continue;
    for (const TensorId t : instr.out) begun[at(program.tensor(t).buffer)] = true;
  }
  std::map<std::pair<int32_t, int32_t>, Use> uses;  // by micro-batch (-1: all), buffer
  const auto touch = [&](int32_t micro_batch, TensorId t, size_t e) {
    const int32_t buffer = program.tensor(t).buffer;
    if (program.buffers[at(buffer)].persistent) return;
    if (begun[at(buffer)]) micro_batch = -1;
    const double start = events[e].start, end = start + events[e].seconds;
    const auto [use, is_new] = uses.emplace(std::pair(micro_batch, buffer), Use{start, end, e, e});
    Use& u = use->second;
    if (start < u.from) u.from = start, u.first = e;
    if (end >= u.to) u.to = end, u.last = std::max(u.last, e);
  };
  std::set<std::tuple<Part, int32_t, int32_t>> fed;  // part, chunk, micro-batch
  for (size_t e = 0; e < events.size(); ++e) {
    const TimelineEvent& event = events[e];
    const Instr& instr = program.instrs[at(event.instr)];
    if (fed.emplace(instr.part, instr.chunk, event.micro_batch).second) {
      for (const ProgramSource& s : program.sources) {
        const bool here = s.kind == SourceKind::kData && s.part == instr.part;
        if (here && s.chunk == instr.chunk) touch(event.micro_batch, s.tensor, e);
      }
    }
    if (event.bucket < 0) {
      for (const TensorId t : instr.in) touch(event.micro_batch, t, e);
      for (const TensorId t : instr.out) touch(event.micro_batch, t, e);
    } else {
      for (const size_t pair : tasks.buckets.at({event.instr, event.bucket})) {
        touch(event.micro_batch, instr.in[pair], e);
        touch(event.micro_batch, instr.out[pair], e);
      }
    }
  }
  const auto last = static_cast<int32_t>(program.micro_batches() - 1);
  for (const ProgramOutput& o : program.outputs) {
    const auto use = uses.find({last, program.tensor(o.tensor).buffer});
    if (use != uses.end()) use->second.to = step_seconds, use->second.last = events.size();
  }

  struct Change {
    double time;
    size_t order;
    int64_t bytes;
  };
  std::vector<Change> changes;
  for (const auto& [of, use] : uses) {
    const int64_t bytes = aligned(program.buffers[at(of.second)].bytes);
    changes.push_back({use.from, 2 * use.first, bytes});
    changes.push_back({use.to, 2 * use.last + 1, -bytes});
  }
  std::sort(changes.begin(), changes.end(), [](const Change& a, const Change& b) {
    return std::pair(a.time, a.order) < std::pair(b.time, b.order);
  });
  int64_t bytes = 0;
  if (!program.memory.empty()) bytes = aligned(program.memory[at(stage)].workspace_bytes);
  for (const Buffer& b : program.buffers) {
    if (b.persistent && !b.host && program.stage_of(b.chunk) == stage) bytes += aligned(b.bytes);
  }
  std::vector<MemoryPoint> points = {{0, bytes}};
  for (const Change& c : changes) {
    bytes += c.bytes;
    points.push_back({c.time, bytes});
  }
  return points;
}

}  // namespace cleave
