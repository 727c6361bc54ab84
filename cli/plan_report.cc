#include "cli/plan_report.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "cli/format.h"
#include "cli/memory_parts.h"
#include "cli/plan_again.h"
#include "cli/plan_parts.h"
#include "cli/split_rows.h"
#include "graph/error.h"

namespace cleave {
namespace {

constexpr size_t kWhereWidth = 20;
constexpr size_t kAfterWidth = 34;  // of a line of collectives, and of
constexpr size_t kPartsWidth = 90;  // a line of parts
constexpr size_t kCandidates = 3;
constexpr size_t kMostStages = 8, kHoldsWidth = 38;
constexpr double kSmallestBytes = 1024;  // that are worth a place in the table

std::string_view words(const std::string& axis) {
  if (axis.starts_with("dp")) return "data parallel";
  if (axis.starts_with("tp")) return "tensor parallel";
  if (axis.starts_with("cp")) return "context parallel";
  if (axis.starts_with("ep")) return "expert parallel";
  return "replicated";
}

std::string schedule_words(const Pipeline& p) {
  std::string text = fmt::format("pp {} (pipeline: {}", p.stages, name_of(p.schedule));
  if (p.chunks > 1) text += fmt::format(", {} chunks a stage", p.chunks);
  return text + ")";
}

// Axes and what else was chosen, as parts of a line.
std::vector<std::string> mesh_parts(const Plan& plan) {
  std::vector<std::string> axes;
  if (plan.pipeline.stages > 1) axes.push_back(schedule_words(plan.pipeline));
  for (const MeshAxis& a : plan.mesh.axes) {
    if (a.size > 1) axes.push_back(fmt::format("{} {} ({})", a.name, a.size, words(a.name)));
  }
  if (axes.empty()) axes.push_back("1 device: nothing to split");
  return axes;
}

std::string cluster_text(const Cluster& c) {
  if (c.nodes == 1) return fmt::format("{} × {}", c.size(), c.device.name);
  return fmt::format("{} nodes × {} × {}", c.nodes, c.devices_per_node, c.device.name);
}

std::string proof(const Plan& plan) {
  const Certificate& c = plan.certificate;
  if (c.gap() < 5e-7) return "none of the plans searched is faster: 0.00 % above the lower bound";
  if (c.lower_bound <= 0) return "no lower bound is known";
  // Bounds of pipelines, and where memory binds, know little.
  return fmt::format("at most {:.2f} % slower than any other of the plans searched{} ({})",
                     100 * c.gap(), plan.pins.empty() ? "" : ", as pinned",
                     seconds_text(c.lower_bound));
}

std::string share_text(double share) {
  return share >= 0.005 ? fmt::format("{:.0f} %", 100 * share) : "<1 %";
}

class Report {
 public:
  Report(const TracedModel& model, const Plan& plan, double limit, bool colour)
      : model_(model), plan_(plan), limit_(limit), colour_(colour) {}

  std::string text() {
    head();
    memory();
    stages();
    splits();
    sent();
    others();
    return std::move(text_);
  }

 private:
  std::string bold(const std::string& text) const {
    return colour_ ? "\033[1m" + text + "\033[0m" : text;
  }

  // "step        41 ms": continued lines have no name.
  void line(std::string_view name, const std::string& value) {
    text_ += bold(fmt::format("{:<10}", name)) + value + '\n';
  }

  // Whether axes were given no roles, so that their names are what came out.
  bool axes_are_open(const PlanAgain& again) const {
    return std::any_of(plan_.mesh.axes.begin(), plan_.mesh.axes.end(),
                       [](const MeshAxis& a) { return a.size > 1; }) &&
           std::any_of(again.options.begin(), again.options.end(), [](const std::string& o) {
             return o.starts_with("--mesh") && o.find('=') == std::string::npos;
           });
  }

