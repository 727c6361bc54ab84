// Ops of a plan as `explain` shows them: equal ops of equal layers together.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"
#include "planner/explain.h"
#include "planner/plan.h"

namespace cleave {

// Ops of the forward with one name but for the layer's number, split alike.
struct OpGroup {
  std::string name;           // "h.*.attn.qkv.matmul"
  std::string place;          // "gpt2.cc:20"
  std::vector<NodeId> nodes;  // of equal layers
};

// The ops of the forward that a pattern names: by their own name, by a scope that they are in, or
// by a parameter that they read. In the order of the forward.
std::vector<OpGroup> op_groups(const Graph& graph, const Plan& plan, const std::string& pattern);

// "dp: batch 8 → 1, tp: heads 16 → 2": of one choice of a node's family. `words`: class_words.
std::string split_text(const Graph& graph, const Plan& plan, const std::vector<std::string>& words,
                       NodeId node, const std::vector<AxisOption>& choice);

}  // namespace cleave
