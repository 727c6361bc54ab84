#include "planner/planner.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <set>

#include "graph/error.h"
#include "planner/exhaustive_search.h"
#include "planner/mesh_search.h"
#include "planner/offload.h"
#include "planner/outline.h"
#include "planner/pipeline_seconds.h"
#include "planner/roles.h"
#include "planner/wide_search.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Matrix products and attention, by what they do: some factor is reduced, whole or not.
bool reduces(const Node& node) {
  for (size_t f = 0; f < node.extents.size(); ++f) {
    for (size_t o = 0; o < node.outputs.size(); ++o) {
      if (node.signature->reduced_in(static_cast<int>(f), o)) return true;
    }
  }
  return false;
}

// Every mesh in turn, each exactly; one that cannot beat the best so far is given up.
PlanResult search_meshes(const Graph& graph, const Cluster& cluster,
                         const PlannerOptions& options) {
  PlanResult result;
  const Outline outline = outline_of(std::make_shared<const Graph>(graph));
  const PreparedGraph prepared = prepare(outline);
  const double limit = memory_limit(options, cluster);
  ArrangementLimits limits;
  limits.max_axes = options.space.max_axes;
  limits.micro_batches = {graph.micro_batches};
  double bound = kInfinity;
  for (const Arrangement& arrangement :
       arrangements_of(cluster, options.mesh, options.pins, limits)) {
    MeshSearch search(prepared, cluster, arrangement.mesh, arrangement.roles, options, limit);
    Candidate report = candidate_of(arrangement);
    const double best = result.plan ? result.plan->certificate.cost : kInfinity;
    auto plan = search.search(best, report);
    bound = std::min(bound, report.lower_bound);
    if (plan) {
      for (Candidate& c : result.candidates) {
        if (!c.why_not.empty()) continue;
        c.why_not = fmt::format("slower by {:.1f} %", 100 * (c.cost / plan->certificate.cost - 1));
      }
      result.plan = std::move(plan);
    }
    const bool known = report.peak_bytes > 0;  // it was solved, and not slower than another anyway
    if (known && (result.smallest_peak == 0 || report.peak_bytes < result.smallest_peak)) {
      result.smallest_peak = report.peak_bytes;
    }
    result.candidates.push_back(std::move(report));
  }
  if (!result.plan && bound == 0) {
    for (const Candidate& c : result.candidates) {
      if (c.lower_bound == 0) fail("{}", c.why_not);
    }
  }
  if (result.plan) {
    result.graph = outline.graph;
    result.plan->certificate.lower_bound = std::min(result.plan->certificate.cost, bound);
  }
  return result;
}

// The seconds of the program that runs the plan in place of those that the search charges.
void take_run_seconds(const Graph& graph, const PlannerOptions& options, Plan& plan) {
  if (!options.run_seconds || plan.loads.size() != 1) return;
  const std::optional<RunSeconds> run = options.run_seconds(graph, plan);
  if (!run) return;
  for (size_t n = 0; n < plan.nodes.size(); ++n) plan.nodes[n].seconds = run->nodes[n];
  GroupLoad& load = plan.loads[0];
  plan.predicted.compute_seconds = 0;
  for (size_t phase = 0; phase < 3; ++phase) {
    load.seconds[phase] = run->phases[phase] + load.communication[phase];
    const bool once = phase == static_cast<size_t>(Phase::kUpdate);
    plan.predicted.compute_seconds +=
        run->phases[phase] * (once ? 1.0 : static_cast<double>(graph.micro_batches));
  }
  plan.predicted.step_seconds =
      plan.predicted.compute_seconds + plan.predicted.communication_seconds;
}

void predict(const Graph& graph, const PlannerOptions& options, Plan& plan) {
  take_run_seconds(graph, options, plan);
  Prediction& p = plan.predicted;
  if (p.step_seconds <= 0) return;  // a graph that does nothing
  p.tokens_per_second = tokens_per_step(graph) / p.step_seconds;
  const double peak =
      plan.cluster.peak_flops(product_dtype(graph)) * static_cast<double>(plan.cluster.size());
  p.mfu_full = model_flops(graph, true) / p.step_seconds / peak;
  p.mfu_causal = model_flops(graph, false) / p.step_seconds / peak;
  p.state_bytes = 0;
  for (size_t i = 0; i < graph.sources().size(); ++i) {
    const Source& s = graph.sources()[i];
    if (s.kind == SourceKind::kData || plan.on_host[i]) continue;
    const Shape local = plan.layout(s.value, 0).local_shape(plan.mesh);
    p.state_bytes += numel(local) * size_of(graph.type(s.value).dtype);
  }
}