  void head() {
    const Prediction& p = plan_.predicted;
    text_ += bold(describe(model_)) + "   on " + bold(cluster_text(plan_.cluster)) + "\n\n";
    const auto lines = wrapped(mesh_parts(plan_), " × ", kPartsWidth);
    for (size_t i = 0; i < lines.size(); ++i) line(i == 0 ? "plan" : "", lines[i]);
    const Graph& graph = model_.graph;
    if (plan_.zero > 0) {
      line("", fmt::format("{} ({} in parts)", zero_words(graph, plan_),
                           plan_.zero == 3 ? "weights and optimizer states" : "optimizer states"));
    }
    if (graph.micro_batches > 1) {
      line("", fmt::format("{} micro-batches of {} sequence{} a step", graph.micro_batches,
                           model_.config.batch, model_.config.batch == 1 ? "" : "s"));
    }
    if (!plan_.pins.empty()) {
      const auto pins = wrapped(plan_.pins, ", ", kPartsWidth);
      for (size_t i = 0; i < pins.size(); ++i) line(i == 0 ? "pinned" : "", pins[i]);
    }
    const PlanAgain again = plan_again(model_, plan_);
    std::vector<std::string> same = model_options(model_);
    same.insert(same.end(), again.options.begin(), again.options.end());
    const auto options = wrapped(same, " ", kPartsWidth);
    for (size_t i = 0; i < options.size(); ++i) line(i == 0 ? "same with" : "", options[i]);
    if (!again.exact) line("", "(what memory asks for is then searched anew)");
    if (axes_are_open(again)) {
      line("", "(dp, tp, ... above name what an axis mostly splits: they are no pins)");
    }
    const StageTime t = busiest_stage(graph, plan_);
    std::string step = fmt::format("{} predicted: {} computing", seconds_text(p.step_seconds),
                                   seconds_text(t.compute));
    if (t.communication > 0) {
      step += fmt::format(", {} communicating", seconds_text(t.communication));
    }
    if (plan_.pipeline.stages > 1) {
      step += fmt::format(", {} waiting ({:.0f} % bubble)", seconds_text(t.waiting),
                          100 * t.waiting / p.step_seconds);
    }
    line("step", step);
    line("", fmt::format("{} tokens/s, MFU {} ({} counting masked attention too)",
                         with_commas(p.tokens_per_second), percent_text(p.mfu_causal),
                         percent_text(p.mfu_full)));
    line("bound", proof(plan_));
    if (const std::string note = plan_.cluster.note(); !note.empty()) line("cluster", note);
    const auto offloaded = std::count(plan_.on_host.begin(), plan_.on_host.end(), true);
    if (offloaded > 0) {
      const bool stages = plan_.pipeline.stages > 1;
      double busiest = 0;  // of the stages, seconds
      std::map<size_t, double> seconds;
      for (size_t c = 0; c < plan_.loads.size(); ++c) {
        double& of = seconds[c % static_cast<size_t>(plan_.pipeline.stages)];
        of += plan_.loads[c].host;
        busiest = std::max(busiest, of);
      }
      line("host",
           fmt::format("{} optimizer states lie in the host's memory between updates: {}{}, {}{}",
                       offloaded, bytes_text(static_cast<double>(p.host_bytes)),
                       stages ? " of a device of each stage together" : "",
                       seconds_text(stages ? busiest : p.host_seconds),
                       stages ? " on the busiest" : ""));
    }
    const Recomputed twice = recomputed(graph, plan_);
    if (!twice.words.empty()) {
      const auto again_lines = wrapped("the backward computes again: " + twice.words, kPartsWidth);
      for (size_t i = 0; i < again_lines.size(); ++i) line(i == 0 ? "again" : "", again_lines[i]);
      const std::string stage =
          plan_.pipeline.stages == 1 ? "" : fmt::format(" on stage {}, the busiest", twice.stage);
      line("", fmt::format("{} a step{}", seconds_text(twice.seconds), stage));
    }
  }

  // A row a stage; those in the middle that are alike together.
  void stages() {
    if (plan_.pipeline.stages == 1) return;
    Table table({"stage", "holds", ">forward", ">backward", ">held all step", ">kept", ">for"});
    const std::vector<StageRow> rows = stage_rows(model_.graph, plan_);
    for (size_t i = 0; i < rows.size(); ++i) {
      if (rows.size() > kMostStages && i >= kMostStages / 2 && i + kMostStages / 2 < rows.size()) {
        if (i == kMostStages / 2) table.add({"...", "", "", "", "", "", ""});
        continue;
      }
      const StageRow& r = rows[i];
      const std::vector<std::string> holds = wrapped(r.holds, kHoldsWidth);
      table.add({std::to_string(r.first), holds.empty() ? "" : holds[0], seconds_text(r.forward),
                 seconds_text(r.backward), bytes_text(static_cast<double>(r.state_bytes)),
                 bytes_text(static_cast<double>(r.kept_bytes)),
                 fmt::format("{:.0f} micro", r.in_flight)});
      for (size_t h = 1; h < holds.size(); ++h) table.add({"", holds[h], "", "", "", "", ""});
    }
    text_ += "\n" + table.to_string(colour_);
  }

