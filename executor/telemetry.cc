#include "executor/telemetry.h"

#include <array>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "checkpoint/file_io.h"
#include "executor/log_line.h"
#include "graph/error.h"

namespace cleave {
namespace {

// What there is to be made, outermost first: the folder, those that it is in, and a file in it.
std::vector<std::string> missing_in(const std::string& folder) {
  std::vector<std::string> missing;
  if (folder.empty()) return missing;
  std::error_code error;
  std::filesystem::path path = std::filesystem::path(folder) / "metrics.jsonl";
  for (; !path.empty() && !std::filesystem::exists(path, error); path = path.parent_path()) {
    if (error || path == path.parent_path()) break;
    if (path.has_filename()) missing.insert(missing.begin(), path.string());
  }
  return missing;
}

MetricsFile metrics_in(const std::string& folder) {
  if (folder.empty()) return MetricsFile();
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    fail("cannot make the output folder '{}': {}; name one that can be written", folder,
         error.message());
  }
  return MetricsFile(folder + "/metrics.jsonl");
}

}  // namespace

Progress progress_named(std::string_view name) {
  if (name == "auto") return Progress::kAuto;
  if (name == "on") return Progress::kOn;
  if (name == "off") return Progress::kOff;
  fail("there is no progress '{}'; write auto, on or off", name);
}

Telemetry::Telemetry(TelemetryOptions options)
    : options_(std::move(options)),
      made_(missing_in(options_.out_dir)),
      metrics_(metrics_in(options_.out_dir)),
      bar_(bar_terminal(options_.progress)) {
  if (!options_.resume && metrics_.holds_steps()) {
    fail("'{}' holds a run already; --resume goes on with it, or name another folder",
         options_.out_dir);
  }
}

Telemetry::~Telemetry() {
  if (begun_) return;
  std::error_code ignored;  // what is not empty stays
  for (; !made_.empty(); made_.pop_back()) std::filesystem::remove(made_.back(), ignored);
}

void Telemetry::put(const std::string& name, std::string_view text) {
  if (options_.out_dir.empty()) return;
  if (begun_) {
    write_now(name, text);
  } else {
    put_[name] = text;
  }
}

void Telemetry::write_now(const std::string& name, std::string_view text) const {
  AtomicFile file(options_.out_dir + "/" + name);
  file.writer().write(text);
  file.commit();
}

void Telemetry::begin(const RunInfo& info) {
  info_ = info;
  begun_ = true;
  for (const auto& [name, text] : put_) write_now(name, text);
  const KeptMetrics kept = metrics_.keep_before(info.first_step);
  skipped_ = kept.skipped;
  const auto before = static_cast<double>(info.first_step - 1);
  tokens_ = kept.last_step == info.first_step - 1 ? kept.tokens : before * info.tokens_per_step;
  if (options_.tensorboard && !options_.out_dir.empty()) {
    events_.emplace(options_.out_dir, info.first_step);
  }
  for (const std::string& text : header_lines(info)) line(text);
  if (!options_.out_dir.empty() && kept.last_step != info.first_step - 1) {
    line(fmt::format("metrics.jsonl ends at step {}: the steps up to {} are missing",
                     kept.last_step, info.first_step - 1));
  }
  began_ = std::chrono::steady_clock::now();
}

void Telemetry::step(const StepRecord& r) {
  tokens_ += info_.tokens_per_step;
  ++steps_done_;
  if (!r.skipped.empty()) ++skipped_[r.skipped];
  metrics_written(metrics_.write(r, tokens_));
  const int64_t resident = peak_resident_bytes();
  if (events_) {
    const std::array<Scalar, 6> scalars = {{{"train/loss", r.loss},
                                            {"train/grad_norm", r.grad_norm},
                                            {"train/lr", r.lr},
                                            {"perf/tokens_per_second", r.tokens_per_second},
                                            {"perf/mfu", r.mfu},
                                            {"memory/peak_bytes", static_cast<double>(resident)}}};
    write_events(r.step, scalars);
  }
  const bool due = r.step == info_.steps || !r.skipped.empty() ||
                   (options_.log_every > 0 && r.step % options_.log_every == 0);
  if (due) line(log_line(r, info_, resident));
  draw_bar(r);
}

void Telemetry::evaluation(const EvaluationRecord& r) {
  metrics_written(metrics_.write(r));
  if (events_) {
    const std::array<Scalar, 1> scalars = {{{"val/loss", r.loss}}};
    write_events(r.step, scalars);
  }
  line(log_line(r, info_));
}

void Telemetry::note(std::string_view text) { line(std::string(text)); }

void Telemetry::summary(const TrainResult& result, const Plan& plan) {
  bar_.finish();
  const bool written =
      metrics_.write_summary(result, plan, skipped_, info_.mfu(result.median_seconds));
  for (const std::string& text : summary_lines(result, plan, info_, skipped_)) line(text);
  if (!written) {
    fail("the last lines of '{}' could not be written; is the disk full?", metrics_.path());
  }
}

// Told when it begins and when it is over, not at every step.
void Telemetry::metrics_written(bool written) {
  if (written != metrics_late_) return;
  metrics_late_ = !written;
  line(written
           ? fmt::format("'{}' has all lines again", metrics_.path())
           : fmt::format("warning: cannot write '{}': is the disk full? its lines are kept, and "
                         "written when there is room",
                         metrics_.path()));
}

void Telemetry::write_events(int64_t step, std::span<const Scalar> scalars) {
  try {
    events_->write(step, scalars);
  } catch (const Error& e) {
    events_.reset();
    line(fmt::format("warning: {} TensorBoard's events end here", e.what()));
  }
}

// The bar is off the screen while the line is written, and back below it.
void Telemetry::line(const std::string& text) {
  bar_.erase();
  if (options_.lines) {
    options_.lines(text);
  } else {
    fmt::print("{}\n", text);
    std::fflush(stdout);
  }
  bar_.redraw();
}

void Telemetry::draw_bar(const StepRecord& r) {
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - began_;
  const double each = passed.count() / static_cast<double>(steps_done_);  // with its evaluations
  bar_.draw({r.step, info_.steps, r.loss, r.tokens_per_second,
             each * static_cast<double>(info_.steps - r.step)});
}

}  // namespace cleave
