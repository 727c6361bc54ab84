#include "cli/simulate_report.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "cli/format.h"
#include "executor/fuse.h"

namespace cleave {
namespace {

constexpr size_t kWaits = 5;        // lines of what is waited for
constexpr size_t kMostStages = 16;  // in the table; of more, the ends and the busiest
constexpr double kSmallest = 5e-5;  // of a step that is worth a line

std::string share_text(double share) {
  return share <= 0 ? "-" : share < 5e-4 ? "<0.1 %" : percent_text(share);
}

std::string amount(double seconds) { return seconds <= 0 ? "-" : seconds_text(seconds); }

class Report {
 public:
  Report(const TracedModel& model, const Plan& plan, const Program& program,
         const StepTimeline& timeline, bool overlap, bool colour)
      : model_(model),
        plan_(plan),
        program_(program),
        timeline_(timeline),
        overlap_(overlap),
        colour_(colour) {}

  std::string text() {
    head();
    categories();
    if (timeline_.stages.size() > 1) stages();
    waits();
    return std::move(text_);
  }

 private:
  const StageTimeline& critical() const {
    return timeline_.stages[static_cast<size_t>(timeline_.critical)];
  }

  std::string bold(const std::string& text) const {
    return colour_ ? "\033[1m" + text + "\033[0m" : text;
  }

  void line(std::string_view name, const std::string& value) {
    text_ += bold(fmt::format("{:<10}", name)) + value + '\n';
  }

  void head() {
    const Cluster& c = plan_.cluster;
    text_ += bold(describe(model_)) + "   on " +
             bold(c.nodes == 1 ? fmt::format("{} × {}", c.size(), c.device.name)
                               : fmt::format("{} nodes × {} × {}", c.nodes, c.devices_per_node,
                                             c.device.name)) +
             "\n\n";
    line("plan", pipeline() + (plan_.mesh.size() == 1 ? "1 device" : plan_.mesh.to_string()) +
                     (pipeline().empty() ? "" : " each"));
    const std::string fused = fusions_text(program_);
    if (!fused.empty()) line("fused", fused);
    const double tokens = plan_.predicted.tokens_per_second * plan_.predicted.step_seconds;
    line("step",
         fmt::format("{} predicted, {} tokens/s{}", seconds_text(timeline_.seconds),
                     with_commas(tokens / timeline_.seconds),
                     overlap_ ? "" : "; these devices do not communicate while they compute"));
    const StageSeconds& s = critical().seconds;
    if (overlap_ && s.communicating > 0) {
      line("hidden", fmt::format("{} of {} of communication beside computation",
                                 percent_text(1 - std::min(1.0, s.communication / s.communicating)),
                                 seconds_text(s.communicating)));
    }
    line("memory", fmt::format("{} a device at its peak", bytes_text(static_cast<double>(peak()))));
  }

  // "4 stages x 2 chunks, interleaved, 8 micro-batches, "
  std::string pipeline() const {
    const Schedule& s = program_.schedule;
    if (s.stages == 1) return "";
    const std::string chunks = s.chunks == 1 ? "" : fmt::format(" x {} chunks", s.chunks);
    return fmt::format("{} stages{}, {}, {} micro-batches, ", s.stages, chunks, name_of(s.kind),
                       s.micro_batches);
  }

  int64_t peak() const {
    int64_t most = 0;
    for (const StageTimeline& s : timeline_.stages) most = std::max(most, s.peak_bytes);
    return most;
  }

  void categories() {
    const StageSeconds& s = critical().seconds;
    const bool several = timeline_.stages.size() > 1;
    Table table({several ? fmt::format("stage {}, the busiest", timeline_.critical) : "the step",
                 ">seconds", ">share"});
    const auto row = [&](const char* name, double seconds) {
      table.add({name, amount(seconds), share_text(seconds / timeline_.seconds)});
    };
    row("computing", s.compute);
    row("waiting for communication", s.communication);
    if (several) row("waiting for other stages", s.bubble);
    row("optimizer", s.optimizer);
    row("together", s.sum());
    text_ += "\n" + table.to_string(colour_);
  }

