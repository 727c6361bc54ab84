// Trains a model as its plan says: lowers the plan, runs it step by step on this machine's threads,
// saves checkpoints, and tells what was predicted beside what was measured.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "data/token_data.h"
#include "executor/communicator.h"
#include "executor/fuse.h"
#include "executor/runtime.h"
#include "executor/step_record.h"
#include "executor/telemetry.h"
#include "graph/graph.h"
#include "planner/plan.h"

namespace cleave {

// The loss alone, with its own plan: what is run on the validation part of the data. Its parameters
// are those of the same names in the training graph.
struct Evaluation {
  const Graph* graph = nullptr;
  const Plan* plan = nullptr;
};

struct Checkpoints {
  std::string folder;      // empty: none are written
  int64_t every = 0;       // steps between them; 0: at the end, and when the run is stopped
  int64_t keep = 3;        // so many of the newest; 0: all
  std::string job = "{}";  // a JSON object of the caller's, whose fields are in each one's run.json
};

struct TrainOptions {
  int64_t steps = 1;  // of the whole run, those before a checkpoint among them
  uint64_t seed = 0;
  int64_t vocab = 256;  // of the model
  Targets targets = Targets::kNextToken;
  Evaluation evaluation;      // without a graph: no validation loss
  int64_t eval_every = 0;     // steps between evaluations; 0: at the end only
  int64_t eval_batches = 16;  // at most, of one evaluation
  Checkpoints checkpoints;
  const Checkpoint* resume = nullptr;  // go on from here; written on any mesh
  // Standard deviations above the mean of the latest steps' losses, or gradient norms, that make a
  // spike, whose update is left out; 0: none is. The graph must have limits (tracer/optimizer.h).
  double spike_deviations = 0;
  // Run a step whose numbers are not finite once more, to tell which op made the first one.
  bool find_nonfinite = false;
  std::function<bool()> stop;  // asked before each step; true: save and return
  Processor processor = Processor::kCpu;
  bool tf32 = false;                 // of a GPU: products of f32 in TF32
  std::vector<std::string> no_fuse;  // of a GPU's program: fusions that are not made (fuse.h)
  F8Options f8;                      // of a GPU's program; not of the evaluation
  bool compare_ranks = false;        // compare the outputs of all ranks bit by bit after each step
  // Read a step's results while the next one runs, where nothing goes by them before.
  bool late = false;
  // Called with the first steps that were recorded (StepResult::runs); the last call is the one to
  // keep.
  std::function<void(const Program&, const StepResult&)> profiled;
  std::function<void(const Program&)> ready;  // called with the program when the run begins
};

// So many updates in a row left out end the run.
inline constexpr int kMostSkipped = 20;

// Trains the graph, whose data are "tokens" and "targets" and whose outputs "loss", "grad_norm",
// "lr" and "clip". Each micro-batch takes the next samples of `data`. A step whose loss or gradient
// is not finite, or a spike, leaves weights and optimizer as they were, and is told of. Throws
// Error when the data or the checkpoint do not fit the model (before training), when the last
// checkpoint cannot be written, or when kMostSkipped updates in a row were left out; InternalError
// when a step executes other collectives than the plan's.
TrainResult train(const Graph& graph, const Plan& plan, const TokenData& data,
                  const TrainOptions& options, Telemetry& telemetry);

// The collectives of one step that the plan promises, ordered by kind, then axis.
std::vector<CollectiveCount> planned_collectives(const Plan& plan);

// Throws InternalError, naming both, unless they are the same up to the rounding of sums of bytes.
// Sends between the stages of a pipeline are left out: the program promises those.
void expect_planned(const std::vector<CollectiveCount>& executed, const Plan& plan);

}  // namespace cleave
