#include "cli/planned.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "cli/format.h"
#include "cli/planning.h"
#include "graph/error.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

// Sequences in a step, all micro-batches together.
int64_t sequences_of(const ModelSpec& spec, const UserModel* user) {
  ModelSpec whole = spec;
  config_of(whole, user);  // gives it the batch
  return whole.batch * whole.optimizer.micro_batches;
}

ModelSpec divided(ModelSpec spec, int64_t sequences, int64_t micro_batches) {
  if (sequences % micro_batches != 0) {
    fail("--pin micro={}: the {} sequences of a step do not divide by it", micro_batches,
         sequences);
  }
  spec.batch = sequences / micro_batches;
  spec.optimizer.micro_batches = micro_batches;
  return spec;
}

// What the search cannot keep.
void refuse(const PlanRequest& request) {
  const Pins& pins = request.pins;
  if (pins.offload.value_or(false)) {
    fail("--pin offload=on: states go to the host when nothing else fits, and only then");
  }
  const bool training = pins.stages.value_or(1) > 1 || pins.recompute || !pins.nodes.empty();
  if (training && !request.spec.training) {
    fail("--pin '{}': a forward alone has no stages, and computes nothing again", pins.texts[0]);
  }
}

}  // namespace

PlanRequest request_of(const ModelArguments& model, const std::string& cluster,
                       const std::string& mesh, const std::string& memory,
                       const std::vector<std::string>& pins) {
  PlanRequest request;
  request.cluster = parse_cluster(cluster, ops::find);
  request.spec = spec_of(model, planned_precision(request.cluster));
  request.user = model.user;
  request.mesh = mesh;
  request.fixed_micro_batches = model.accumulate > 0;
  request.memory = memory;
  request.pins = parse_pins(pins, "--pin");
  if (model.accumulate > 0 && request.pins.micro_batches &&
      *request.pins.micro_batches != model.accumulate) {
    fail("--pin micro={}: --accumulate {} says otherwise; give one of them",
         *request.pins.micro_batches, model.accumulate);
  }
  return request;
}

Planned planned(PlanRequest request) {
  refuse(request);
  const int64_t sequences = sequences_of(request.spec, request.user);
  ModelSpec spec = request.spec;
  if (request.pins.micro_batches) spec = divided(spec, sequences, *request.pins.micro_batches);
  Planned p;
  p.model = std::make_shared<TracedModel>(trace_model(spec, request.user));
  p.options = planner_options(p.model->graph, request.mesh, request.memory);
  SearchSpace& space = p.options.space;
  space.max_axes = 3;
  space.stages = spec.training && request.mesh.empty();
  space.recompute = spec.training;
  space.offload = spec.training && request.pins.offload.value_or(true);
  const bool divides = spec.training && !request.fixed_micro_batches && !request.pins.micro_batches;
  if (divides && sequences > 1) {
    p.options.trace = [spec, sequences, user = request.user](int64_t micro_batches) {
      return std::make_shared<const Graph>(
          trace_model(divided(spec, sequences, micro_batches), user).graph);
    };
  }
  p.options.pins = std::move(request.pins);
  p.options.deadline = request.deadline;
  p.limit = memory_limit(p.options, request.cluster);
  p.result = find_plan(p.model->graph, request.cluster, p.options);
  if (!p.result.plan) return p;
  p.result.plan->asked.micro_batches = request.fixed_micro_batches && !p.options.pins.micro_batches;
  // The plan may be for another number of micro-batches, and for a graph that is rewritten.
  if (p.result.graph->micro_batches != p.model->graph.micro_batches) {
    *p.model = trace_model(divided(spec, sequences, p.result.graph->micro_batches), request.user);
  }
  p.model->graph = *p.result.graph;
  return p;
}

std::string preset_kind(const Cluster& c) {
  if (!c.description.empty()) return "";
  const size_t colon = c.spec.rfind(':');
  std::string kind =
      colon == std::string::npos ? c.spec.substr(c.spec.rfind('x') + 1) : c.spec.substr(0, colon);
  const std::vector<std::string> kinds = cluster_kinds();
  return std::find(kinds.begin(), kinds.end(), kind) == kinds.end() ? c.spec : kind;
}

std::optional<Cluster> resized(const Cluster& c, int64_t nodes, int64_t devices_per_node) {
  if (nodes == c.nodes && devices_per_node == c.devices_per_node) return c;
  const std::string kind = preset_kind(c);
  try {
    if (kind.empty()) return resized_file(c, nodes, devices_per_node);
    if (kind == "cpu") return parse_cluster(fmt::format("cpu:{}", devices_per_node));
    return parse_cluster(nodes == 1 ? fmt::format("{}x{}", devices_per_node, kind)
                                    : fmt::format("{}x{}x{}", nodes, devices_per_node, kind));
  } catch (const Error&) {  // more than are planned for, or than a file's links join
    return std::nullopt;
  }
}

