// The lines of a training run, in columns that stay where they are.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "executor/run_info.h"
#include "executor/step_record.h"

namespace cleave {

// "step 12/60 | loss  2.4187 | grad norm     0.81 | lr 3.00e-04 |    12,345 tokens/s | MFU  43.1 %
// | 512 MiB", with "| skipped: loss spike" behind it for an update that was not made.
// resident_bytes: 0: not told.
std::string log_line(const StepRecord& record, const RunInfo& info, int64_t resident_bytes);
// "step 60/60 | val loss  2.3012"
std::string log_line(const EvaluationRecord& record, const RunInfo& info);
// What a step is, and what MFU is the share of.
std::vector<std::string> header_lines(const RunInfo& info);
// What the plan predicted, what was measured, and how many updates were skipped.
std::vector<std::string> summary_lines(const TrainResult& result, const Plan& plan,
                                       const RunInfo& info,
                                       const std::map<std::string, int64_t>& skipped);

}  // namespace cleave
