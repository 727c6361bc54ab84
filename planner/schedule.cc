#include "planner/schedule.h"

#include <algorithm>
#include <array>

#include "graph/error.h"
#include "planner/zero_bubble.h"

namespace cleave {
namespace {

constexpr double kEqual = 1e-9;  // of a run: what ends as another begins

// The forwards that a stage does before its first backward.
int64_t warm_up(const Schedule& schedule, int32_t stage) {
  const int64_t after = schedule.stages - 1 - stage;  // stages
  const int64_t units = int64_t{schedule.chunks} * schedule.micro_batches;
  if (schedule.chunks == 1) return std::min(after, units);
  // One for each later stage, and one more each for the way back; and all but the last of the
  // chunks that a micro-batch passes here before its backward can begin.
  return std::min(2 * after + int64_t{schedule.chunks - 1} * schedule.stages, units);
}

// Chunks of a stage take turns: as many micro-batches of each as there are stages.
Unit nth(const Schedule& schedule, int32_t stage, UnitKind kind, int64_t n) {
  const int64_t stages = schedule.stages, chunks = schedule.chunks, round = stages * chunks;
  int64_t turn = n % round / stages;
  if (kind == UnitKind::kBackward) turn = chunks - 1 - turn;
  return {kind, static_cast<int32_t>(turn * stages + stage),
          static_cast<int32_t>(chunks == 1 ? n : n / round * stages + n % stages)};
}

std::vector<Unit> one_forward_one_backward(const Schedule& schedule, int32_t stage) {
  const int64_t units = int64_t{schedule.chunks} * schedule.micro_batches;
  const int64_t ahead = warm_up(schedule, stage);
  std::vector<Unit> order;
  order.reserve(static_cast<size_t>(2 * units));
  for (int64_t n = 0; n < ahead; ++n) order.push_back(nth(schedule, stage, UnitKind::kForward, n));
  for (int64_t n = 0; n < units; ++n) {
    if (n + ahead < units) order.push_back(nth(schedule, stage, UnitKind::kForward, n + ahead));
    order.push_back(nth(schedule, stage, UnitKind::kBackward, n));
  }
  return order;
}

// When what is sent to a chunk arrives there, in the order of its micro-batches.
struct Arrivals {
  double* at = nullptr;
  int64_t count = 0;
};

// A schedule is a longest path in a graph whose order is nearly known: stage after stage, each runs
// as far as what has been sent to it allows. So every unit is looked at once.
class Simulation {
 public:
  Simulation(const Schedule& schedule, const std::vector<ChunkSeconds>& chunks)
      : schedule_(schedule),
        chunks_(chunks),
        last_chunk_(schedule.stages * schedule.chunks - 1),
        stages_(static_cast<size_t>(schedule.stages)),
        forward_(chunks.size()),
        backward_(chunks.size()) {
    CLEAVE_ASSERT(static_cast<int32_t>(chunks.size()) == last_chunk_ + 1,
                  "{} chunks have their seconds, and there are {}", chunks.size(), last_chunk_ + 1);
    const auto m = static_cast<size_t>(schedule.micro_batches);
    // Kept between calls: to touch fresh memory takes as long as the simulation.
    thread_local std::vector<double> scratch;
    if (scratch.size() < 2 * m * chunks.size()) scratch.resize(2 * m * chunks.size());
    for (size_t c = 0; c < chunks.size(); ++c) {
      forward_[c].at = scratch.data() + 2 * m * c;
      backward_[c].at = scratch.data() + 2 * m * c + m;
    }
    std::fill_n(forward_[0].at, m, 0.0);
    forward_[0].count = schedule.micro_batches;
  }

  template <bool kStarts>
  void run(std::vector<std::vector<double>>* start) {
    size_t left = 0;
    for (const std::vector<Unit>& order : schedule_.order) left += order.size();
    const auto p = static_cast<int32_t>(stages_.size());
    while (left > 0) {
      size_t done = 0;
      for (int32_t s = 0; s < p; ++s) done += advance<kStarts>(s, start);
      for (int32_t s = p - 2; s > 0; --s) done += advance<kStarts>(s, start);
      CLEAVE_ASSERT(done > 0, "{} units of the schedule wait for one another", left);
      left -= done;
    }
  }

  struct Stage {
    size_t next = 0;  // place in its order
    double free = 0, busy = 0, sent_forward = 0, sent_backward = 0;
  };
  const std::vector<Stage>& stages() const { return stages_; }

