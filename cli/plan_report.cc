#include "cli/plan_report.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "cli/format.h"
#include "cli/split_rows.h"
#include "graph/error.h"

namespace cleave {
namespace {

constexpr size_t kNameWidth = 36;
constexpr size_t kCandidates = 6;

std::string_view words(const std::string& axis) {
  if (axis.starts_with("dp")) return "data parallel";
  if (axis.starts_with("tp")) return "tensor parallel";
  if (axis.starts_with("cp")) return "context parallel";
  return "replicated";
}

std::string mesh_text(const Plan& plan) {
  std::vector<std::string> axes;
  for (const MeshAxis& a : plan.mesh.axes) {
    axes.push_back(a.size == 1 ? "1 device"
                               : fmt::format("{} {} ({})", a.name, a.size, words(a.name)));
  }
  return fmt::format("{}{}", fmt::join(axes, " x "),
                     plan.zero > 0 ? fmt::format(", ZeRO stage {}", plan.zero) : "");
}

std::string cluster_text(const Cluster& c) {
  if (c.nodes == 1) return fmt::format("{}: {} x {}", c.spec, c.size(), c.device.name);
  return fmt::format("{}: {} nodes x {} x {}", c.spec, c.nodes, c.devices_per_node, c.device.name);
}

std::string head(const TracedModel& model, const Plan& plan, double limit) {
  const Prediction& p = plan.predicted;
  const double peak = static_cast<double>(p.peak_bytes);
  std::string text = fmt::format("{}\n", describe(model));
  const auto line = [&](std::string_view name, const std::string& value) {
    text += fmt::format("{:<12}{}\n", name, value);
  };
  line("cluster", cluster_text(plan.cluster));
  line("mesh", mesh_text(plan));
  line("step",
       fmt::format("{} predicted: {} compute + {} communication", seconds_text(p.step_seconds),
                   seconds_text(p.compute_seconds), seconds_text(p.communication_seconds)));
  line("speed", fmt::format("{} tokens/s, MFU {} ({} counting masked attention too)",
                            with_commas(p.tokens_per_second), percent_text(p.mfu_causal),
                            percent_text(p.mfu_full)));
  line("memory",
       fmt::format("{} peak a device, of which {} weights and states; {}", bytes_text(peak),
                   bytes_text(static_cast<double>(p.state_bytes)),
                   std::isinf(limit) ? std::string("no limit")
                                     : fmt::format("limit {} ({} free)", bytes_text(limit),
                                                   bytes_text(limit - peak))));
  const Certificate& c = plan.certificate;
  // What the search leaves out of the cost (starting bundles) is in the step's time.
  line("proof", c.gap() < 5e-7
                    ? fmt::format("optimal: no plan of the space searched costs less than {}, the "
                                  "step without the start of its bundled collectives",
                                  seconds_text(c.cost))
                    : fmt::format("cost {}, lower bound {}, gap {:.2f} %", seconds_text(c.cost),
                                  seconds_text(c.lower_bound), 100 * c.gap()));
  return text;
}

std::string text_of(const After& a) {
  const std::string what = a.bundled ? "bundled " : "";
  const std::string times = a.bundled || a.count == 1 ? "" : fmt::format(" x{}", a.count);
  return fmt::format("{}{} {}{}", what, name_of(a.kind),
                     bytes_text(a.bytes / (a.bundled ? 1.0 : static_cast<double>(a.count))), times);
}

// "forward all-gather 12.6 MiB x24; backward ...": one phase after the other.
std::string text_of(const std::vector<After>& after) {
  std::vector<std::string> phases;
  for (Phase phase : {Phase::kForward, Phase::kBackward, Phase::kUpdate}) {
    std::vector<std::string> parts;
    for (const After& a : after) {
      if (a.phase == phase) parts.push_back(text_of(a));
    }
    if (parts.empty()) continue;
    phases.push_back(fmt::format("{}: {}", name_of(phase), fmt::join(parts, ", ")));
  }
  return phases.empty() ? "-" : fmt::format("{}", fmt::join(phases, "; "));
}

std::string splits(const TracedModel& model, const Plan& plan) {
  Table table({"axis", "split", ">size", ">a part", ">ops", ">flops",
               "collectives after it, bytes sent by a rank"});
  for (const SplitRow& r : split_rows(model.graph, plan)) {
    // What does next to no work and moves nothing would only lengthen the table.
    if (r.flops_share < 5e-4 && r.after.empty() && !r.weights) continue;
    const bool split = !r.what.empty();
    table.add({plan.mesh.axes[static_cast<size_t>(r.axis)].name,
               r.weights ? "(weights, states, update)"
               : split   ? cut(r.what, kNameWidth)
                         : "(not split)",
               r.size > 0 ? fmt::format("{}", r.size) : "",
               r.size > 0 ? fmt::format("{}", r.local) : "", fmt::format("{}", r.ops),
               percent_text(r.flops_share), text_of(r.after)});
  }
  return table.to_string();
}

std::string collectives(const Plan& plan) {
  if (plan.collectives.empty()) return "no collectives\n";
  Table table({"collective", "axis", "phase", "of", ">count", ">bytes/rank", ">time"});
  for (const PlannedCollectives& c : plan.collectives) {
    table.add({std::string(name_of(c.kind)), plan.mesh.axes[static_cast<size_t>(c.axis)].name,
               std::string(name_of(c.phase)),
               c.parameters ? "parameters, gradients" : "activations", fmt::format("{}", c.count),
               bytes_text(c.bytes), seconds_text(c.seconds)});
  }
  return table.to_string();
}

std::string kept(const Plan& plan) {
  if (plan.kept + plan.regathered == 0) return "";
  std::string text =
      fmt::format("gathered for the forward and read in the backward: {} kept", plan.kept);
  if (plan.regathered > 0) {
    text += fmt::format(", {} gathered again ({})", plan.regathered,
                        plan.price.free() ? "which costs no more" : "memory is short");
  }
  return text + "\n";
}

std::string candidates(const Plan& plan) {
  if (plan.candidates.empty()) return "";
  std::vector<const Candidate*> order;
  for (const Candidate& c : plan.candidates) order.push_back(&c);
  std::stable_sort(order.begin(), order.end(),
                   [](const Candidate* a, const Candidate* b) { return a->cost < b->cost; });
  std::vector<std::string> parts;
  for (const Candidate* c : order) {
    if (parts.size() == kCandidates) break;
    std::vector<int64_t> sizes;
    for (const MeshAxis& a : c->mesh.axes) sizes.push_back(a.size);
    parts.push_back(fmt::format(
        "{}: {}", fmt::join(sizes, "x"),
        c->why_not.empty() ? fmt::format("{}, chosen", seconds_text(c->cost)) : c->why_not));
  }
  const size_t more = order.size() - parts.size();
  return fmt::format("{} mesh{} searched in {}: {}{}\n", order.size(),
                     order.size() == 1 ? "" : "es", seconds_text(plan.search_seconds),
                     fmt::join(parts, "; "), more > 0 ? fmt::format("; {} more", more) : "");
}

}  // namespace

std::string plan_report(const TracedModel& model, const Plan& plan, double limit) {
  return head(model, plan, limit) + "\n" + splits(model, plan) + "\n" + collectives(plan) + "\n" +
         kept(plan) + candidates(plan);
}

}  // namespace cleave
