// In which order a pipeline stage works on its micro-batches: plain lists, made for a number of
// stages, chunks and micro-batches, with no knowledge of what a chunk computes.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace cleave {

// The model is cut into stages * chunks pieces in the order of the forward; chunk c lies on stage
// c % stages (with one chunk a stage, chunk and stage are the same).
enum class ScheduleKind : uint8_t {
  kOneForwardOneBackward,  // "1f1b": one chunk a stage
  kInterleaved,            // "interleaved": several chunks a stage; micro-batches a multiple of the
                           // stages
  kZeroBubble,  // "zero-bubble": 1f1b whose weight gradients wait until a stage would idle
};
std::string_view name_of(ScheduleKind kind);

// What a stage does at one time.
enum class UnitKind : uint8_t {
  kForward,
  kBackward,        // of a zero-bubble schedule: only what the stage before waits for
  kWeightGradient,  // the rest of the backward; in zero-bubble schedules only
};

struct Unit {
  UnitKind kind = UnitKind::kForward;
  int32_t chunk = 0;
  int32_t micro_batch = 0;
  bool operator==(const Unit&) const = default;
};

struct Schedule {
  ScheduleKind kind = ScheduleKind::kOneForwardOneBackward;
  int32_t stages = 1;
  int32_t chunks = 1;  // a stage
  int32_t micro_batches = 1;
  std::vector<std::vector<Unit>> order;  // by stage

  // Most micro-batches of a chunk whose forward has begun and whose last unit has not ended: as
  // many times what a chunk keeps for its backward is held.
  int32_t in_flight(int32_t chunk) const;
};

// Throws Error when the kind cannot be made of these numbers.
Schedule make_schedule(ScheduleKind kind, int32_t stages, int32_t chunks, int32_t micro_batches);

// Seconds of one unit of a chunk, and to send what it makes to the next (forward) or to the one
// before (backward).
struct ChunkSeconds {
  double forward = 0, backward = 0, weight_gradient = 0;
  double send_forward = 0, send_backward = 0;
};

struct SimulatedSchedule {
  double seconds = 0;                      // from the first unit's start to the last one's end
  std::vector<std::vector<double>> start;  // by stage, by place in its order
  std::vector<double> busy, end;           // by stage: computing, and when its last unit ends
};

// Runs the schedule: a unit starts when its stage is free and what it needs has arrived; sending
// takes no time of a stage's own. Chunk c's forward needs chunk c-1's, its backward chunk c+1's
// (the last one's needs its own forward).
SimulatedSchedule simulate(const Schedule& schedule, const std::vector<ChunkSeconds>& chunks);

}  // namespace cleave
