#include "executor/metrics.h"

#include <cmath>
#include <filesystem>
#include <system_error>

#include "graph/error.h"

namespace cleave {
namespace {

// Enough digits to read the same number back.
std::string exact(double x) { return fmt::format("{:.17g}", x); }

// "12,345"
std::string with_commas(double x) {
  std::string digits = fmt::format("{:.0f}", x);
  for (size_t at = digits.size(); at > 3;) digits.insert(at -= 3, ",");
  return digits;
}

std::string collectives_json(const std::vector<CollectiveCount>& counts, const Mesh& mesh) {
  std::string text;
  for (const CollectiveCount& c : counts) {
    text += fmt::format(R"({}{{"kind": "{}", "axis": "{}", "count": {}, "bytes": {}}})",
                        text.empty() ? "" : ", ", name_of(c.kind),
                        mesh.axes[static_cast<size_t>(c.axis)].name, c.count, exact(c.bytes));
  }
  return "[" + text + "]";
}

struct Side {  // predicted or measured
  double step_seconds, tokens_per_second;
  int64_t peak_bytes;
  const std::vector<CollectiveCount>& collectives;

  double bytes() const {
    double sum = 0;
    for (const CollectiveCount& c : collectives) sum += c.bytes;
    return sum;
  }
  int64_t count() const {
    int64_t sum = 0;
    for (const CollectiveCount& c : collectives) sum += c.count;
    return sum;
  }
};

Side predicted(const TrainResult& r, const Plan& plan) {
  return {plan.predicted.step_seconds, plan.predicted.tokens_per_second, plan.predicted.peak_bytes,
          r.planned};
}

Side measured(const TrainResult& r) {
  return {r.median_seconds, r.median_seconds > 0 ? r.tokens_per_step / r.median_seconds : 0,
          r.arena_bytes, r.executed};
}

std::string json(const Side& s, const Mesh& mesh) {
  return fmt::format(
      R"({{"step_seconds": {}, "tokens_per_second": {}, "peak_bytes": {}, "bytes": {}, )"
      R"("collectives": {}}})",
      exact(s.step_seconds), exact(s.tokens_per_second), s.peak_bytes, exact(s.bytes()),
      collectives_json(s.collectives, mesh));
}

std::string text(const Side& s) {
  return fmt::format("{:.3g} ms a step  {} tok/s  {:.2f} MiB  {} collectives of {:.2f} MiB",
                     1e3 * s.step_seconds, with_commas(s.tokens_per_second),
                     static_cast<double>(s.peak_bytes) / 1048576, s.count(), s.bytes() / 1048576);
}

}  // namespace

MetricsWriter::MetricsWriter(const std::string& out_dir, std::string_view plan_json) {
  if (out_dir.empty()) return;
  std::error_code error;
  std::filesystem::create_directories(out_dir, error);
  if (error) {
    fail("cannot make the output folder '{}': {}; name one that can be written", out_dir,
         error.message());
  }
  path_ = out_dir + "/metrics.jsonl";
  file_.open(path_, std::ios::trunc);
  if (!file_) fail("cannot write '{}'; name an output folder that can be written", path_);
  if (plan_json.empty()) return;
  const std::string plan_path = out_dir + "/plan.json";
  std::ofstream plan(plan_path, std::ios::trunc);
  plan << plan_json << std::flush;
  if (!plan) fail("cannot write '{}'; name an output folder that can be written", plan_path);
}

void MetricsWriter::line(const std::string& text) {
  if (path_.empty()) return;
  file_ << text << '\n' << std::flush;
  if (!file_) fail("cannot write '{}' any more; is the disk full?", path_);
}

void MetricsWriter::write(const StepRecord& r) {
  line(fmt::format(R"({{"step": {}, "loss": {}, "grad_norm": {}, "lr": {}, "step_seconds": {}, )"
                   R"("tokens_per_second": {}}})",
                   r.step, exact(r.loss), exact(r.grad_norm), exact(r.lr), exact(r.seconds),
                   exact(r.tokens_per_second)));
}

void MetricsWriter::write(const EvaluationRecord& r) {
  line(fmt::format(R"({{"step": {}, "val_loss": {}}})", r.step, exact(r.loss)));
}

void MetricsWriter::write_summary(const TrainResult& r, const Plan& plan) {
  line(fmt::format(R"({{"summary": {{"steps": {}, "predicted": {}, "measured": {}}}}})",
                   r.steps.size(), json(predicted(r, plan), plan.mesh),
                   json(measured(r), plan.mesh)));
}

std::string log_line(const StepRecord& r, int64_t steps) {
  return fmt::format("step {}/{}  loss {:.4f}  grad_norm {:.3f}  lr {:.1e}  {} tok/s", r.step,
                     steps, r.loss, r.grad_norm, r.lr, with_commas(r.tokens_per_second));
}

std::string log_line(const EvaluationRecord& r, int64_t steps) {
  return fmt::format("step {}/{}  val_loss {:.4f}", r.step, steps, r.loss);
}

std::vector<std::string> log_summary(const TrainResult& r, const Plan& plan) {
  return {"predicted  " + text(predicted(r, plan)), "measured   " + text(measured(r))};
}

}  // namespace cleave