 private:
  template <bool kStarts>
  size_t advance(int32_t s, std::vector<std::vector<double>>* start) {
    const std::vector<Unit>& order = schedule_.order[static_cast<size_t>(s)];
    Stage stage = stages_[static_cast<size_t>(s)];
    const size_t first = stage.next;
    const bool fused = schedule_.kind != ScheduleKind::kZeroBubble;
    const bool alone = schedule_.stages == 1;
    for (; stage.next < order.size(); ++stage.next) {
      const Unit unit = order[stage.next];
      const auto c = static_cast<size_t>(unit.chunk);
      const ChunkSeconds& seconds = chunks_[c];
      double begin = stage.free, length = seconds.weight_gradient;
      if (unit.kind != UnitKind::kWeightGradient) {
        const bool forward = unit.kind == UnitKind::kForward;
        const Arrivals& from = forward ? forward_[c] : backward_[c];
        if (from.count <= unit.micro_batch) break;
        begin = std::max(begin, from.at[unit.micro_batch]);
        length = forward ? seconds.forward : seconds.backward + (fused ? length : 0);
      }
      if constexpr (kStarts) (*start)[static_cast<size_t>(s)][stage.next] = begin;
      const double end = begin + length;
      stage.busy += length;
      stage.free = end;
      if (unit.kind == UnitKind::kForward) {
        if (unit.chunk == last_chunk_) {
          arrive(backward_[c], end);
        } else {
          stage.sent_forward = std::max(stage.sent_forward, end) + seconds.send_forward;
          arrive(forward_[c + 1], alone ? end : stage.sent_forward);
        }
      } else if (unit.kind == UnitKind::kBackward && c > 0) {
        stage.sent_backward = std::max(stage.sent_backward, end) + seconds.send_backward;
        arrive(backward_[c - 1], alone ? end : stage.sent_backward);
      }
    }
    stages_[static_cast<size_t>(s)] = stage;
    return stage.next - first;
  }

  static void arrive(Arrivals& to, double at) { to.at[to.count++] = at; }

