#include "executor/chrome_trace.h"

#include <fmt/format.h>

#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>

#include "executor/typing.h"
#include "graph/error.h"

namespace cleave {
namespace {

std::string json_string(const std::string& text) { return nlohmann::json(text).dump(); }

// Rounded to whole nanoseconds, which both viewers keep: what follows one another in time still
// does.
int64_t nanoseconds(double seconds) { return std::llround(seconds * 1e9); }
std::string microseconds(int64_t nanoseconds) {
  return fmt::format("{}.{:03}", nanoseconds / 1000, nanoseconds % 1000);
}

class Trace {
 public:
  Trace(const Program& program, const Cluster& cluster, const StepTimeline& timeline,
        const MeasuredStep* measured)
      : program_(program), cluster_(cluster), timeline_(timeline), measured_(measured) {}

  std::string text(const std::vector<int64_t>& ranks) {
    fmt::format_to(out(),
                   "{{\"displayTimeUnit\":\"ms\",\"otherData\":{{\"predicted\":true,"
                   "\"step_seconds\":{:.9g}{}}},\n\"traceEvents\":[\n",
                   timeline_.seconds,
                   measured_ == nullptr
                       ? ""
                       : fmt::format(",\"measured_step_seconds\":{:.9g}", measured_->seconds));
    const int64_t stage_ranks = program_.mesh.size();
    for (const int64_t rank : ranks) {
      const StageTimeline& stage = timeline_.stages[static_cast<size_t>(rank / stage_ranks)];
      add_rank(rank, rank, measured_ == nullptr ? "" : "predicted", stage);
    }
    for (const int64_t rank : measured_ == nullptr ? std::vector<int64_t>() : ranks) {
      add_rank(rank, program_.ranks() + rank, "measured",
               measured_->ranks[static_cast<size_t>(rank)]);
    }
    text_ += "\n]}\n";
    return std::move(text_);
  }

 private:
  std::back_insert_iterator<std::string> out() { return std::back_inserter(text_); }

  // Begins an event; what belongs to all of them.
  void begin(char phase, const std::string& name, int64_t process) {
    if (!first_) text_ += ",\n";
    first_ = false;
    fmt::format_to(out(), "{{\"ph\":\"{}\",\"name\":{},\"pid\":{}", phase, json_string(name),
                   process);
  }

  // `process`: the rank's number in the file. `what`: it was predicted, or measured.
  void add_rank(int64_t rank, int64_t process, std::string_view what, const StageTimeline& stage) {
    std::string name = fmt::format("rank {}", rank);
    if (timeline_.stages.size() > 1) {
      name += fmt::format(", stage {}", rank / program_.mesh.size());
    }
    if (!what.empty()) {
      name = program_.ranks() == 1 ? std::string(what) : fmt::format("{}, {}", what, name);
    }
    begin('M', "process_name", process);
    fmt::format_to(out(), ",\"args\":{{\"name\":{}}}}}", json_string(name));
    begin('M', "process_sort_index", process);
    fmt::format_to(out(), ",\"args\":{{\"sort_index\":{}}}}}", process);
    for (int32_t s = 0; s < stream_count(cluster_); ++s) {
      const auto on_it = [&](const TimelineEvent& e) { return e.stream == s; };
      if (std::none_of(stage.events.begin(), stage.events.end(), on_it)) continue;
      begin('M', "thread_name", process);
      fmt::format_to(out(), ",\"tid\":{},\"args\":{{\"name\":{}}}}}", s,
                     json_string(stream_name(cluster_, s)));
      begin('M', "thread_sort_index", process);
      fmt::format_to(out(), ",\"tid\":{},\"args\":{{\"sort_index\":{}}}}}", s, s);
    }
    for (const TimelineEvent& e : stage.events) add_event(e, process);
    int64_t before = -1;
    for (size_t p = 0; p < stage.memory.size(); ++p) {
      // Of several changes at one time the last.
      const MemoryPoint& point = stage.memory[p];
      const int64_t at = nanoseconds(point.time);
      if (p + 1 < stage.memory.size() && nanoseconds(stage.memory[p + 1].time) == at) continue;
      if (point.bytes == before) continue;
      before = point.bytes;
      begin('C', "memory", process);
      fmt::format_to(out(), ",\"ts\":{},\"args\":{{\"bytes\":{}}}}}", microseconds(at),
                     point.bytes);
    }
  }

  void add_event(const TimelineEvent& e, int64_t process) {
    const Instr& instr = program_.instrs[static_cast<size_t>(e.instr)];
    const int64_t start = nanoseconds(e.start), end = nanoseconds(e.start + e.seconds);
    const bool collective = is_collective(instr.kind);
    std::string name(name_of(instr));
    const bool message = instr.kind == InstrKind::kSend || instr.kind == InstrKind::kReceive;
    const bool with_host = copies_with_host(program_, instr);
    if (collective) name += " " + program_.mesh.axes[static_cast<size_t>(instr.axis)].name;
    if (message) name += fmt::format(" chunk {}", instr.peer);
    begin('X', name, process);
    fmt::format_to(out(), ",\"cat\":\"{}\",\"tid\":{},\"ts\":{},\"dur\":{},\"args\":{{",
                   collective || message || with_host ? "communication" : name_of(instr.part),
                   e.stream, microseconds(start), microseconds(end - start));
    fmt::format_to(out(), "\"where\":{}", json_string(instr.where));
    if (program_.stages() > 1) fmt::format_to(out(), ",\"chunk\":{}", instr.chunk);
    if (!once_a_step(instr.part) && program_.micro_batches() > 1)
      fmt::format_to(out(), ",\"micro-batch\":{}", e.micro_batch);
    if (e.bucket >= 0) fmt::format_to(out(), ",\"bucket\":{}", e.bucket);
    text_ += "}}";
  }

  const Program& program_;
  const Cluster& cluster_;
  const StepTimeline& timeline_;
  const MeasuredStep* measured_;
  std::string text_;
  bool first_ = true;
};

}  // namespace

std::string chrome_trace(const Program& program, const Cluster& cluster,
                         const StepTimeline& timeline, const std::vector<int64_t>& ranks,
                         const MeasuredStep* measured) {
  return Trace(program, cluster, timeline, measured).text(ranks);
}

}  // namespace cleave
