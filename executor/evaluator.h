// The loss on the validation part of the data, by a program of its own.
#pragma once

#include <cstdint>
#include <memory>

#include "data/token_data.h"
#include "executor/fuse.h"
#include "executor/runtime.h"
#include "graph/graph.h"
#include "planner/plan.h"

namespace cleave {

// A batch into "tokens" and "targets".
void feed(Runtime& runtime, const Batch& batch);

class Evaluator {
 public:
  // `graph`: the loss alone, for batches of its own size. `data` must outlive this, and so must a
  // runtime in whose memory it works (RunOptions::beside): then, on a GPU, it takes none of its
  // own.
  Evaluator(const Graph& graph, const Plan& plan, const TokenData& data, BatchOptions batch,
            int64_t most_batches, Processor processor = Processor::kCpu,
            const FuseOptions& fusing = {}, const RunOptions& options = {});

  bool possible() const { return batches_ > 0; }  // there is something to validate on
  // Of its own memory, beside the training program's; see Runtime.
  int64_t allocated_bytes() const { return runtime_->allocated_bytes(); }
  // With the weights as `trained` has them now.
  double loss(const Runtime& trained);

 private:
  const TokenData& data_;
  BatchOptions batch_;
  int64_t batches_;
  std::unique_ptr<Runtime> runtime_;
};

}  // namespace cleave
