#include "executor/metrics_file.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoint/file_io.h"
#include "graph/error.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;  // numbers that are not finite become null

// A line of the file; null where it is none, as the last one may be after a crash.
Json parse_line(const std::string& line) {
  Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  return json.is_object() ? json : Json();
}

bool is_step(const Json& line) {
  return line.contains("loss") && line.contains("step") && line["step"].is_number_integer();
}

// Of the step that a line is about; -1: of none, or of all.
int64_t step_of(const Json& line) {
  const auto at = line.find("step");
  return at != line.end() && at->is_number_integer() ? at->get<int64_t>() : -1;
}

Json collectives_json(const std::vector<CollectiveCount>& counts, const Mesh& mesh) {
  Json list = Json::array();
  for (const CollectiveCount& c : counts) {
    list.push_back({{"kind", name_of(c.kind)},
                    {"axis", c.axis < 0 ? "pipeline" : mesh.axes[static_cast<size_t>(c.axis)].name},
                    {"count", c.count},
                    {"bytes", c.bytes}});
  }
  return list;
}

double total_bytes(const std::vector<CollectiveCount>& counts) {
  double sum = 0;
  for (const CollectiveCount& c : counts) sum += c.bytes;
  return sum;
}

}  // namespace

MetricsFile::MetricsFile(std::string path) : path_(std::move(path)) { open(); }

void MetricsFile::open() {
  file_ = std::ofstream(path_, std::ios::app);
  if (!file_) fail("cannot write '{}'; name an output folder that can be written", path_);
}

bool MetricsFile::holds_steps() const {
  std::ifstream file(path_);
  for (std::string line; std::getline(file, line);) {
    if (is_step(parse_line(line))) return true;
  }
  return false;
}

KeptMetrics MetricsFile::keep_before(int64_t first_step) {
  KeptMetrics kept;
  if (path_.empty()) return kept;
  file_.close();
  AtomicFile fresh(path_);
  std::ifstream old(path_);
  for (std::string line; std::getline(old, line);) {
    const Json json = parse_line(line);
    const int64_t step = step_of(json);
    // What has no step is about the whole run, which is not at its end any more.
    if (step < 0 || step >= first_step || old.eof()) {  // at its end without a newline: cut off
      ++kept.dropped;
      continue;
    }
    fresh.writer().write(line + "\n");
    if (!is_step(json)) continue;
    kept.last_step = step;
    if (json.contains("tokens") && json["tokens"].is_number()) kept.tokens = json["tokens"];
    if (json.contains("skipped") && json["skipped"].is_string()) {
      ++kept.skipped[json["skipped"].get<std::string>()];
    }
  }
  fresh.commit();
  open();
  return kept;
}

bool MetricsFile::line(const std::string& text) {
  if (path_.empty()) return true;
  std::error_code error;
  if (late_.empty()) {
    bytes_ = static_cast<int64_t>(std::filesystem::file_size(path_, error));
    if (error) bytes_ = -1;
  }
  late_ += text + "\n";
  if (!file_.is_open()) file_.open(path_, std::ios::app);
  file_ << late_ << std::flush;
  if (file_) {
    late_.clear();
    return true;
  }
  // Without the part of a line that there was room for.
  file_.close();
  file_.clear();
  if (bytes_ >= 0) std::filesystem::resize_file(path_, static_cast<uintmax_t>(bytes_), error);
  return false;
}

bool MetricsFile::write(const StepRecord& r, double tokens) {
  Json json = {{"step", r.step},
               {"loss", r.loss},
               {"grad_norm", r.grad_norm},
               {"lr", r.lr},
               {"step_seconds", r.seconds},
               {"tokens_per_second", r.tokens_per_second},
               {"mfu", r.mfu},
               {"tokens", tokens}};
  if (!r.skipped.empty()) json["skipped"] = r.skipped;
  return line(json.dump());
}

bool MetricsFile::write(const EvaluationRecord& r) {
  return line(Json{{"step", r.step}, {"val_loss", r.loss}}.dump());
}

bool MetricsFile::write_summary(const TrainResult& r, const Plan& plan,
                                const std::map<std::string, int64_t>& skipped, double mfu) {
  const Prediction& p = plan.predicted;
  const double seconds = r.median_seconds;
  const Json predicted = {{"step_seconds", p.step_seconds},
                          {"tokens_per_second", p.tokens_per_second},
                          {"peak_bytes", p.peak_bytes},
                          {"bytes", total_bytes(r.planned)},
                          {"collectives", collectives_json(r.planned, plan.mesh)}};
  const Json measured = {{"step_seconds", seconds},
                         {"tokens_per_second", seconds > 0 ? r.tokens_per_step / seconds : 0},
                         {"mfu", mfu},
                         {"peak_bytes", r.arena_bytes},
                         {"bytes", total_bytes(r.executed)},
                         {"collectives", collectives_json(r.executed, plan.mesh)}};
  return line(Json{{"summary",
                    {{"steps", r.steps.size()},
                     {"skipped", skipped},
                     {"predicted", predicted},
                     {"measured", measured}}}}
                  .dump());
}

}  // namespace cleave