  void stages() {
    Table table(
        {">stage", ">computing", ">communication", ">bubble", ">optimizer", ">peak memory"});
    for (size_t i = 0; i < timeline_.stages.size(); ++i) {
      const size_t left = timeline_.stages.size() - i;
      if (timeline_.stages.size() > kMostStages && i >= kMostStages - 1 && left > 1 &&
          i != static_cast<size_t>(timeline_.critical)) {
        if (i == kMostStages - 1) table.add({"...", "", "", "", "", ""});
        continue;
      }
      const StageTimeline& s = timeline_.stages[i];
      table.add({fmt::format("{}", i), amount(s.seconds.compute), amount(s.seconds.communication),
                 amount(s.seconds.bubble), amount(s.seconds.optimizer),
                 bytes_text(static_cast<double>(s.peak_bytes))});
    }
    text_ += "\n" + table.to_string(colour_);
  }

  // The collectives that computation waits for longest, those of one kind, axis and place in the
  // model's layers together.
  void waits() {
    struct Wait {
      int64_t count = 0;
      double seconds = 0, exposed = 0;
    };
    std::map<std::string, Wait> by_name;
    for (const TimelineEvent& e : critical().events) {
      const Instr& instr = program_.instrs[static_cast<size_t>(e.instr)];
      const bool sends = instr.kind == InstrKind::kSend;
      if (!is_collective(instr.kind) && !sends) continue;
      const std::string name =
          sends ? fmt::format("messages to other stages, {}", name_of(instr.part))
                : fmt::format("{} over {}, {}", name_of(instr.kind),
                              program_.mesh.axes[static_cast<size_t>(instr.axis)].name,
                              instr.bundled ? "gradients and parameters" : name_of(instr.part));
      Wait& w = by_name[name];
      ++w.count, w.seconds += e.seconds, w.exposed += e.exposed;
    }
    std::vector<std::pair<std::string, Wait>> all(by_name.begin(), by_name.end());
    std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) {
      return std::pair(a.second.exposed, a.second.seconds) >
             std::pair(b.second.exposed, b.second.seconds);
    });
    Table table({"communication", ">times", ">each", ">together", ">waited for"});
    Wait others;
    size_t kinds = 0;
    for (size_t i = 0; i < all.size(); ++i) {
      const Wait& w = all[i].second;
      if (i >= kWaits || w.seconds < kSmallest * timeline_.seconds) {
        ++kinds;
        others.count += w.count, others.seconds += w.seconds, others.exposed += w.exposed;
        continue;
      }
      table.add({all[i].first, with_commas(static_cast<double>(w.count)),
                 seconds_text(w.seconds / static_cast<double>(w.count)), seconds_text(w.seconds),
                 amount(w.exposed)});
    }
    if (kinds > 0) {
      table.add({fmt::format("{} other kind{}", kinds, kinds == 1 ? "" : "s"),
                 with_commas(static_cast<double>(others.count)), "", seconds_text(others.seconds),
                 amount(others.exposed)});
    }
    if (!table.empty()) text_ += "\n" + table.to_string(colour_);
  }

  const TracedModel& model_;
  const Plan& plan_;
  const Program& program_;
  const StepTimeline& timeline_;
  const bool overlap_, colour_;
  std::string text_;
};

}  // namespace

std::string simulate_report(const TracedModel& model, const Plan& plan, const Program& program,
                            const StepTimeline& timeline, bool overlap, bool colour) {
  return Report(model, plan, program, timeline, overlap, colour).text();
}

std::string simulate_json(const StepTimeline& timeline, bool overlap) {
  std::string text = fmt::format(
      "{{\n  \"step_seconds\": {:.9g},\n  \"overlap\": {},\n  \"busiest_stage\": {},\n  "
      "\"stages\": [\n",
      timeline.seconds, overlap, timeline.critical);
  for (size_t i = 0; i < timeline.stages.size(); ++i) {
    const StageTimeline& s = timeline.stages[i];
    text += fmt::format(
        "    {{\"compute\": {:.9g}, \"exposed_communication\": {:.9g}, \"bubble\": {:.9g}, "
        "\"optimizer\": {:.9g}, \"communication\": {:.9g}, \"peak_bytes\": {}}}{}\n",
        s.seconds.compute, s.seconds.communication, s.seconds.bubble, s.seconds.optimizer,
        s.seconds.communicating, s.peak_bytes, i + 1 < timeline.stages.size() ? "," : "");
  }
  return text + "  ]\n}\n";
}

}  // namespace cleave
