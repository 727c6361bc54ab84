#include "cli/planning.h"

#include <limits>

#include "cli/format.h"
#include "executor/lower.h"
#include "graph/error.h"

namespace cleave {
namespace {

// A batch that dp does not divide could only be replicated, which nobody means by it.
void check_batch(const Graph& graph, const MeshRequest& mesh) {
  for (size_t a = 0; a < mesh.sizes.size(); ++a) {
    if (mesh.roles[a] != AxisRole::kData) continue;
    for (const Source& s : graph.sources()) {
      if (s.roles.empty() || s.roles[0] != "batch") continue;
      const int64_t batch = graph.type(s.value).shape[0];
      if (batch % mesh.sizes[a] == 0) continue;
      fail("--mesh dp={}: the batch of {} does not divide by it; try --batch {}", mesh.sizes[a],
           batch, (batch / mesh.sizes[a] + 1) * mesh.sizes[a]);
    }
  }
}

}  // namespace

PlannerOptions planner_options(const Graph& graph, const std::string& mesh,
                               const std::string& memory) {
  PlannerOptions options;
  if (!mesh.empty()) options.mesh = parse_mesh(mesh);
  check_batch(graph, options.mesh);
  if (memory == "none") {
    options.memory_limit = std::numeric_limits<double>::infinity();
  } else if (!memory.empty()) {
    options.memory_limit = parse_bytes(memory, "--memory");
  }
  options.live_bytes = [&graph](const Plan& plan) { return live_bytes(graph, plan); };
  options.peak_bytes = [&graph](const Plan& plan) { return peak_bytes(graph, plan); };
  return options;
}

double memory_limit(const PlannerOptions& options, const Cluster& cluster) {
  return options.memory_limit > 0 ? options.memory_limit : cluster.device.memory;
}

void throw_no_plan(const std::string& model, const Cluster& cluster, const PlannerOptions& options,
                   const PlanResult& result) {
  if (result.smallest_peak <= 0) {
    fail("{} cannot be split over {} as asked; leave out --mesh, or change the batch", model,
         cluster.spec);
  }
  const double limit = memory_limit(options, cluster);
  const double peak = static_cast<double>(result.smallest_peak);
  throw DoesNotFit(fmt::format(
      "{} does not fit on {}: the smallest peak found is {} a device, the limit is {}, so {} too "
      "much; use more devices, a smaller batch, or --memory none to see the plan anyway",
      model, cluster.spec, bytes_text(peak), bytes_text(limit), bytes_text(peak - limit)));
}

}  // namespace cleave
