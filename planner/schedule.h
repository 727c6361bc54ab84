// In which order a pipeline stage works on its micro-batches: plain lists, made for a number of
// stages, chunks and micro-batches, with no knowledge of what a chunk computes.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace cleave {

// The model is cut into stages * chunks pieces in the order of the forward; chunk c lies on stage
// c % stages (with one chunk a stage, chunk and stage are the same). Chunks are numbered over the
// whole model everywhere below.
enum class ScheduleKind : uint8_t {
  kOneForwardOneBackward,  // "1f1b": one chunk a stage
  kInterleaved,            // "interleaved": several chunks a stage; micro-batches a multiple of the
                           // stages
  kZeroBubble,  // "zero-bubble": 1f1b whose weight gradients wait until a stage would idle
};
std::string_view name_of(ScheduleKind kind);
std::optional<ScheduleKind> schedule_named(std::string_view name);  // empty: there is no such

// What a stage does at one time.
enum class UnitKind : uint8_t {
  kForward,
  kBackward,        // of a zero-bubble schedule: only what the stage before waits for
  kWeightGradient,  // the rest of the backward; in zero-bubble schedules only
};
std::string_view name_of(UnitKind kind);  // "forward", "backward", "weights"

struct Unit {
  UnitKind kind = UnitKind::kForward;
  int32_t chunk = 0;
  int32_t micro_batch = 0;
  bool operator==(const Unit&) const = default;
};

// Every stage works on the micro-batches of a chunk in their order, in each kind of unit.
struct Schedule {
  ScheduleKind kind = ScheduleKind::kOneForwardOneBackward;
  int32_t stages = 1;
  int32_t chunks = 1;  // a stage
  int32_t micro_batches = 1;
  std::vector<std::vector<Unit>> order;  // by stage

  size_t units() const;  // of all stages together
  // Most micro-batches of a chunk whose forward has begun and whose last unit has not ended: as
  // many times what a chunk keeps for its backward is held.
  int32_t in_flight(int32_t chunk) const;
  // Most micro-batches of a chunk whose backward has ended and whose weight gradients have not
  // begun; 0 but for zero-bubble schedules.
  int32_t deferred(int32_t chunk) const;
  // What in_flight counts, of all chunks of a stage together, each micro-batch of chunk c counted
  // as `bytes[c]`: chunks of one stage need not have their most at the same time. All 1: in-flight
  // units.
  double most_held(int32_t stage, const std::vector<double>& bytes) const;
};

// Seconds of one unit of a chunk, and to send what it makes to the next (forward) or to the one
// before (backward). `backward` is what the chunk before waits for, `weight_gradient` the rest:
// schedules without units of weight gradients do both in one, and send after both.
struct ChunkSeconds {
  double forward = 0, backward = 0, weight_gradient = 0;
  double send_forward = 0, send_backward = 0;
};

// 1f1b and interleaved: the orders of Narayanan et al. 2021 (Megatron-LM's), where a stage begins
// with as many forwards as keep the stages after it busy. Zero-bubble: the order of 1f1b with
// weight gradients after their backward as late as they fill what would be idle, never more
// micro-batches in flight than 1f1b's first stage has (ZB-H1 of Qi et al. 2023): made for these
// seconds by chunk (empty: for units of equal length), and by them never slower than 1f1b.
// Throws Error when the kind cannot be made of these numbers.
Schedule make_schedule(ScheduleKind kind, int32_t stages, int32_t chunks, int32_t micro_batches,
                       const std::vector<ChunkSeconds>& seconds = {});

struct SimulatedSchedule {
  double seconds = 0;                      // from the first unit's start to the last one's end
  std::vector<std::vector<double>> start;  // by stage, by place in its order
  std::vector<double> busy, end;           // by stage: computing, and when its last unit ends
};

// Runs the schedule: a unit starts when its stage is free and what it needs has arrived. Sending
// takes no time of a stage's own, but a stage sends one thing at a time in each direction; to
// itself (one stage) for nothing. Chunk c's forward needs chunk c-1's, its backward chunk c+1's
// (the last one's needs its own forward).
// Throws InternalError on an order that can never end.
SimulatedSchedule simulate(const Schedule& schedule, const std::vector<ChunkSeconds>& chunks);
// The seconds alone; what a search asks for (about 4 ns a unit).
double simulated_seconds(const Schedule& schedule, const std::vector<ChunkSeconds>& chunks);

// A chain of units each of which waits for the one before: whatever units take, the schedule takes
// at least as long as all of them one after the other.
struct UnitChain {
  std::vector<double> forward, backward, weights;   // by chunk: how many units
  std::vector<double> sent_forward, sent_backward;  // by chunk: how often it waited for the sender
};
// The chain that ends with a stage's last unit, and that it waited for in this run of the schedule.
UnitChain critical_chain(const Schedule& schedule, const std::vector<ChunkSeconds>& chunks,
                         const SimulatedSchedule& run, int32_t stage);

}  // namespace cleave
