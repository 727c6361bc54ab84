#include "cli/plan_again.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "planner/arrangements.h"
#include "planner/pins.h"

namespace cleave {
namespace {

// As a shell reads it.
std::string word(const std::string& text) {
  return text.find_first_of(" *()?'\"$;&|<>~#") == std::string::npos ? text : "'" + text + "'";
}

// The plan's own pins that say what its arrangement does not.
std::vector<std::string> pins_besides(const Plan& plan) {
  std::vector<std::string> kept;
  for (const std::string& text : plan.pins) {
    const Pins one = parse_pins(std::vector<std::string>{text}, "--pin");
    if (one.zero || one.recompute || one.offload || !one.placements.empty() || !one.nodes.empty()) {
      kept.push_back(text);
    }
  }
  return kept;
}

}  // namespace

std::string exact_bytes(double bytes) {
  if (std::isinf(bytes)) return "none";
  constexpr std::pair<double, const char*> kUnits[] = {
      {1073741824, "GiB"}, {1e9, "GB"}, {1048576, "MiB"}, {1e6, "MB"}};
  for (const auto& [unit, name] : kUnits) {
    if (std::fmod(bytes, unit) == 0) return fmt::format("{:.0f}{}", bytes / unit, name);
  }
  return fmt::format("{:.0f}B", bytes);
}

std::string PlanAgain::text() const { return fmt::format("{}", fmt::join(options, " ")); }

PlanAgain plan_again(const TracedModel& model, const Plan& plan) {
  PlanAgain again;
  MeshRequest mesh;
  for (const MeshAxis& a : plan.mesh.axes) mesh.sizes.push_back(a.size);
  mesh.roles = plan.roles;
  again.options.push_back("--mesh " + mesh.to_string());
  std::vector<std::string> pins;
  const Pipeline& p = plan.pipeline;
  if (p.stages > 1) {
    pins.push_back(fmt::format("pp={}", p.stages));
    pins.push_back(fmt::format("schedule={}", name_of(p.schedule)));
    if (p.chunks > 1) pins.push_back(fmt::format("chunks={}", p.chunks));
  }
  if (model.spec.training) pins.push_back(fmt::format("micro={}", model.graph.micro_batches));
  for (const std::string& pin : pins_besides(plan)) pins.push_back(word(pin));
  if (!pins.empty()) again.options.push_back(fmt::format("--pin {}", fmt::join(pins, " ")));
  if (plan.asked.memory_limit > 0) {
    again.options.push_back("--memory " + exact_bytes(plan.asked.memory_limit));
  }
  const Pins own = parse_pins(plan.pins, "--pin");
  const auto& prices = plan.costing.prices;
  again.exact = (plan.rewrite.remade.empty() || own.recompute || !own.nodes.empty()) &&
                std::all_of(prices.begin(), prices.end(), [](const auto& m) { return m.free(); }) &&
                std::count(plan.on_host.begin(), plan.on_host.end(), true) == 0;
  return again;
}

std::string command_of(const TracedModel& model, const Plan& plan) {
  const ModelSpec& s = model.spec;
  std::string text = "cleave plan " + s.name;
  if (!s.set.empty()) text += fmt::format(" --set {}", fmt::join(s.set, " "));
  text += fmt::format(" --batch {}", model.config.batch * model.graph.micro_batches);
  text += fmt::format(" --precision {}", precision_name(s.dtype));
  if (s.optimizer.kind != OptimizerOptions{}.kind) {
    text += fmt::format(" --optimizer {}", name_of(s.optimizer.kind));
  }
  if (!s.training) text += " --forward";
  return fmt::format("{} --cluster {} {}", text, word(plan.cluster.spec),
                     plan_again(model, plan).text());
}

}  // namespace cleave