  void memory() {
    const MemoryParts m = memory_parts(model_.graph, plan_);
    const double peak = static_cast<double>(m.peak);
    line("memory", std::isinf(limit_)
                       ? fmt::format("{} a device at its peak, no limit", bytes_text(peak))
                       : fmt::format("{} a device at its peak, of {}: {} free", bytes_text(peak),
                                     bytes_text(limit_), bytes_text(limit_ - peak)));
    std::vector<std::string> parts;
    for (const auto& [name, bytes] :
         {std::pair("weights", m.weights), std::pair("optimizer", m.optimizer),
          std::pair("gradients", m.gradients), std::pair("activations", m.activations),
          std::pair("weight copies", m.copies), std::pair("working", m.working)}) {
      if (static_cast<double>(bytes) >= 5e-4 * peak) {
        parts.push_back(fmt::format("{} {}", name, bytes_text(static_cast<double>(bytes))));
      }
    }
    for (const std::string& l : wrapped(parts, " + ", kPartsWidth)) line("", l);
  }

  static std::string amount(const After& a) {
    const std::string_view name = name_of(a.kind);
    if (a.count == 1) return fmt::format("{} {}", name, bytes_text(a.bytes));
    if (a.bundled) return fmt::format("{} {} at once", name, bytes_text(a.bytes));
    if (a.equal)
      return fmt::format("{} {} ×{}", name, bytes_text(a.bytes / static_cast<double>(a.count)),
                         a.count);
    return fmt::format("{} {} in {}", name, bytes_text(a.bytes), a.count);
  }

  // What is reduced to parts for the update, and gathered after it, in one line.
  static std::string amounts(const std::vector<After>& all, const After& a) {
    const auto twin = std::find_if(all.begin(), all.end(), [&](const After& b) {
      return b.kind == StepKind::kAllGather && b.phase == a.phase && b.bundled &&
             std::abs(a.bytes - b.bytes) < 1;
    });
    if (!a.bundled || twin == all.end()) return amount(a);
    if (a.kind == StepKind::kReduceScatter) {
      return fmt::format("reduce-scatter + all-gather {}", bytes_text(a.bytes));
    }
    const bool said = std::any_of(all.begin(), all.end(), [&](const After& b) {
      return b.kind == StepKind::kReduceScatter && b.phase == a.phase && b.bundled &&
             std::abs(a.bytes - b.bytes) < 1;
    });
    return a.kind == StepKind::kAllGather && said ? "" : amount(a);
  }

  // One line a phase.
  static std::vector<std::string> after(const SplitRow& row) {
    std::vector<std::string> lines;
    for (Phase phase : {Phase::kForward, Phase::kBackward, Phase::kUpdate}) {
      std::vector<std::string> parts;
      for (const After& a : row.after) {
        if (a.phase != phase || a.bytes < kSmallestBytes) continue;
        if (std::string text = amounts(row.after, a); !text.empty())
          parts.push_back(std::move(text));
      }
      std::string name(name_of(phase));
      for (const std::string& l : wrapped(parts, ", ", kAfterWidth)) {
        lines.push_back(fmt::format("{:<9}{}", name, l));
        name.clear();
      }
    }
    return lines;
  }

  // "heads 16 → 2"
  static std::string sizes(const SplitRow& r) {
    const std::string numbers = fmt::format(" {} → {}", with_commas(static_cast<double>(r.size)),
                                            with_commas(static_cast<double>(r.local)));
    return cut(r.what, kWidest) + numbers;
  }

  std::string what(const SplitRow& r) const {
    switch (r.kind) {
      case SplitRow::Kind::kSplit: return sizes(r);
      case SplitRow::Kind::kWhole: return "whole on each device";
      case SplitRow::Kind::kWeights: break;
    }
    const int64_t parts = plan_.mesh.axes[static_cast<size_t>(r.axis)].size;
    const auto share = [](double cut) { return fmt::format("{:.0f} %", 100 * cut); };
    if (r.weights_cut < 0.005 && r.states_cut < 0.005) return "weights, states: a copy each";
    if (r.weights_cut > 0.995 && r.states_cut > 0.995)
      return fmt::format("weights, states in {} parts", parts);
    return fmt::format("in {}: weights {}, states {}", parts, share(r.weights_cut),
                       share(r.states_cut));
  }

