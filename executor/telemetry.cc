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
      metrics_(metrics_in(options_.out_dir)),
      bar_(bar_terminal(options_.progress)) {
  if (!options_.resume && metrics_.holds_steps()) {
    fail("'{}' holds a run already; --resume goes on with it, or name another folder",
         options_.out_dir);
  }
}

void Telemetry::put(const std::string& name, std::string_view text) const {
  if (options_.out_dir.empty()) return;
  AtomicFile file(options_.out_dir + "/" + name);
  file.writer().write(text);
  file.commit();
}

void Telemetry::begin(const RunInfo& info) {
  info_ = info;
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
  metrics_.write(r, tokens_);
  const int64_t resident = peak_resident_bytes();
  if (events_) {
    const std::array<Scalar, 6> scalars = {{{"train/loss", r.loss},
                                            {"train/grad_norm", r.grad_norm},
                                            {"train/lr", r.lr},
                                            {"perf/tokens_per_second", r.tokens_per_second},
                                            {"perf/mfu", r.mfu},
                                            {"memory/peak_bytes", static_cast<double>(resident)}}};
    events_->write(r.step, scalars);
  }
  const bool due = r.step == info_.steps || !r.skipped.empty() ||
                   (options_.log_every > 0 && r.step % options_.log_every == 0);
  if (due) line(log_line(r, info_, resident));
  draw_bar(r);
}

void Telemetry::evaluation(const EvaluationRecord& r) {
  metrics_.write(r);
  if (events_) {
    const std::array<Scalar, 1> scalars = {{{"val/loss", r.loss}}};
    events_->write(r.step, scalars);
  }
  line(log_line(r, info_));
}

void Telemetry::note(std::string_view text) { line(std::string(text)); }

void Telemetry::summary(const TrainResult& result, const Plan& plan) {
  bar_.finish();
  metrics_.write_summary(result, plan, skipped_, info_.mfu(result.median_seconds));
  for (const std::string& text : summary_lines(result, plan, info_, skipped_)) line(text);
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