// Takes the seconds and bytes of states that no longer lie on the host out of a plan's sums.
void bring_back(const Graph& graph, std::vector<bool> on_host, Plan& plan) {
  Prediction& p = plan.predicted;
  for (size_t i = 0; i < on_host.size(); ++i) {
    if (on_host[i] == plan.on_host[i]) continue;
    const Value v = graph.sources()[i].value;
    const int64_t bytes =
        numel(plan.layout(v, 0).local_shape(plan.mesh)) * size_of(graph.type(v).dtype);
    const double seconds = offload_seconds(plan.cluster, static_cast<double>(bytes));
    GroupLoad& l = plan.loads[0];
    l.seconds[2] -= seconds, l.communication[2] -= seconds, l.host -= seconds;
    l.state_bytes += bytes;
    p.host_bytes -= bytes, p.host_seconds -= seconds;
    p.held_bytes += bytes;
    p.step_seconds -= seconds, p.communication_seconds -= seconds;
    plan.certificate.cost -= seconds;
  }
  plan.on_host = std::move(on_host);
}

// The last resort: with all states that only the update needs on the host. Where that fits, only as
// many are left there as have to be: the first ones come back, as their number goes up and down.
PlanResult search_offloaded(const Graph& graph, const PlannerOptions& options,
                            const std::function<PlanResult(const PlannerOptions&)>& search) {
  std::set<std::string> all;
  for (const Source& s : graph.sources()) {
    if (can_be_offloaded(graph, s)) all.insert(s.name);
  }
  if (all.empty()) return {};
  PlannerOptions offloaded = options;
  offloaded.preferences.on_host = [&](const Source& s) { return all.contains(s.name); };
  PlanResult found = search(offloaded);
  if (!found.plan) return found;
  Plan& plan = *found.plan;
  plan.certificate.lower_bound = 0;  // what lies where was not searched
  const double limit = memory_limit(options, plan.cluster);
  const auto with = [&](size_t back) {
    Plan some = plan;
    for (size_t s = 0; s < some.on_host.size() && back > 0; ++s) {
      if (!some.on_host[s]) continue;
      some.on_host[s] = false;
      --back;
    }
    return some;
  };
  const auto fits = [&](const Plan& p) {
    const auto& ask = options.peak_bytes ? options.peak_bytes : options.live_bytes;
    const std::vector<int64_t> bytes = ask(*found.graph, p);
    return static_cast<double>(*std::max_element(bytes.begin(), bytes.end())) <= limit;
  };
  size_t back = 0;
  size_t most = static_cast<size_t>(std::count(plan.on_host.begin(), plan.on_host.end(), true));
  if ((!options.peak_bytes && !options.live_bytes) || plan.pipeline.stages > 1) most = 0;
  for (++most; back + 1 < most;) {
    const size_t middle = (back + most) / 2;
    (fits(with(middle)) ? back : most) = middle;
  }
  if (back > 0) bring_back(*found.graph, with(back).on_host, plan);
  if (const auto& ask = options.peak_bytes ? options.peak_bytes : options.live_bytes) {
    const std::vector<int64_t> bytes = ask(*found.graph, plan);
    plan.predicted.peak_bytes = *std::max_element(bytes.begin(), bytes.end());
  }
  return found;
}

}  // namespace

void check_deadline(const PlannerOptions& options) {
  if (options.deadline == Clock::time_point::max() || Clock::now() < options.deadline) return;
  throw SearchStopped("the search has not ended in the time that it was given");
}

double memory_limit(const PlannerOptions& options, const Cluster& cluster) {
  return options.memory_limit > 0 ? options.memory_limit : cluster.device.memory;
}

int64_t sequences_per_step(const Graph& graph) {
  for (const Source& s : graph.sources()) {
    if (s.kind != SourceKind::kData || s.roles.empty() || s.roles[0] != "batch") continue;
    return graph.type(s.value).shape[0] * graph.micro_batches;
  }
  return 0;
}

double tokens_per_step(const Graph& graph) {
  for (const Source& s : graph.sources()) {
    if (s.kind != SourceKind::kData || s.roles.empty() || s.roles[0] != "batch") continue;
    return static_cast<double>(numel(graph.type(s.value).shape) * graph.micro_batches);
  }
  return 0;
}

DType product_dtype(const Graph& graph) {
  DType dtype = DType::kF32;
  double most = 0;
  for (const Node& n : graph.nodes()) {
    if (n.phase != Phase::kForward || !reduces(n)) continue;
    const auto in = graph.input_types(n);
    const double flops = n.op->flops(Graph::call(n, in));
    if (flops > most) most = flops, dtype = in[0].dtype;
  }
  return dtype;
}

double model_flops(const Graph& graph, bool masked_too) {
  double flops = 0;
  for (const Node& n : graph.nodes()) {
    if (n.phase != Phase::kForward || !reduces(n)) continue;
    const auto in = graph.input_types(n);
    Attrs attrs = n.attrs;
    if (masked_too && attrs.has("causal")) attrs.set("causal", int64_t{0});
    flops += n.op->flops({*n.signature, n.extents, attrs, in});
  }
  return 3 * flops * static_cast<double>(graph.micro_batches);
}