bool is_one_node(const Cluster& c) {
  const std::string kind = preset_kind(c);
  return kind == "cpu" || (kind.empty() && !c.device.gpu && c.tiers.size() == 1);
}

std::optional<Cluster> larger(const Cluster& c, int64_t times) {
  int64_t devices = c.devices_per_node, nodes = c.nodes;
  const bool one_node = is_one_node(c);
  for (; times > 1; times /= 2) (one_node || (nodes == 1 && devices < 8) ? devices : nodes) *= 2;
  return resized(c, nodes, devices);
}

std::optional<Planned> nearest_to_fitting(const PlanRequest& request, double least, int tries) {
  PlanRequest r = request;
  r.memory = "none";
  Planned best = planned(r);
  if (!best.result.plan) return std::nullopt;
  const PlannerOptions asked = planner_options(best.model->graph, "", request.memory);
  const double limit = memory_limit(asked, request.cluster);
  best.limit = limit;
  least = std::max(least, limit);  // which is too little
  for (int i = 0; i < tries; ++i) {
    const auto peak = static_cast<double>(best.result.plan->predicted.peak_bytes);
    if (peak < 1.02 * least) break;
    const double middle = std::sqrt(least * peak);
    r.memory = fmt::format("{:.0f}B", middle);
    try {
      Planned p = planned(r);
      if (p.result.plan) {
        best = std::move(p);
        best.limit = limit;
      } else {
        least = middle;
      }
    } catch (const SearchStopped&) {
      best.stopped = true;
      break;
    }
  }
  return best;
}

void replace_by_nearest(const PlanRequest& request, Planned& p) {
  std::optional<Planned> nearest = nearest_to_fitting(request, 0, 1);
  if (!nearest) return;
  const int64_t peak = nearest->result.plan->predicted.peak_bytes;
  if (static_cast<double>(peak) <= p.limit) {
    p = std::move(*nearest);
  } else {
    p.result.smallest_peak = peak;
  }
}

Planned with_least_memory(const PlanRequest& request) {
  PlanRequest r = request;
  Planned best = planned(r);
  if (!best.result.plan) return best;
  const double limit = best.limit, own_limit = best.result.plan->asked.memory_limit;
  r.memory = "1B";  // into which nothing fits
  if (auto nearest = nearest_to_fitting(r)) best = std::move(*nearest);
  // Of those no larger, the fastest was searched for. Then a little less, as long as that goes.
  constexpr int kTries = 6;
  for (int i = 0; i < kTries; ++i) {
    r.memory = fmt::format("{}B", best.result.plan->predicted.peak_bytes - 1);
    Planned p = planned(r);
    if (!p.result.plan) break;
    best = std::move(p);
  }
  best.limit = limit;
  // Not the limits that were tried on the way.
  Asked& asked = best.result.plan->asked;
  asked.memory_limit = own_limit;
  asked.least_memory = true;
  return best;
}

Planned on_fewest_devices(PlanRequest request, std::vector<std::string>& smaller) {
  const Cluster whole = request.cluster;
  std::vector<std::pair<int64_t, int64_t>> shapes;  // nodes, devices a node
  for (int64_t d = 1; d <= whole.devices_per_node; ++d) {
    if (whole.devices_per_node % d == 0) shapes.emplace_back(1, d);
  }
  for (int64_t n = 2; n <= whole.nodes; ++n) {
    if (whole.nodes % n == 0) shapes.emplace_back(n, whole.devices_per_node);
  }
  Planned last;
  for (const auto& [nodes, devices] : shapes) {
    const auto cluster = resized(whole, nodes, devices);
    if (!cluster) fail("--objective gpus: the size of {} cannot be changed", whole.spec);
    request.cluster = *cluster;
    try {
      last = planned(request);
    } catch (const Error& e) {
      // Pinned axes may need more devices; on all of them it is the user's to hear.
      if (nodes * devices == whole.size()) throw;
      smaller.push_back(fmt::format("{}: {}", request.cluster.spec, e.what()));
      continue;
    }
    if (last.result.plan) return last;
    const auto peak = static_cast<double>(last.result.smallest_peak);
    smaller.push_back(peak <= last.limit
                          ? fmt::format("{}: cannot be split so", request.cluster.spec)
                          : fmt::format("{}: {} a device at least, {} too much",
                                        request.cluster.spec, bytes_text(peak),
                                        bytes_text(peak - last.limit)));
  }
  return last;
}

}  // namespace cleave
