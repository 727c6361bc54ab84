// metrics.jsonl of a run's folder: one JSON object a line, for each step, each evaluation, and the
// whole run at its end.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <string>

#include "executor/step_record.h"
#include "planner/plan.h"

namespace cleave {

// What was left of a file when a run went on.
struct KeptMetrics {
  int64_t last_step = 0;                   // 0: none
  double tokens = 0;                       // up to it
  std::map<std::string, int64_t> skipped;  // updates, by reason
  int64_t dropped = 0;                     // lines: of later steps, of the run's end, or cut off
};

class MetricsFile {
 public:
  MetricsFile() = default;  // writes nothing

  // Throws Error when the file cannot be opened for writing. A file that is there stays as it is.
  explicit MetricsFile(std::string path);

  const std::string& path() const { return path_; }
  bool holds_steps() const;

  // Continues behind the records of steps below first_step: rewrites the file without the others,
  // at once (a temporary takes its place).
  KeptMetrics keep_before(int64_t first_step);

  // Each writes one line; whether it and all before it are in the file when the call returns. If
  // not, as on a full disk, the file ends with a whole line and the next call tries again.
  bool write(const StepRecord& record, double tokens);
  bool write(const EvaluationRecord& record);
  bool write_summary(const TrainResult& result, const Plan& plan,
                     const std::map<std::string, int64_t>& skipped, double mfu);

 private:
  void open();
  bool line(const std::string& text);

  std::string path_;
  std::ofstream file_;
  std::string late_;    // lines that could not be written yet
  int64_t bytes_ = -1;  // of the file, while there are such lines
};

}  // namespace cleave
