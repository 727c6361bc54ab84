#include "planner/zero_bubble.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "graph/error.h"

namespace cleave {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

// Each weight gradient `delay` backwards after its own, the last ones at the end.
std::vector<Unit> delayed(const std::vector<Unit>& order, int32_t delay) {
  std::vector<Unit> result;
  result.reserve(order.size() / 2 * 3);
  int32_t next = 0, chunk = 0;
  for (const Unit& unit : order) {
    result.push_back(unit);
    chunk = unit.chunk;
    if (unit.kind == UnitKind::kBackward && unit.micro_batch >= delay)
      result.push_back({UnitKind::kWeightGradient, chunk, next++});
  }
  while (result.size() < order.size() / 2 * 3)
    result.push_back({UnitKind::kWeightGradient, chunk, next++});
  return result;
}

// Whenever a stage would wait it does a weight gradient, if it has one, and so it does before a
// forward that would be one too many in flight. An event simulation: the stage that can begin
// something first begins it.
class WhenIdle {
 public:
  WhenIdle(const Schedule& schedule, const std::vector<ChunkSeconds>& seconds)
      : order_(schedule.order),
        seconds_(seconds),
        most_(std::min(schedule.stages, schedule.micro_batches)),
        stages_(static_cast<size_t>(schedule.stages)),
        turn_(stages_.size(), 0) {
    for (Stage& stage : stages_) {
      stage.forward.assign(static_cast<size_t>(schedule.micro_batches), kNever);
      stage.backward.assign(static_cast<size_t>(schedule.micro_batches), kNever);
    }
    std::fill(stages_[0].forward.begin(), stages_[0].forward.end(), 0.0);
    for (size_t s = 0; s < stages_.size(); ++s) turn_[s] = turn_of(s);
  }

  std::vector<std::vector<Unit>> run() {
    for (;;) {
      const auto first = std::min_element(turn_.begin(), turn_.end());
      if (*first == kNever) break;
      begin(static_cast<size_t>(first - turn_.begin()), *first);
    }
    std::vector<std::vector<Unit>> result;
    for (size_t s = 0; s < stages_.size(); ++s) {
      CLEAVE_ASSERT(stages_[s].next == order_[s].size(), "stage {} has not ended", s);
      result.push_back(std::move(stages_[s].order));
    }
    return result;
  }

 private:
  struct Stage {
    std::vector<double> forward, backward;  // by micro-batch: when what it needs arrives
    std::vector<Unit> order;
    size_t next = 0;  // among the forwards and backwards
    int32_t forwards = 0, backwards = 0, weights = 0;
    double free = 0, sent_forward = 0, sent_backward = 0;
  };

  bool owes(const Stage& stage) const { return stage.weights < stage.backwards; }

  // When the next forward or backward can begin, as far as is known.
  double ready(size_t s) const {
    const Stage& stage = stages_[s];
    if (stage.next == order_[s].size()) return kNever;
    const Unit& unit = order_[s][stage.next];
    const auto i = static_cast<size_t>(unit.micro_batch);
    if (unit.kind == UnitKind::kBackward) return stage.backward[i];
    return stage.forwards - stage.weights >= most_ ? kNever : stage.forward[i];
  }

  double turn_of(size_t s) const {
    return std::max(stages_[s].free, owes(stages_[s]) ? 0.0 : ready(s));
  }

  void begin(size_t s, double now) {
    Stage& stage = stages_[s];
    const ChunkSeconds& seconds = seconds_[s];
    if (ready(s) > now) {
      stage.order.push_back({UnitKind::kWeightGradient, static_cast<int32_t>(s), stage.weights++});
      stage.free = now + seconds.weight_gradient;
    } else {
      const Unit unit = order_[s][stage.next++];
      const auto i = static_cast<size_t>(unit.micro_batch);
      stage.order.push_back(unit);
      if (unit.kind == UnitKind::kForward) {
        ++stage.forwards;
        stage.free = now + seconds.forward;
        if (s + 1 == stages_.size()) {
          stage.backward[i] = stage.free;
        } else {
          stage.sent_forward = std::max(stage.sent_forward, stage.free) + seconds.send_forward;
          stages_[s + 1].forward[i] = stage.sent_forward;
          turn_[s + 1] = turn_of(s + 1);
        }
      } else {
        ++stage.backwards;
        stage.free = now + seconds.backward;
        stage.sent_backward = std::max(stage.sent_backward, stage.free) + seconds.send_backward;
        if (s > 0) {
          stages_[s - 1].backward[i] = stage.sent_backward;
          turn_[s - 1] = turn_of(s - 1);
        }
      }
    }
    turn_[s] = turn_of(s);
  }

  const std::vector<std::vector<Unit>>& order_;
  const std::vector<ChunkSeconds>& seconds_;
  int32_t most_;  // micro-batches in flight
  std::vector<Stage> stages_;
  std::vector<double> turn_;  // by stage: when it can begin something; infinite: not yet, or never
};

}  // namespace

void place_weight_gradients(Schedule& schedule, const std::vector<ChunkSeconds>& given) {
  std::vector<ChunkSeconds> seconds = given;
  if (seconds.empty()) seconds.assign(static_cast<size_t>(schedule.stages), {1, 1, 1, 0, 0});
  const Schedule bare = schedule;
  const auto delay_all = [&](bool by_stage) {
    Schedule result = bare;
    for (size_t s = 0; s < bare.order.size(); ++s)
      result.order[s] = delayed(bare.order[s], by_stage ? static_cast<int32_t>(s) : 0);
    return result;
  };
  // ZB-H1's own order: stage s has s fewer forwards ahead than the first, and so may owe s weight
  // gradients.
  schedule = delay_all(true);
  double best = simulated_seconds(schedule, seconds);
  // What is best depends on how uneven the stages are. Without delay no unit begins later than in
  // 1f1b, whatever the seconds.
  Schedule other = delay_all(false);
  for (const bool when_idle : {false, true}) {
    if (when_idle) other.order = WhenIdle(bare, seconds).run();
    if (const double s = simulated_seconds(other, seconds); s < best) {
      best = s;
      schedule = other;
    }
  }
}

}  // namespace cleave
