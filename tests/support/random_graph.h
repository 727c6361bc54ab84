// Small random models, traced as a user would write them: what the planner is compared on with
// brute force.
#pragma once

#include <random>

#include "graph/graph.h"

namespace cleave::testing {

struct RandomGraphOptions {
  int ops = 4;  // of the forward, besides a loss
  bool training =
      false;          // with a loss, its gradients and an optimizer; else all leaves are outputs
  bool bf16 = false;  // parameters are then read through casts
};

// Products, pointwise ops, norms, reductions, views and compounds over dimensions of 2 to 12. Data
// have roles; nothing is dead.
Graph random_model_graph(std::mt19937& random, const RandomGraphOptions& options);

// A copy of a graph whose backward follows nobody: every node of it is a family of its own.
Graph with_backward_untied(const Graph& graph);

}  // namespace cleave::testing
