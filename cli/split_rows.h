// A plan in a few rows: which classes are split on which mesh axis, how much of the work that is,
// and which collectives follow.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"
#include "planner/plan.h"

namespace cleave {

// Collectives that follow the ops of one row; equal ones are counted together.
struct After {
  StepKind kind = StepKind::kAllReduce;
  Phase phase = Phase::kForward;
  bool bundled = false;  // joined into few, for all parameters at once
  double bytes = 0;      // sent by one rank, all together
  int64_t count = 0;     // values moved
};

struct SplitRow {
  int32_t axis = 0;
  std::string what;  // the class, layers folded, or words in brackets; empty: not split
  int64_t size = 0;  // of the whole dimension, and of a part; 0: no class
  int64_t local = 0;
  bool weights = false;  // the update, and what is done to weights alone
  int64_t ops = 0;       // that do work: views are free
  double flops_share = 0;
  std::vector<After> after;  // the most bytes first
};

// For each axis the rows with the most work first, then what is not split, then the weights.
std::vector<SplitRow> split_rows(const Graph& graph, const Plan& plan);

}  // namespace cleave
