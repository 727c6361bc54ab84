// What a plan's report says of time and layers: the busiest stage, what waits, what is computed
// again, and candidates in words.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "graph/graph.h"
#include "planner/plan.h"

namespace cleave {

// "h.3.attn.qkv": layers "h", number 3, inside "attn"; without a number: the scope's first part.
struct LayerName {
  std::string layers, inside;
  int32_t number = -1;
};
LayerName layer_name(const std::string& scope);

// Seconds of a step of the stage that is busy longest; with one stage, of the step.
struct StageTime {
  int32_t stage = 0;
  double compute = 0, communication = 0;
  double waiting = 0;  // for other stages
  // What the communication adds up from: by the name of an axis, collectives; copies of states to
  // the host and back; cutting what a device has whole.
  struct Sent {
    double seconds = 0, bytes = 0;
  };
  std::map<std::string, Sent> axes;
  double host = 0, cutting = 0;
};
StageTime busiest_stage(const Graph& graph, const Plan& plan);

// "pp 4 × dp 2 × tp 4", without axes of one device.
std::string mesh_words(const Mesh& mesh, int32_t stages);
// "ZeRO 3", "ZeRO 3 for 57 % of the weights", "ZeRO 1 for 80 % of the optimizer states"; empty:
// none.
std::string zero_words(const Graph& graph, const Plan& plan);
// "pp 4 × dp 2, 8 micro-batches": of what the search compared.
std::string words_of(const Candidate& candidate);
// What the search compared and did not choose: planned in full first, then estimated, then what has
// no plan; each by its seconds.
std::vector<const Candidate*> beaten(const Plan& plan);
// "2.9 % slower: 57 ms computing, 5 ms communicating", "estimated, not planned: at best
// 0.6 % slower", or why it has no plan.
std::string why_not(const Candidate& candidate, const Plan& chosen);

// The nodes of the backward that compute again what the forward did, by node: the one that they
// repeat; kNoNode: they do not.
std::vector<NodeId> repeated_nodes(const Graph& graph, const Plan& plan);

// What is computed again, as "20 of 32 layers whole; attn of 12 layers", and the seconds
// that takes the busiest stage in a step. Empty: nothing.
struct Recomputed {
  std::string words;
  double seconds = 0;
  int32_t stage = 0;
};
Recomputed recomputed(const Graph& graph, const Plan& plan);

// One stage of a pipeline, as its report shows it.
struct StageRow {
  int32_t first = 0, last = 0;       // stages that are alike
  std::string holds;                 // "embed, layers 0-7"
  double forward = 0, backward = 0;  // seconds of one micro-batch, all chunks
  double in_flight = 1;              // micro-batches whose values are kept
  // All step: weights, states, what gradients add up in, copies made once a step. Kept for the
  // backward: of all micro-batches in flight.
  int64_t state_bytes = 0, kept_bytes = 0;
};
std::vector<StageRow> stage_rows(const Graph& graph, const Plan& plan);

}  // namespace cleave
