// What a training run leaves behind: out_dir/metrics.jsonl, one JSON object a line, and the plan.
#pragma once

#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "executor/communicator.h"
#include "executor/trainer.h"

namespace cleave {

class MetricsWriter {
 public:
  // Makes the folder and begins the files anew; an empty out_dir writes nothing. Throws Error when
  // that cannot be done.
  MetricsWriter(const std::string& out_dir, std::string_view plan_json);

  // Each writes one line, which is in the file when the call returns; throws Error when it is not.
  void write(const StepRecord& record);
  void write(const EvaluationRecord& record);
  void write_summary(const TrainResult& result, const Plan& plan);

 private:
  void line(const std::string& text);

  std::string path_;
  std::ofstream file_;
};

// "step 12/60  loss 2.4187  grad_norm 0.812  lr 3.0e-04  12,345 tok/s"
std::string log_line(const StepRecord& record, int64_t steps);
// "step 60/60  val_loss 2.3012"
std::string log_line(const EvaluationRecord& record, int64_t steps);
// Two lines: what the plan predicted, and what was measured.
std::vector<std::string> log_summary(const TrainResult& result, const Plan& plan);

}  // namespace cleave
