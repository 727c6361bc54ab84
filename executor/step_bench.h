// Training steps on random tokens, timed: what `cleave bench` and benchmarks/train_step make.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "executor/runtime.h"
#include "graph/graph.h"

namespace cleave {

// The middle one, and of an even number the mean of the two.
double median(std::vector<double> values);

class StepBench {
 public:
  // `graph`: as the trainer's. Weights are initial ones; tokens are drawn below `vocab`, the same
  // for every step. The graph must outlive this.
  StepBench(const Graph& graph, Program program, int64_t vocab, Processor processor,
            const RunOptions& options = {});

  // One step by itself, with its data: seconds of the clock, and of all threads of this process.
  struct Times {
    double wall = 0, cpu = 0;
  };
  Times step();
  // Seconds from the end of one step to the end of the next, of so many, as a training run has
  // them: on a GPU each is started before the one before it is finished.
  std::vector<double> steps(int64_t count);
  // One step with the times of its instructions, after one that was recorded for the first time.
  StepResult recorded();

  double loss() const { return loss_; }  // of the last step
  const Runtime& runtime() const { return *runtime_; }

 private:
  void start();
  double finish();

  const Graph& graph_;
  // Steps are started before the last one is finished. Not those of several micro-batches: to start
  // one takes as long as it runs, as its data go to a GPU when the micro-batch before has read its
  // own.
  const bool ahead_;
  std::unique_ptr<Runtime> runtime_;
  std::vector<int32_t> tokens_;
  double loss_ = 0;
};

}  // namespace cleave
