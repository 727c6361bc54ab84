#include "executor/log_line.h"

#include <cmath>

#include "executor/prediction.h"
#include "graph/error.h"
#include "graph/number_text.h"

namespace cleave {
namespace {

std::string step_text(int64_t step, const RunInfo& info) {
  const std::string last = std::to_string(info.steps);
  return fmt::format("step {:>{}}/{}", step, last.size(), last);
}

// "12.3 GFLOP"
std::string flops_text(double flops) {
  static constexpr const char* kUnits[] = {"FLOP", "KFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"};
  size_t unit = 0;
  while (flops >= 999.5 && unit + 1 < std::size(kUnits)) flops /= 1000, ++unit;
  return fmt::format("{:.3g} {}", flops, kUnits[unit]);
}

// Attention masks something, so that the two ways of counting differ.
bool masks(const ModelWork& work) { return work.full > work.causal; }

// "43.1 %", and "43.1 % (45.2 %)" where attention is causal
std::string mfu_text(const RunInfo& info, double seconds) {
  const double mfu = info.mfu(seconds);
  if (!masks(info.work)) return percent_text(mfu);
  return fmt::format("{} ({})", percent_text(mfu),
                     percent_text(mfu * info.work.full / info.work.causal));
}

std::string collectives_text(const std::vector<CollectiveCount>& counts) {
  double bytes = 0;
  int64_t count = 0;
  for (const CollectiveCount& c : counts) bytes += c.bytes, count += c.count;
  return count == 0 ? "no collectives"
                    : fmt::format("{} in {} collectives", bytes_text(bytes), count);
}

}  // namespace

std::string log_line(const StepRecord& r, const RunInfo& info, int64_t resident_bytes) {
  std::string line =
      fmt::format("{} | loss {:>7.4f} | grad norm {:>8.3g} | lr {:.2e} | {:>9} tokens/s",
                  step_text(r.step, info), r.loss, r.grad_norm, r.lr,
                  with_commas(std::round(r.tokens_per_second)));
  if (info.peak.flops > 0) line += fmt::format(" | MFU {:>7}", percent_text(r.mfu));
  if (resident_bytes > 0) {
    line += fmt::format(" | {:>8}", bytes_text(static_cast<double>(resident_bytes)));
  }
  if (!r.skipped.empty()) line += " | skipped: " + r.skipped;
  return line;
}

std::string log_line(const EvaluationRecord& r, const RunInfo& info) {
  return fmt::format("{} | val loss {:>7.4f}", step_text(r.step, info), r.loss);
}

std::vector<std::string> header_lines(const RunInfo& info) {
  std::vector<std::string> lines;
  const std::string beside =
      info.evaluation_bytes == 0
          ? ""
          : fmt::format(" and {} for validation",
                        bytes_text(static_cast<double>(info.evaluation_bytes)));
  lines.push_back(fmt::format(
      "a step: {} tokens, {}; memory: {}{} a device; a line ends with the process's peak",
      with_commas(info.tokens_per_step), flops_text(info.work.causal),
      bytes_text(static_cast<double>(info.arena_bytes)), beside));
  if (info.peak.flops > 0) {
    lines.push_back(fmt::format("MFU: {}of {}/s: {}",
                                masks(info.work) ? "causal (full in brackets), " : "",
                                flops_text(info.peak.flops), info.peak.basis));
  } else if (!info.peak.basis.empty()) {
    lines.push_back(
        fmt::format("predicted for {}; there is no MFU then: cleave calibrate measures the machine",
                    info.peak.basis));
  }
  return lines;
}

std::vector<std::string> summary_lines(const TrainResult& r, const Plan& plan, const RunInfo& info,
                                       const std::map<std::string, int64_t>& skipped) {
  const Prediction& p = plan.predicted;
  const std::string mfu =
      info.peak.flops > 0 ? " | MFU " + mfu_text(info, r.median_seconds) : std::string();
  std::vector<std::string> lines = {
      fmt::format("predicted | {} a step | {} tokens/s | {} a device | {}",
                  seconds_text(p.step_seconds), with_commas(p.tokens_per_second),
                  bytes_text(static_cast<double>(p.peak_bytes)), collectives_text(r.planned)),
      fmt::format(
          "measured  | {} a step (median, {}) | {} tokens/s | {} a device ({}) | {}{}",
          seconds_text(r.median_seconds), beyond_prediction(p.step_seconds, r.median_seconds),
          with_commas(info.tokens_per_second(r.median_seconds)),
          bytes_text(static_cast<double>(r.arena_bytes)),
          beyond_prediction(p.peak_bytes, r.arena_bytes), collectives_text(r.executed), mfu)};
  if (skipped.empty()) return lines;
  int64_t count = 0;
  std::string reasons;
  for (const auto& [reason, n] : skipped) {
    count += n;
    reasons += fmt::format("{}{} {}", reasons.empty() ? "" : ", ", n, reason);
  }
  lines.push_back(fmt::format("skipped   | {} of {} updates: {}", count, info.steps, reasons));
  return lines;
}

}  // namespace cleave
