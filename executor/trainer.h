// Trains a model as its plan says: lowers the plan, runs it step by step on this machine's threads,
// and reports what was predicted beside what was measured.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "executor/communicator.h"
#include "data/token_data.h"
#include "graph/graph.h"
#include "planner/plan.h"

namespace cleave {

// The loss alone, with its own plan: what is run on the validation part of the data. Its parameters
// are those of the same names in the training graph.
struct Evaluation {
  const Graph* graph = nullptr;
  const Plan* plan = nullptr;
};

struct TrainOptions {
  int64_t steps = 1;
  uint64_t seed = 0;
  int64_t vocab = 256;  // of the model
  Targets targets = Targets::kNextToken;
  Evaluation evaluation;       // without a graph: no validation loss
  int64_t eval_every = 0;      // steps between evaluations; 0: at the end only
  int64_t eval_batches = 16;   // at most, of one evaluation
  int64_t log_every = 1;       // steps between log lines
  std::string out_dir;         // empty: nothing is written
  std::string plan_json;       // written to out_dir/plan.json as it is; empty: no such file
  bool compare_ranks = false;  // compare the outputs of all ranks bit by bit after each step
};

struct StepRecord {
  int64_t step = 0;  // from 1
  double loss = 0, grad_norm = 0, lr = 0;
  double seconds = 0;  // wall-clock, of the program alone
  double tokens_per_second = 0;
  double mfu = 0;            // share of the peak: see executor/run_info.h
  std::string skipped = {};  // why the update was left out: "loss spike"; empty: it was made
};

struct EvaluationRecord {
  int64_t step = 0;  // after which it was made
  double loss = 0;
};

struct TrainResult {
  std::vector<StepRecord> steps;
  std::vector<EvaluationRecord> evaluations;
  std::vector<CollectiveCount> planned, executed;  // of one step, by kind and axis
  int64_t arena_bytes = 0;                         // of one rank: the program's peak
  double tokens_per_step = 0;
  double median_seconds = 0;  // of a step; the first is left out when it can be
};

// Receives one log line at a time, without its end.
using LogSink = std::function<void(const std::string&)>;

// Trains the graph, whose data are "tokens" and "targets" and whose outputs "loss", "grad_norm" and
// "lr", for options.steps steps. Each step takes the next batch of `data`. Every line of
// out_dir/metrics.jsonl is a JSON object: one a step, one an evaluation, and a summary at the end.
// Throws Error when the data do not fit the model, when out_dir cannot be written (both before
// training), or when the loss is not finite any more; InternalError when a step executes other
// collectives than the plan's.
TrainResult train(const Graph& graph, const Plan& plan, const TokenData& data,
                  const TrainOptions& options, const LogSink& log);

// The collectives of one step that the plan promises, ordered by kind, then axis.
std::vector<CollectiveCount> planned_collectives(const Plan& plan);

// Throws InternalError, naming both, unless they are the same up to the rounding of sums of bytes.
void expect_planned(const std::vector<CollectiveCount>& executed, const Plan& plan);

}  // namespace cleave
