// A plan made and explained through the library: where each parameter lies, what devices tell each
// other and when, how good the plan is, and what it was compared with.
#include <fmt/format.h>

#include "cli/format.h"
#include "executor/lower.h"
#include "planner/planner.h"
#include "tracer/nn.h"
#include "tracer/optimizer.h"

using namespace cleave;  // NOLINT(build/namespaces)

namespace {

// Two towers that meet: a ranking model, of no family that cleave has a name for.
Tensor towers() {
  constexpr int64_t kBatch = 1024, kFeatures = 2048, kInner = 16384, kShared = 512;
  const Tensor user = data("user", {kBatch, kFeatures}, DType::kF32, {"batch", ""});
  const Tensor item = data("item", {kBatch, kFeatures}, DType::kF32, {"batch", ""});
  const auto tower = [](const char* name, const Tensor& x) {
    const Scope scope(name);
    const Linear up("up", kFeatures, kInner), down("down", kInner, kShared);
    return down(gelu(up(x)));  // [batch, shared]
  };
  const Tensor difference = tower("users", user) - tower("items", item);
  return mean(square(difference));
}

}  // namespace

int main() {
  const Graph graph = trace_training_step("towers", towers, {});
  const Cluster cluster = parse_cluster("8xh100");
  PlannerOptions options;
  options.peak_bytes = stage_peak_bytes;
  const PlanResult result = find_plan(graph, cluster, options);
  if (!result.plan) {
    fmt::print("nothing fits; the smallest peak is {}\n",
               bytes_text(static_cast<double>(result.smallest_peak)));
    return 3;
  }

  const Plan& plan = *result.plan;
  fmt::print("mesh {}, {} a step, peak {} a device\n", plan.mesh.to_string(),
             seconds_text(plan.predicted.step_seconds),
             bytes_text(static_cast<double>(plan.predicted.peak_bytes)));
  fmt::print("no plan that was searched can be faster by more than {}\n\n",
             percent_text(plan.certificate.gap()));

  Table where({"source", "whole", "on one device", "placement"});
  for (const Source& source : graph.sources()) {
    if (source.kind == SourceKind::kState) continue;  // the optimizer's, which lie as these do
    const Layout layout = plan.layout(source.value, 0);
    where.add({source.name, to_string(layout.global_shape()),
               to_string(layout.local_shape(plan.mesh)), to_string(layout, plan.mesh)});
  }
  fmt::print("{}\n", where.to_string());

  Table said({"collective", "axis", "phase", ">count", ">bytes sent"});
  for (const PlannedCollectives& c : plan.collectives) {
    said.add({std::string(name_of(c.kind)), plan.mesh.axes[static_cast<size_t>(c.axis)].name,
              std::string(name_of(c.phase)), fmt::format("{}", c.count), bytes_text(c.bytes)});
  }
  fmt::print("{}\n", said.to_string());

  Table tried({"mesh", "outcome"});
  for (const Candidate& c : plan.candidates) {
    tried.add({c.mesh.to_string(), c.why_not.empty() ? "chosen" : c.why_not});
  }
  fmt::print("{}", tried.to_string());
}
