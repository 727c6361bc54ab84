#include "cli/comparison.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "cli/format.h"
#include "cli/memory_parts.h"
#include "cli/plan_parts.h"
#include "cli/syncs.h"
#include "graph/error.h"

namespace cleave {
namespace {

constexpr double kSmallestShare = 5e-3;  // of the step, or the peak: worth a line

std::string signed_text(double x, bool bytes) {
  const std::string text = bytes ? bytes_text(std::abs(x)) : seconds_text(std::abs(x));
  return (x < 0 ? "- " : "+ ") + text;
}

std::string value_text(const Measure& m, double x) {
  if (x == 0) return "-";
  return m.bytes ? bytes_text(x) : seconds_text(x);
}

// The synchronization that one plan spends most on along an axis.
std::string most_of(const TracedModel& model, const Plan& plan, const std::string& axis) {
  for (const Sync& s : syncs_of(model.graph, plan)) {
    if (plan.mesh.axes[static_cast<size_t>(s.axis)].name != axis) continue;
    return fmt::format("{}{}{}, {}", text_of(s, plan),
                       s.places > 1 ? fmt::format(" ×{}", s.places) : "",
                       s.place.empty() ? "" : " (" + s.place + ")", seconds_text(s.seconds));
  }
  return "";
}

}  // namespace

std::string plan_words(const Graph& graph, const Plan& plan) {
  std::string text = mesh_words(plan.mesh, plan.pipeline.stages);
  if (plan.zero > 0) text += ", " + zero_words(graph, plan);
  if (plan.pipeline.stages > 1) text += fmt::format(", {}", name_of(plan.pipeline.schedule));
  if (plan.pipeline.chunks > 1) text += fmt::format(" of {} chunks", plan.pipeline.chunks);
  if (graph.micro_batches > 1) text += fmt::format(", {} micro-batches", graph.micro_batches);
  if (!plan.rewrite.remade.empty()) {
    text += fmt::format(", {} ops recomputed", plan.rewrite.remade.size());
  }
  const auto offloaded = std::count(plan.on_host.begin(), plan.on_host.end(), true);
  if (offloaded > 0) text += fmt::format(", {} optimizer states on the host", offloaded);
  return text;
}

std::vector<Measure> measures(const TracedModel& model_a, const Plan& a, const TracedModel& model_b,
                              const Plan& b) {
  const StageTime time_a = busiest_stage(model_a.graph, a);
  const StageTime time_b = busiest_stage(model_b.graph, b);
  std::vector<Measure> result = {
      {"step", false, a.predicted.step_seconds, b.predicted.step_seconds},
      {"  computing", false, time_a.compute, time_b.compute}};
  std::map<std::string, std::pair<double, double>> axes;
  for (const auto& [axis, sent] : time_a.axes) axes[axis].first = sent.seconds;
  for (const auto& [axis, sent] : time_b.axes) axes[axis].second = sent.seconds;
  for (const auto& [axis, s] : axes) {
    result.push_back({fmt::format("  sending over {}", axis), false, s.first, s.second});
  }
  result.push_back({"  cutting what is whole", false, time_a.cutting, time_b.cutting});
  result.push_back({"  states to the host and back", false, time_a.host, time_b.host});
  result.push_back({"  waiting for stages", false, time_a.waiting, time_b.waiting});
  const MemoryParts m = memory_parts(model_a.graph, a), n = memory_parts(model_b.graph, b);
  const auto number = [](int64_t x) { return static_cast<double>(x); };
  result.push_back({"memory of a device", true, number(m.peak), number(n.peak)});
  for (const auto& [name, x, y] : {std::tuple("  weights", m.weights, n.weights),
                                   std::tuple("  optimizer", m.optimizer, n.optimizer),
                                   std::tuple("  gradients", m.gradients, n.gradients),
                                   std::tuple("  activations", m.activations, n.activations),
                                   std::tuple("  weight copies", m.copies, n.copies),
                                   std::tuple("  working", m.working, n.working)}) {
    result.push_back({name, true, number(x), number(y)});
  }
  std::erase_if(result, [](const Measure& x) { return x.a == 0 && x.b == 0; });
  return result;
}

std::vector<std::string> reasons(const TracedModel& model_a, const Plan& a,
                                 const TracedModel& model_b, const Plan& b) {
  std::vector<std::pair<double, std::string>> lines;  // by what they weigh
  const double least = kSmallestShare * a.predicted.step_seconds;
  const StageTime time_a = busiest_stage(model_a.graph, a);
  const StageTime time_b = busiest_stage(model_b.graph, b);
  const double compute = time_b.compute - time_a.compute;
  if (std::abs(compute) >= least) {
    lines.emplace_back(std::abs(compute),
                       fmt::format("it computes {} {}", seconds_text(std::abs(compute)),
                                   compute > 0 ? "longer" : "less"));
  }
  std::map<std::string, StageTime::Sent> change;
  for (const auto& [axis, sent] : time_a.axes) {
    change[axis].seconds -= sent.seconds, change[axis].bytes -= sent.bytes;
  }
  for (const auto& [axis, sent] : time_b.axes) {
    change[axis].seconds += sent.seconds, change[axis].bytes += sent.bytes;
  }
  for (const auto& [axis, sent] : change) {
    const double s = sent.seconds, bytes = sent.bytes;
    if (std::abs(s) < least) continue;
    const std::string most = s > 0 ? most_of(model_b, b, axis) : most_of(model_a, a, axis);
    std::string line = fmt::format("over {} it sends for {} {} ({} {})", axis,
                                   seconds_text(std::abs(s)), s > 0 ? "longer" : "less",
                                   bytes_text(std::abs(bytes)), bytes >= 0 ? "more" : "less");
    if (!most.empty()) line += fmt::format("; most {}: {}", s > 0 ? "there" : "saved", most);
    lines.emplace_back(std::abs(s), line);
  }
  const double host = time_b.host - time_a.host, cutting = time_b.cutting - time_a.cutting;
  if (std::abs(host) >= least) {
    lines.emplace_back(std::abs(host),
                       fmt::format("optimizer states go to the host and back {} {}",
                                   seconds_text(std::abs(host)), host > 0 ? "longer" : "less"));
  }
  if (std::abs(cutting) >= least) {
    lines.emplace_back(std::abs(cutting), fmt::format("it cuts what devices have whole {} {}",
                                                      seconds_text(std::abs(cutting)),
                                                      cutting > 0 ? "longer" : "less"));
  }
  const double bubble = time_b.waiting - time_a.waiting;
  if (std::abs(bubble) >= least) {
    lines.emplace_back(std::abs(bubble),
                       fmt::format("its stages wait for each other {} {}",
                                   seconds_text(std::abs(bubble)), bubble > 0 ? "longer" : "less"));
  }
  std::stable_sort(lines.begin(), lines.end(),
                   [](const auto& x, const auto& y) { return x.first > y.first; });
  std::vector<std::string> result;
  for (auto& [weight, line] : lines) result.push_back(std::move(line));
  const double memory = static_cast<double>(b.predicted.peak_bytes - a.predicted.peak_bytes);
  if (std::abs(memory) >= kSmallestShare * static_cast<double>(a.predicted.peak_bytes)) {
    result.push_back(fmt::format("it needs {} {} memory a device", bytes_text(std::abs(memory)),
                                 memory > 0 ? "more" : "less"));
  }
  return result;
}

std::string measures_table(const std::vector<Measure>& all, std::string_view name_a,
                           std::string_view name_b, bool colour) {
  Table table({"", ">" + std::string(name_a), ">" + std::string(name_b), ">difference"});
  for (const Measure& m : all) {
    const double d = m.b - m.a;
    const bool same = std::abs(d) <= 1e-6 * std::max(std::abs(m.a), std::abs(m.b));
    table.add(
        {m.name, value_text(m, m.a), value_text(m, m.b), same ? "same" : signed_text(d, m.bytes)});
  }
  return table.to_string(colour);
}

}  // namespace cleave
