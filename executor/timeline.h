// The prediction of one training step: every instruction on a stream of its stage's devices, with
// communication beside computation where the devices can do that.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "executor/task_lists.h"
#include "graph/graph.h"
#include "planner/plan.h"

namespace cleave {

// Where a stage's step goes; the parts add up to the step.
struct StageSeconds {
  double compute = 0;        // all but the update
  double communication = 0;  // its computation waits for a collective or a message
  double bubble = 0;         // it waits for the work of other stages
  double optimizer = 0;      // it computes the update
  // All of its collectives and of what it sends.
  double communicating = 0;

  double sum() const { return compute + communication + bubble + optimizer; }
};

struct TimelineEvent {
  int32_t stream = 0;
  int32_t instr = 0;    // of the stage's program
  int32_t bucket = -1;  // which part of a bundle; -1: all
  int32_t micro_batch = 0;
  double start = 0, seconds = 0;
  double exposed = 0;  // of a collective: while computation waited for it
};

struct MemoryPoint {
  double time = 0;
  int64_t bytes = 0;  // from then on
};

struct StageTimeline {
  StageSeconds seconds;
  std::vector<TimelineEvent> events;  // in the order of issue
  // Of one rank: what is kept between steps and the kernels' workspace, and every other buffer from
  // the start of the first instruction that touches it to the end of the last.
  std::vector<MemoryPoint> memory;
  int64_t peak_bytes = 0;
};

struct StepTimeline {
  double seconds = 0;
  int32_t critical = 0;  // the stage with the least bubble
  std::vector<StageTimeline> stages;
};

// The whole prediction. The program must be laid out (lower() does that). `plan`: see InstrCosts.
StepTimeline simulate_step(const Program& program, const Cluster& cluster,
                           const TimelineOptions& options, const Plan* plan = nullptr);

// Its seconds alone.
double predicted_step_seconds(const Program& program, const Cluster& cluster,
                              const TimelineOptions& options, const Plan* plan = nullptr);
// The same of a plan for this graph, on its own cluster: for the planner's options.
double predicted_step_seconds(const Graph& graph, const Plan& plan);

// What the cluster's devices do.
TimelineOptions timeline_options(const Cluster& cluster);

}  // namespace cleave
