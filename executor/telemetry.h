// What a training run tells, in all its places: lines, a progress bar, and in the run's folder
// config.toml, plan.json, metrics.jsonl and TensorBoard's events.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "executor/metrics_file.h"
#include "executor/progress_bar.h"
#include "executor/run_info.h"
#include "executor/step_record.h"
#include "executor/tensorboard.h"

namespace cleave {

struct TelemetryOptions {
  std::string out_dir;      // the run's folder; empty: nothing is written
  bool resume = false;      // the folder may hold a run already, which goes on
  bool tensorboard = true;  // with a folder: events in it
  int64_t log_every = 1;    // steps between lines
  Progress progress = Progress::kAuto;
  LogSink lines;  // null: stdout
};

// "auto", "on", "off". Throws Error on anything else.
Progress progress_named(std::string_view name);

// One run. Functions are called by one thread, in the order of the run. A disk that fills up does
// not end it: a line says so once, metrics are kept and written when there is room again, and
// events end.
class Telemetry {
 public:
  // Makes the folder and sees that it can be written, before anything costs time. Throws Error when
  // it cannot, or when it holds the steps of a run that `resume` does not go on with.
  explicit Telemetry(TelemetryOptions options);
  Telemetry(const Telemetry&) = delete;
  ~Telemetry();  // without begin(): what the constructor made is gone again

  // Puts a file into the run's folder, whole or not at all: "config.toml". Before begin() it is
  // kept until then, so that a run that cannot begin leaves the folder as it was.
  void put(const std::string& name, std::string_view text);
  // The header lines. A resumed run's metrics.jsonl loses what is of first_step or later. Throws
  // Error when the folder cannot be written.
  void begin(const RunInfo& info);
  // A line when one is due: every log_every steps, at the last, and when its update was skipped.
  void step(const StepRecord& record);
  void evaluation(const EvaluationRecord& record);
  // A line of its own, at any time.
  void note(std::string_view text);
  // What was predicted and what was measured; the bar is gone after it. Throws Error when lines of
  // metrics.jsonl could not be written until now.
  void summary(const TrainResult& result, const Plan& plan);

  const RunInfo& info() const { return info_; }

 private:
  void write_now(const std::string& name, std::string_view text) const;
  void metrics_written(bool written);
  void write_events(int64_t step, std::span<const Scalar> scalars);
  void line(const std::string& text);
  void draw_bar(const StepRecord& record);

  TelemetryOptions options_;
  RunInfo info_;
  std::vector<std::string> made_;  // by the constructor, innermost last
  MetricsFile metrics_;
  bool begun_ = false;
  bool metrics_late_ = false;               // lines that are not in the file have been told of
  std::map<std::string, std::string> put_;  // until begin()
  std::optional<EventWriter> events_;
  ProgressBar bar_;
  std::map<std::string, int64_t> skipped_;  // updates, by reason
  double tokens_ = 0;                       // since the run's first step
  int64_t steps_done_ = 0;                  // by this process
  std::chrono::steady_clock::time_point began_;
};

}  // namespace cleave
