// What a pipeline would take, from what the pieces of the model take: for comparing arrangements
// before any of them is planned in full.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "planner/arrangements.h"
#include "planner/chunk_cuts.h"
#include "planner/critical_paths.h"
#include "planner/outline.h"
#include "planner/plan.h"
#include "planner/schedule.h"

namespace cleave {

struct PieceLoad : GroupLoad {
  // Of the seconds of the backward: those that no other piece's backward waits for.
  double deferrable = 0;
};

// One way to run every piece: what it computes again, and at what price of memory it was placed.
struct PieceOption {
  int32_t mode = 0;              // index into a menu of RemakeMode
  double price = 0;              // seconds a byte
  std::vector<PieceLoad> loads;  // by piece of the whole graph
};

// The loads of a plan for the folded graph (`prepared`: with what it computes again), spread over
// the pieces that its groups stand for.
std::vector<PieceLoad> piece_loads(const Outline& outline, const PreparedGraph& prepared,
                                   const Plan& folded);

// How one stage mixes two options: its pieces before `split` (of the whole model) run as `first`,
// the others as `second`.
struct StageMix {
  int32_t first = 0, second = 0;  // indices of options
  int32_t split = 0;
  bool operator==(const StageMix&) const = default;
};

// Schedules by what they are made for, each made once: for units of equal length. Safe to share
// between threads.
class Schedules {
 public:
  struct Facts {
    Schedule schedule;
    std::vector<double> in_flight, deferred;  // by chunk
  };
  const Facts& of(const Arrangement& arrangement);
  const std::vector<CriticalPath>& critical_paths(const Arrangement& arrangement);

 private:
  struct Entry {
    std::once_flag made, followed;
    Facts facts;
    std::vector<CriticalPath> paths;
  };
  Entry& entry(const Arrangement& arrangement);  // with its facts

  std::mutex mutex_;  // of known_; entries are made outside it
  std::map<std::tuple<ScheduleKind, int32_t, int32_t, int64_t>, std::unique_ptr<Entry>> known_;
};

struct StageEstimate {
  std::vector<int32_t> first_piece;   // by chunk
  std::vector<ChunkSeconds> seconds;  // by chunk
  std::vector<StageMix> mixes;        // by stage
  std::vector<double> bytes;          // by stage: held at most, as far as pieces tell
  double step_seconds = 0;            // infinite when some stage does not fit, or no cut is allowed
};

// The pieces dealt out to the chunks so that the slowest stage is as quick as possible, and each
// stage's mix the cheapest that keeps it within its limit. `limits`: bytes, by stage. `sent`:
// seconds to send what passes between stages, forward or backward.
StageEstimate estimate_stages(const Arrangement& arrangement, const std::vector<Piece>& pieces,
                              const std::vector<PieceOption>& options,
                              const std::vector<double>& limits, double sent, Schedules& schedules,
                              const CutRules& rules = {});

// Seconds of a step: the schedule, and the updates of the stages after their last units.
double step_seconds(const Arrangement& arrangement, const std::vector<ChunkSeconds>& chunks,
                    const std::vector<double>& updates, Schedules& schedules);

}  // namespace cleave