  void splits() {
    const std::vector<SplitRow> rows = split_rows(model_.graph, plan_);
    if (rows.empty()) return;
    const std::string sender =
        plan_.pipeline.stages == 1
            ? "one"
            : fmt::format("one of stage {}", busiest_stage(model_.graph, plan_).stage);
    Table table({"axis", "split", "in", ">work",
                 fmt::format("then devices meet (bytes {} sends)", sender)});
    int32_t axis = -1;
    for (const SplitRow& r : rows) {
      const std::vector<std::string> lines = after(r);
      const bool weights = r.kind == SplitRow::Kind::kWeights;
      const std::vector<std::string> in =
          wrapped(weights ? "gradients, update" : r.where, kWhereWidth);
      table.add({r.axis == axis ? "" : plan_.mesh.axes[static_cast<size_t>(r.axis)].name, what(r),
                 in.empty() ? "" : in[0], weights ? "" : share_text(r.flops_share),
                 !lines.empty()      ? lines[0]
                 : r.meets_elsewhere ? "on other stages"
                                     : "-"});
      for (size_t i = 1; i < std::max(lines.size(), in.size()); ++i) {
        table.add({"", "", i < in.size() ? in[i] : "", "", i < lines.size() ? lines[i] : ""});
      }
      axis = r.axis;
    }
    text_ += "\n" + table.to_string(colour_);
  }

  // What one device of the busiest stage sends in a step, by axis.
  void sent() {
    if (plan_.collectives.empty()) return;
    const int32_t stage = busiest_stage(model_.graph, plan_).stage;
    const std::string of = plan_.pipeline.stages == 1 ? "" : fmt::format(", stage {}", stage);
    Table table({"sent each step" + of, ">activations", ">", ">weights, gradients", ">", "over"});
    for (size_t axis = 0; axis < plan_.mesh.axes.size(); ++axis) {
      double bytes[2] = {}, seconds[2] = {};
      for (const PlannedCollectives& c : plan_.collectives) {
        if (static_cast<size_t>(c.axis) != axis || c.stage != stage) continue;
        bytes[c.parameters] += c.bytes;
        seconds[c.parameters] += c.seconds;
      }
      if (seconds[0] + seconds[1] <= 0) continue;
      const size_t tier = plan_.cluster.tier_of(plan_.mesh, axis);
      table.add({mesh_words({{plan_.mesh.axes[axis]}}, 1), bytes_text(bytes[0]),
                 seconds_text(seconds[0]), bytes_text(bytes[1]), seconds_text(seconds[1]),
                 tier == 0 ? "links within a node" : "links between nodes"});
    }
    text_ += "\n" + table.to_string(colour_);
  }

  void others() {
    if (plan_.candidates.empty()) return;
    const std::vector<const Candidate*> order = beaten(plan_);
    text_ += "\n";
    if (order.empty()) {
      line("others",
           fmt::format("nothing else was searched ({})", seconds_text(plan_.search_seconds)));
      return;
    }
    std::string name = "others";
    for (size_t i = 0; i < std::min(order.size(), kCandidates); ++i) {
      const Candidate& c = *order[i];
      line(name, fmt::format("{:<40}  {}", words_of(c), why_not(c, plan_)));
      name.clear();
    }
    const size_t more = order.size() - std::min(order.size(), kCandidates);
    line("",
         fmt::format("{}{} arrangement{} searched in {}",
                     more > 0 ? fmt::format("and {} more; ", more) : "", plan_.candidates.size(),
                     plan_.candidates.size() == 1 ? "" : "s", seconds_text(plan_.search_seconds)));
    if (plan_.regathered > 0) {
      line("", fmt::format("{} of {} values that both passes gather are gathered twice",
                           plan_.regathered, plan_.kept + plan_.regathered));
    }
  }

  const TracedModel& model_;
  const Plan& plan_;
  const double limit_;
  const bool colour_;
  std::string text_;
};

}  // namespace

std::string plan_report(const TracedModel& model, const Plan& plan, double limit, bool colour) {
  return Report(model, plan, limit, colour).text();
}

}  // namespace cleave
