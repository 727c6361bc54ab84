// cleave plan
#include <cstdio>

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/plan_file.h"
#include "cli/plan_report.h"
#include "cli/planned.h"
#include "cli/planning.h"
#include "graph/error.h"

namespace cleave {
namespace {

// `notes`: lines about how the objective was met.
Planned as_wanted(const PlanRequest& request, const std::string& objective,
                  std::vector<std::string>& notes) {
  if (objective == "memory") return with_least_memory(request);
  if (objective == "gpus") return on_fewest_devices(request, notes);
  return planned(request);
}

}  // namespace

void plan_command(const PlanArguments& a) {
  const PlanRequest request = request_of(a.model, a.cluster, a.mesh, a.memory, a.pins);
  std::vector<std::string> smaller;
  Planned p = as_wanted(request, a.objective, smaller);
  if (!p.result.plan && static_cast<double>(p.result.smallest_peak) <= p.limit) {
    // What never came near enough to be planned in full.
    replace_by_nearest(request, p);
  }
  if (!p.result.plan) {
    if (a.json) fmt::print("{}", no_plan_text(*p.model, request.cluster, p.limit, p.result));
    throw_no_plan(p.model->spec.name, p.model->graph, request.cluster, p.options, p.result);
  }
  const Plan& plan = *p.result.plan;
  const bool text_needed = a.json || !a.out.empty();
  const std::string text = text_needed ? plan_file_text(*p.model, plan) : "";
  if (!a.out.empty()) write_file(a.out, text);
  if (a.json) {
    fmt::print("{}", text);
    return;
  }
  fmt::print("{}", plan_report(*p.model, plan, p.limit, colours_wanted()));
  const std::string note = precision_note(a.model, plan.cluster);
  if (!note.empty()) fmt::print("\nprecision {}\n", note);
  if (a.objective == "gpus") {
    fmt::print("\nfewest    {} devices of {}\n", plan.cluster.size(), request.cluster.size());
    for (const std::string& line : smaller) fmt::print("          {}\n", line);
  }
  if (!a.out.empty()) fmt::print("\nwritten to {}\n", a.out);
}

}  // namespace cleave