  const Schedule& schedule_;
  const std::vector<ChunkSeconds>& chunks_;
  int32_t last_chunk_;
  std::vector<Stage> stages_;
  std::vector<Arrivals> forward_, backward_;  // by chunk
};

}  // namespace

std::string_view name_of(ScheduleKind kind) {
  switch (kind) {
    case ScheduleKind::kOneForwardOneBackward: return "1f1b";
    case ScheduleKind::kInterleaved: return "interleaved";
    case ScheduleKind::kZeroBubble: return "zero-bubble";
  }
  return "?";
}

std::optional<ScheduleKind> schedule_named(std::string_view name) {
  for (const ScheduleKind kind : {ScheduleKind::kOneForwardOneBackward, ScheduleKind::kInterleaved,
                                  ScheduleKind::kZeroBubble}) {
    if (name_of(kind) == name) return kind;
  }
  return std::nullopt;
}

std::string_view name_of(UnitKind kind) {
  switch (kind) {
    case UnitKind::kForward: return "forward";
    case UnitKind::kBackward: return "backward";
    case UnitKind::kWeightGradient: return "weights";
  }
  return "?";
}

size_t Schedule::units() const {
  size_t units = 0;
  for (const auto& stage : order) units += stage.size();
  return units;
}

int32_t Schedule::in_flight(int32_t chunk) const {
  std::vector<double> one(static_cast<size_t>(stages * chunks), 0);
  one[static_cast<size_t>(chunk)] = 1;
  return static_cast<int32_t>(most_held(chunk % stages, one));
}

int32_t Schedule::deferred(int32_t chunk) const {
  if (kind != ScheduleKind::kZeroBubble) return 0;
  int32_t waiting = 0, most = 0;
  for (const Unit& unit : order[static_cast<size_t>(chunk % stages)]) {
    if (unit.chunk != chunk) continue;
    if (unit.kind == UnitKind::kWeightGradient) --waiting;
    most = std::max(most, waiting);  // the one that is next needs not wait
    if (unit.kind == UnitKind::kBackward) ++waiting;
  }
  return most;
}

double Schedule::most_held(int32_t stage, const std::vector<double>& bytes) const {
  const UnitKind last =
      kind == ScheduleKind::kZeroBubble ? UnitKind::kWeightGradient : UnitKind::kBackward;
  double held = 0, most = 0;
  // Counted by chunk, so that what is added is taken away again exactly.
  std::vector<int32_t> begun(static_cast<size_t>(chunks), 0);
  for (const Unit& unit : order[static_cast<size_t>(stage)]) {
    const auto turn = static_cast<size_t>(unit.chunk / stages);
    if (unit.kind == UnitKind::kForward) {
      ++begun[turn];
      held = 0;
      for (size_t c = 0; c < begun.size(); ++c) {
        held += begun[c] * bytes[c * static_cast<size_t>(stages) + static_cast<size_t>(stage)];
      }
      most = std::max(most, held);
    } else if (unit.kind == last) {
      --begun[turn];
    }
  }
  return most;
}

Schedule make_schedule(ScheduleKind kind, int32_t stages, int32_t chunks, int32_t micro_batches,
                       const std::vector<ChunkSeconds>& seconds) {
  if (stages < 1 || chunks < 1 || micro_batches < 1) {
    fail("a schedule of {} stages, {} chunks a stage and {} micro-batches: each is at least 1",
         stages, chunks, micro_batches);
  }
  if (kind != ScheduleKind::kInterleaved && chunks != 1) {
    fail("the schedule {} has one chunk a stage, not {}; interleaved has several", name_of(kind),
         chunks);
  }
  if (kind == ScheduleKind::kInterleaved && chunks == 1) {
    fail("an interleaved schedule has at least two chunks a stage; with one it is 1f1b");
  }
  if (kind == ScheduleKind::kInterleaved && micro_batches % stages != 0) {
    fail("an interleaved schedule needs micro-batches in a multiple of its stages: {} in {} stages",
         micro_batches, stages);
  }
  Schedule schedule{kind, stages, chunks, micro_batches, {}};
  for (int32_t s = 0; s < stages; ++s)
    schedule.order.push_back(one_forward_one_backward(schedule, s));
  if (kind == ScheduleKind::kZeroBubble) place_weight_gradients(schedule, seconds);
  return schedule;
}

SimulatedSchedule simulate(const Schedule& schedule, const std::vector<ChunkSeconds>& chunks) {
  SimulatedSchedule result;
  for (const std::vector<Unit>& order : schedule.order) result.start.emplace_back(order.size());
  Simulation simulation(schedule, chunks);
  simulation.run<true>(&result.start);
  for (const auto& stage : simulation.stages()) {
    result.busy.push_back(stage.busy);
    result.end.push_back(stage.free);
    result.seconds = std::max(result.seconds, stage.free);
  }
  return result;
}

UnitChain critical_chain(const Schedule& schedule, const std::vector<ChunkSeconds>& chunks,
                         const SimulatedSchedule& run, int32_t stage) {
  const auto count = chunks.size(), micro = static_cast<size_t>(schedule.micro_batches);
  UnitChain chain;
  chain.forward.assign(count, 0);
  chain.backward = chain.weights = chain.sent_forward = chain.sent_backward = chain.forward;
  // By kind, chunk and micro-batch: its place in its stage's order.
  std::array<std::vector<size_t>, 2> places;
  for (auto& list : places) list.resize(count * micro);
  for (const auto& order : schedule.order) {
    for (size_t i = 0; i < order.size(); ++i) {
      const Unit& u = order[i];
      if (u.kind == UnitKind::kWeightGradient) continue;
      places[u.kind == UnitKind::kBackward]
            [static_cast<size_t>(u.chunk) * micro + static_cast<size_t>(u.micro_batch)] = i;
    }
  }
  const bool split = schedule.kind == ScheduleKind::kZeroBubble;
  const auto seconds_of = [&](const Unit& u) {
    const ChunkSeconds& t = chunks[static_cast<size_t>(u.chunk)];
    if (u.kind == UnitKind::kForward) return t.forward;
    if (u.kind == UnitKind::kWeightGradient) return t.weight_gradient;
    return split ? t.backward : t.backward + t.weight_gradient;
  };
  auto s = static_cast<size_t>(stage);
  size_t i = schedule.order[s].size() - 1;
  const auto go_to = [&](bool backward, int32_t chunk, int32_t micro_batch) {
    s = static_cast<size_t>(chunk % schedule.stages);
    i = places[backward][static_cast<size_t>(chunk) * micro + static_cast<size_t>(micro_batch)];
  };
  while (true) {
    const Unit& u = schedule.order[s][i];
    const auto c = static_cast<size_t>(u.chunk);
    (u.kind == UnitKind::kForward    ? chain.forward
     : u.kind == UnitKind::kBackward ? chain.backward
                                     : chain.weights)[c] += 1;
    const double start = run.start[s][i];
    // The unit before on the stage, if it ended just then; else what was waited for.
    if (i > 0) {
      const double end = run.start[s][i - 1] + seconds_of(schedule.order[s][i - 1]);
      if (end >= start - kEqual * run.seconds) {
        --i;
        continue;
      }
    }
    if (u.kind == UnitKind::kForward && u.chunk > 0) {
      chain.sent_forward[c] += 1;
      go_to(false, u.chunk - 1, u.micro_batch);
    } else if (u.kind == UnitKind::kBackward && c + 1 < count) {
      chain.sent_backward[c] += 1;
      go_to(true, u.chunk + 1, u.micro_batch);
    } else if (u.kind == UnitKind::kBackward) {
      go_to(false, u.chunk, u.micro_batch);
    } else {
      return chain;  // the first forward
    }
  }
}

double simulated_seconds(const Schedule& schedule, const std::vector<ChunkSeconds>& chunks) {
  Simulation simulation(schedule, chunks);
  simulation.run<false>(nullptr);
  double seconds = 0;
  for (const auto& stage : simulation.stages()) seconds = std::max(seconds, stage.free);
  return seconds;
}

}  // namespace cleave
