// What fills the memory of one rank at its fullest moment, by the executor's own layout.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "graph/graph.h"
#include "planner/plan.h"

namespace cleave {

// Bytes of one rank. The parts add up to the peak.
struct MemoryParts {
  int64_t weights = 0;      // parameters, kept from step to step
  int64_t optimizer = 0;    // states, kept from step to step
  int64_t copies = 0;       // of weights, for the computation: gathered, in another type
  int64_t gradients = 0;    // of parameters
  int64_t activations = 0;  // made by the forward
  int64_t working = 0;  // made by the backward and the update, kernels' scratch memory, and what
                        // the layout leaves unused
  int64_t peak = 0;
};

// Lowers the plan.
MemoryParts memory_parts(const Graph& graph, const Plan& plan);
// The field "memory" of docs/plan.md.
nlohmann::ordered_json memory_json(const MemoryParts& parts);

}  // namespace cleave
