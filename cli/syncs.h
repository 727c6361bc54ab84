// The synchronizations of a plan, grouped over equal layers: what is sent, where in the model, how
// often, and what it costs.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"
#include "planner/plan.h"

namespace cleave {

struct Sync {
  StepKind kind = StepKind::kAllReduce;
  int32_t axis = 0;
  Phase phase = Phase::kForward;
  bool before = false;       // on the way to an op; else after one
  bool bundled = false;      // joined with others of its kind
  std::string name;          // of the op or parameter, layers folded: "h.*.mlp.proj.matmul"
  std::string place;         // in the model's source: "gpt2.cc:29"
  int32_t stage = 0;         // of the pipeline: what follows is of one device of it
  int64_t places = 1;        // in the model: layers of the stage
  int64_t count = 0;         // in a step
  double bytes = 0;          // sent by the device in a step, all together
  double seconds = 0;        // in a step, all together
  NodeId example = kNoNode;  // one of the ops
};

// Those of one stage of the pipeline, those that take longest first: of the busiest one. `only`: of
// these nodes and what they read, empty: all; where the busiest stage has none of them, of the
// stage that spends most on them.
std::vector<Sync> syncs_of(const Graph& graph, const Plan& plan,
                           const std::vector<NodeId>& only = {});

// "all-reduce over tp after h.*.mlp.proj.matmul (gpt2.cc:29)"
std::string text_of(const Sync& sync, const Plan& plan);

}  // namespace cleave
