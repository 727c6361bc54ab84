// A plan: where every value lies on the mesh, how it gets there, and what that is predicted to
// cost.
#pragma once

#include <array>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "planner/dimensions.h"
#include "planner/family.h"
#include "planner/mesh.h"
#include "planner/redistribution.h"
#include "planner/rewrite.h"
#include "planner/schedule.h"

namespace cleave {

// One way in which a value is held. The first form of a value is as its producer makes it; others
// are made from an earlier form by steps.
struct Form {
  Placements placements;
  int32_t from = -1;  // index of the form it is made from; -1: as produced
  std::vector<Step> steps;
  Phase phase = Phase::kForward;  // when it is made
  bool bundled = false;           // its collectives are joined with others of the same kind
};

struct NodePlan {
  std::vector<MemberSplit::OnAxis> axes;  // how the op is split
  std::vector<Step> inner;                // collectives inside, when its factor is whole
  std::vector<int32_t> input_forms;       // which form of each input it reads
  double seconds = 0;                     // compute and inner collectives, each time it runs
};

// All collectives of one kind along one axis in one phase of a step on one stage of the pipeline,
// all its micro-batches together.
struct PlannedCollectives {
  StepKind kind = StepKind::kAllReduce;
  int32_t axis = 0;
  Phase phase = Phase::kForward;
  int32_t stage = 0;        // of the pipeline
  bool parameters = false;  // they move parameters, gradients and states; otherwise activations
  int64_t count = 0;        // a bundle counts as one
  double bytes = 0;         // sent by one rank of the stage in one step
  double seconds = 0;       // with the starts of bundles
};

struct Prediction {
  double step_seconds = 0;
  double compute_seconds = 0;
  double communication_seconds = 0;
  double tokens_per_second = 0;
  double mfu_full = 0;      // attention counted as if nothing were masked
  double mfu_causal = 0;    // masked work not counted
  int64_t peak_bytes = 0;   // of one rank
  int64_t state_bytes = 0;  // parameters and optimizer states, of one rank; not those on the host
  int64_t held_bytes = 0;   // those, and what is kept for the backward: never above the peak
  int64_t host_bytes = 0;   // states in the host's memory, of one rank of each stage together
  double host_seconds = 0;  // moving them there and back: part of the communication
};

// What a byte costs that must be held at the end of the forward: parameters, states, and values
// kept for the backward. The Lagrange multiplier of the memory limit. Pieces of the model before
// `split` (planner/pieces.h) may have another price than the rest, so that some keep what others
// make again.
struct MemoryPrice {
  double low = 0;   // seconds a byte, of the pieces before `split`
  double high = 0;  // of everything else
  int32_t split = 0;
  bool free() const { return low == 0 && high == 0; }
  bool operator==(const MemoryPrice&) const = default;
};

// What the search counts. Nodes belong to groups (a pipeline's chunks); by group and phase, how
// often a step's time counts what runs there, and what a byte costs that is held there.
struct Costing {
  std::vector<std::array<double, 3>> runs;  // by group, phase
  // The same of transfers into the group; empty: as `runs`.
  std::vector<std::array<double, 3>> sends;
  std::vector<MemoryPrice> prices;  // by group: of what one micro-batch keeps, and of
                                    // parameters and states
  std::vector<double> in_flight;    // by group: micro-batches whose kept values are held

