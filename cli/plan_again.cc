#include "cli/plan_again.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "cli/plan_parts.h"
#include "planner/arrangements.h"
#include "planner/pins.h"

namespace cleave {
namespace {

// As a shell reads it.
std::string word(const std::string& text) {
  constexpr std::string_view kPlain =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./:=,@%+-";
  if (!text.empty() && text.find_first_not_of(kPlain) == std::string::npos) return text;
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  return quoted + "'";
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

// Whether pins name every op that is computed again.
bool names_remade(const Pins& pins, const TracedModel& model, const Plan& plan) {
  if (plan.rewrite.remade.empty() || pins.recompute) return true;
  if (pins.nodes.empty()) return false;
  const NodePins named = node_pins(pins, model.graph);
  const std::vector<NodeId> repeats = repeated_nodes(model.graph, plan);
  return std::all_of(repeats.begin(), repeats.end(), [&](NodeId n) {
    return n == kNoNode || named.remade[static_cast<size_t>(n)] == 1;
  });
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
  // The limits that were tried to find it are not all known, and the last alone need not lead
  // there: the same is asked again.
  if (plan.asked.least_memory) {
    if (!plan.asked.mesh.empty()) again.options.push_back("--mesh " + plan.asked.mesh);
    std::vector<std::string> pins;
    for (const std::string& pin : plan.pins) pins.push_back(word(pin));
    if (plan.asked.micro_batches)
      pins.push_back(fmt::format("micro={}", model.graph.micro_batches));
    if (!pins.empty()) again.options.push_back(fmt::format("--pin {}", fmt::join(pins, " ")));
    if (plan.asked.memory_limit > 0) {
      again.options.push_back("--memory " + exact_bytes(plan.asked.memory_limit));
    }
    again.options.push_back("--objective memory");
    return again;
  }
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
  again.exact = names_remade(own, model, plan) &&
                std::all_of(prices.begin(), prices.end(), [](const auto& m) { return m.free(); }) &&
                std::count(plan.on_host.begin(), plan.on_host.end(), true) == 0;
  return again;
}

std::vector<std::string> model_options(const TracedModel& model) {
  const ModelSpec& s = model.spec;
  std::vector<std::string> options;
  std::string set;
  for (const std::string& assignment : s.set) {
    if (!assignment.starts_with("batch=")) set += " " + word(assignment);  // --batch says it
  }
  if (!set.empty()) options.push_back("--set" + set);
  options.push_back(fmt::format("--batch {}", model.config.batch * model.graph.micro_batches));
  options.push_back(fmt::format("--precision {}", precision_name(s.dtype)));
  if (s.optimizer.kind != OptimizerOptions{}.kind) {
    options.push_back(fmt::format("--optimizer {}", name_of(s.optimizer.kind)));
  }
  if (s.optimizer.moments) options.push_back(fmt::format("--moments {}", moments_name(s)));
  if (!s.training) options.emplace_back("--forward");
  return options;
}

std::string command_of(const TracedModel& model, const Plan& plan) {
  return fmt::format("cleave plan {} {} --cluster {} {}", word(model.spec.name),
                     fmt::join(model_options(model), " "), word(plan.cluster.spec),
                     plan_again(model, plan).text());
}

}  // namespace cleave