std::optional<Plan> plan_with(const Graph& graph, const Cluster& cluster, const Mesh& mesh,
                              const std::vector<AxisRole>& roles, const Costing& costing,
                              const Pipeline& pipeline, const PlannerOptions& options) {
  const auto start = Clock::now();
  const Outline outline = outline_of(std::make_shared<const Graph>(graph));
  PreparedGraph prepared = prepare(outline);
  prepared.group_of = pipeline.chunk_of;
  const PlacementSolver solver(prepared, cluster, mesh, roles, options);
  Solved solved = solver.solve(costing, pipeline);
  if (!solved.plan) return std::nullopt;
  Plan& plan = *solved.plan;
  if (pipeline.stages * pipeline.chunks > 1) {
    Schedules schedules;
    set_step_seconds(graph, plan, schedules);
  }
  plan.predicted.peak_bytes = plan.predicted.held_bytes;
  if (const auto& measure = options.peak_bytes ? options.peak_bytes : options.live_bytes) {
    const auto peaks = measure(graph, plan);
    plan.predicted.peak_bytes = *std::max_element(peaks.begin(), peaks.end());
  }
  plan.certificate.lower_bound = 0;  // no other plan was looked at
  name_axes(graph, plan);
  plan.mesh = mesh;
  predict(graph, options, plan);
  plan.search_seconds = seconds_since(start);
  return std::move(solved.plan);
}

std::optional<Plan> plan_with(const Graph& graph, const Cluster& cluster, const Mesh& mesh,
                              const std::vector<AxisRole>& roles, const MemoryPrice& price,
                              const PlannerOptions& options) {
  return plan_with(graph, cluster, mesh, roles, Costing::plain(graph.micro_batches, price), {},
                   options);
}

namespace {

// An axis of experts in a model whose layers have none would be one more of data parallelism.
void check_experts(const Graph& graph, const PlannerOptions& options) {
  std::string text;
  for (const AxisPin& a : options.pins.axes) {
    if (a.role == AxisRole::kExpert && a.size > 1) text = fmt::format("--pin ep={}", a.size);
  }
  for (size_t a = 0; a < options.mesh.sizes.size(); ++a) {
    if (options.mesh.roles[a] != AxisRole::kExpert || options.mesh.sizes[a] == 1) continue;
    text = "--mesh " + options.mesh.to_string();
  }
  if (text.empty()) return;
  const Outline outline = outline_of(std::make_shared<const Graph>(graph));
  const bool repeats = std::any_of(outline.pieces.begin(), outline.pieces.end(),
                                   [](const Piece& p) { return p.repeat >= 0; });
  if (!repeats || looks_up_in_layers(outline, prepare_folded(outline, {}))) return;
  fail("{}: the layers of this model have no experts to share out; dp=N splits the batch", text);
}

}  // namespace

PlanResult find_plan(const Graph& graph, const Cluster& cluster, const PlannerOptions& options) {
  const auto start = Clock::now();
  check_experts(graph, options);
  PlannerOptions asked = options;
  const Pins& pins = options.pins;
  const auto pins_stage = [](const NodePin& pin) {
    return pin.kind == NodePin::Kind::kStage || pin.kind == NodePin::Kind::kCut;
  };
  asked.space.stages |= pins.stages.value_or(1) > 1 || pins.chunks.value_or(1) > 1 ||
                        pins.schedule.has_value() ||
                        std::any_of(pins.nodes.begin(), pins.nodes.end(), pins_stage);
  asked.space.recompute |= pins.recompute.has_value() || !pins.nodes.empty();
  const bool wide = asked.space.stages || asked.space.recompute || asked.trace;
  const auto search = [&](const PlannerOptions& with) {
    return with.space.exhaustive ? search_exhaustively(graph, cluster, with)
           : wide                ? WideSearch(graph, cluster, with).run()
                                 : search_meshes(graph, cluster, with);
  };
  PlanResult result = search(asked);
  if (!result.plan && asked.space.offload && !asked.preferences.on_host) {
    PlanResult found = search_offloaded(graph, asked, search);
    if (found.plan) {
      result = std::move(found);
    } else if (found.smallest_peak > 0 &&
               (result.smallest_peak == 0 || found.smallest_peak < result.smallest_peak)) {
      result.smallest_peak = found.smallest_peak;
    }
  }
  if (result.plan) {
    Plan& plan = *result.plan;
    name_axes(*result.graph, plan);
    predict(*result.graph, options, plan);
    plan.candidates = result.candidates;
    plan.pins = options.pins.texts;
    plan.asked.mesh = options.mesh.to_string();
    plan.asked.memory_limit = options.memory_limit;
    plan.search_seconds = seconds_since(start);
  }
  return result;
}

}  // namespace cleave