  // One group; the forward and the backward run for every micro-batch, the update once.
  static Costing plain(int64_t micro_batches, const MemoryPrice& price = {});
  bool operator==(const Costing&) const = default;
};

// What one group does and holds on one rank.
struct GroupLoad {
  std::array<double, 3> seconds = {};        // by phase, each time it runs, communication included
  std::array<double, 3> communication = {};  // the part of it
  // By phase: seconds of transfers into the group, not among its own seconds.
  std::array<double, 3> received = {};
  // By phase: seconds that the search counts besides, where families go one way from a hand-out and
  // each pays for it, and the plan goes it once.
  std::array<double, 3> again = {};
  double bundled = 0;       // seconds of the update's bundles: part of seconds[kUpdate]
  double starts = 0;        // seconds to start those bundles, once a step: not among `seconds`
  double host = 0;          // seconds of states' way to the host and back: part of seconds[kUpdate]
  int64_t state_bytes = 0;  // parameters, states, accumulators, what is made once a step
  int64_t kept_bytes = 0;   // for the backward, of one micro-batch
};

struct Certificate {
  // Seconds of this plan as the search counts them: each family pays for its own ways from a
  // hand-out, and starting a bundle is free. Without the latter, never below the prediction.
  double cost = 0;
  // No plan that fits is faster, of the ways to split and to recompute that the search compared; 0:
  // not known.
  double lower_bound = 0;
  double gap() const {
    return lower_bound > 0 ? cost / lower_bound - 1 : std::numeric_limits<double>::infinity();
  }
};

// What the search compared on its way, and what came of it.
struct Candidate {
  Mesh mesh;                       // of one stage; its axes named as in a plan, where one was found
  int32_t stages = 1, chunks = 1;  // chunks: a stage
  ScheduleKind schedule = ScheduleKind::kOneForwardOneBackward;
  int64_t micro_batches = 1;
  double cost = 0;                                        // seconds; infinite when nothing fits
  double compute_seconds = 0, communication_seconds = 0;  // of its plan; 0: there is none
  double lower_bound = 0;
  int64_t peak_bytes = 0;
  bool planned = false;  // in full; else the cost is an estimate of the search's, which tends low
  std::string why_not;   // empty when it was chosen
};

// How the model is cut over time. Every stage has a mesh of its own, all of one shape: rank
// s * mesh.size() + r of the program is rank r of stage s.
struct Pipeline {
  ScheduleKind schedule = ScheduleKind::kOneForwardOneBackward;
  int32_t stages = 1;
  int32_t chunks = 1;                 // a stage
  std::vector<int32_t> chunk_of;      // by node, see RewrittenGraph; empty: one stage
  std::vector<ChunkSeconds> seconds;  // by chunk: of one micro-batch
  double step_seconds = 0;            // of the schedule, without the update; 0: one stage

  int32_t stage_of(NodeId n) const {
    return chunk_of.empty() ? 0 : chunk_of[static_cast<size_t>(n)] % stages;
  }
};

// What was fixed before the search, besides pins.
struct Asked {
  std::string mesh;            // as MeshRequest says it; empty: chosen
  double memory_limit = 0;     // bytes a device; 0: the cluster's own; infinite: none
  bool micro_batches = false;  // as many as the graph had; else the search divided the step
  bool least_memory = false;   // the smallest peak, not the fastest step
};

// A plan for a graph: the traced one as `rewrite` changes it.
struct Plan {
  Rewrite rewrite;
  Pipeline pipeline;
  Mesh mesh;                    // of one stage; axes named by the role that came out
  std::vector<AxisRole> roles;  // as asked for
  Cluster cluster;
  std::shared_ptr<const Dimensions> dimensions;
  std::vector<NodePlan> nodes;            // by node
  std::vector<std::vector<Form>> values;  // by value: its forms; none when it is never needed
  std::vector<int32_t> final_form;        // by source: the form of `final` that is kept
  std::vector<bool> on_host;              // by source: a state that lies in the host's memory
  std::vector<int32_t> output_form;       // by graph output
  std::vector<std::vector<AxisOption>> choices;  // by node: of its family; empty for followers
  std::map<Value, Placements> held;              // the held form of every value that several read
  std::vector<PlannedCollectives> collectives;
  int zero = 0;  // ZeRO stage over the batch axis: 0, 1 (states), 3 (parameters)
  int64_t kept = 0, regathered = 0;  // values read again in the backward: gathered form kept, or
                                     // gathered a second time
  Costing costing;                   // under which it was found
  std::vector<GroupLoad> loads;      // by group of the costing
  Prediction predicted;
  Certificate certificate;
  double search_seconds = 0;
  std::vector<std::string> pins;  // what was fixed before the search, as written
  Asked asked;
  std::vector<Candidate> candidates;

  Layout layout(Value v, int32_t form) const;
};

// The layout of a value under these placements.
Layout layout_of(const Dimensions& dimensions, Value v, Placements placements);

}  // namespace cleave
