// A plan in a few rows: which dimensions are split on which mesh axis, where in the model, how much
// of the work that is, and which collectives follow.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"
#include "planner/plan.h"

namespace cleave {

// Collectives of one kind in one phase that follow the ops of one row.
struct After {
  StepKind kind = StepKind::kAllReduce;
  Phase phase = Phase::kForward;
  bool bundled = false;  // joined into few, for all parameters at once
  bool equal = true;     // each sends as many bytes
  double bytes = 0;      // sent by one device in a step, all together
  int64_t count = 0;     // values moved
};

struct SplitRow {
  enum class Kind : uint8_t {
    kSplit,    // along a class of dimensions
    kWhole,    // not split
    kWeights,  // weights, gradients and optimizer states: how they are kept, and moved
  };
  Kind kind = Kind::kSplit;
  int32_t axis = 0;
  std::string what;  // the class in words
  int64_t size = 0;  // of the whole dimension, and of a part
  int64_t local = 0;
  std::string where;  // parts of the model with most of the work: "attn, mlp ×12"
  double flops_share = 0;
  double weights_cut = 0, states_cut = 0;  // kWeights: shares of the bytes that are split
  std::vector<After> after;  // of a device of the pipeline's busiest stage; the most bytes first
  bool meets_elsewhere = false;  // on other stages too
};

// For each axis of more than one device the rows with the most work first, then what is not split,
// then the weights. What does next to no work and moves nothing is left out.
std::vector<SplitRow> split_rows(const Graph& graph, const Plan& plan);

}  // namespace cleave
