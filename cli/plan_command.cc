// cleave plan
#include <cstdio>

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/plan_file.h"
#include "cli/plan_report.h"
#include "cli/planning.h"
#include "graph/error.h"

namespace cleave {

void plan_command(const PlanArguments& a) {
  const Cluster cluster = parse_cluster(a.cluster);
  // Devices that multiply bf16 faster are used so.
  const bool fast_bf16 = cluster.peak_flops(DType::kBF16) > cluster.peak_flops(DType::kF32);
  const ModelSpec spec = spec_of(a.model, fast_bf16 ? DType::kBF16 : DType::kF32);
  const TracedModel model = trace_model(spec, a.model.user);
  const PlannerOptions options = planner_options(model.graph, a.mesh, a.memory);
  const PlanResult result = find_plan(model.graph, cluster, options);
  const double limit = memory_limit(options, cluster);
  if (!result.plan) {
    if (a.json) fmt::print("{}", no_plan_text(model, cluster, limit, result));
    throw_no_plan(model.spec.name, model.graph, cluster, options, result);
  }
  const bool text_needed = a.json || !a.out.empty();
  const std::string text = text_needed ? plan_file_text(model, *result.plan) : "";
  if (!a.out.empty()) write_file(a.out, text);
  if (a.json) {
    fmt::print("{}", text);
    return;
  }
  fmt::print("{}", plan_report(model, *result.plan, limit, colours_wanted()));
  if (!a.out.empty()) fmt::print("\nwritten to {}\n", a.out);
}

}  // namespace cleave
