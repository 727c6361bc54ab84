// What a training run reports of each step, each evaluation, and at its end.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "executor/communicator.h"

namespace cleave {

struct StepRecord {
  int64_t step = 0;  // from 1
  double loss = 0, grad_norm = 0, lr = 0;
  double seconds = 0;  // wall-clock, of the program alone, all micro-batches
  double tokens_per_second = 0;
  double mfu = 0;            // share of the peak: see executor/run_info.h
  std::string skipped = {};  // why the update was left out: "loss spike"; empty: it was made
};

struct EvaluationRecord {
  int64_t step = 0;  // after which it was made
  double loss = 0;
};

struct TrainResult {
  std::vector<StepRecord> steps;  // of this process: from a checkpoint on, the later ones
  std::vector<EvaluationRecord> evaluations;
  std::vector<CollectiveCount> planned, executed;  // of one step, by kind and axis
  int64_t arena_bytes = 0;                         // of one rank: the program's peak
  double tokens_per_step = 0;
  double median_seconds = 0;  // of a step; the first is left out when it can be
  bool stopped = false;       // before its last step, because it was asked to
  std::string saved;          // the newest checkpoint's folder; empty: there is none
};

// Receives one log line at a time, without its end.
using LogSink = std::function<void(const std::string&)>;

}  // namespace cleave
