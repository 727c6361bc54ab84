#include "cli/planning.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "cli/format.h"
#include "cli/plan_parts.h"
#include "cli/planned.h"
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

// The smallest cluster on which the model was found to fit, of a few seconds' search; empty: none.
std::string what_fits(const Graph& graph, const Cluster& cluster, PlannerOptions options,
                      double times_too_much) {
  constexpr int64_t kMost = 256;
  constexpr double kSeconds = 4;  // after which no search is begun
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const bool same_devices = !options.mesh.sizes.empty();  // on another mesh than was asked for
  options.mesh = {};
  options.space.stages = false;  // for an answer within seconds
  options.trace = nullptr;
  int64_t times = same_devices ? 1 : 2;
  // So many devices share no better than evenly.
  while (!same_devices && static_cast<double>(times) < times_too_much && times <= kMost) times *= 2;
  for (; times <= kMost; times *= 2) {
    if (std::chrono::duration<double>(Clock::now() - start).count() > kSeconds) break;
    const auto more = larger(cluster, times);
    if (!more) return "";
    if (find_plan(graph, *more, options).plan) return more->spec;
  }
  return "";
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
  options.live_bytes = stage_live_bytes;
  options.peak_bytes = stage_peak_bytes;
  return options;
}

DType planned_precision(const Cluster& cluster) { return cluster.fastest_dtype(); }

std::string why_impossible(const PlannerOptions& options, const PlanResult& result) {
  const Pins& pins = options.pins;
  const auto reason = [](const Candidate& c) { return words_of(c) + ": " + c.why_not; };
  // One that names a pin says most.
  for (const Candidate& c : result.candidates) {
    const auto quoted = [&](const std::string& text) {
      return c.why_not.find("'" + text + "'") != std::string::npos;
    };
    if (std::any_of(pins.texts.begin(), pins.texts.end(), quoted)) return reason(c);
  }
  if (result.candidates.empty()) return "";
  std::vector<std::string> about;  // pins that can be why
  const bool cuts = result.candidates[0].why_not.find("cuts") != std::string::npos;
  for (const NodePin& p : pins.nodes) {
    const bool cut = p.kind == NodePin::Kind::kStage || p.kind == NodePin::Kind::kCut;
    if (cuts && cut) about.push_back("'" + p.text + "'");
  }
  if (!cuts) {
    for (const PlacementPin& p : pins.placements) about.push_back("'" + p.text + "'");
    if (pins.zero) about.push_back(fmt::format("zero={}", *pins.zero));
  }
  return reason(result.candidates[0]) +
         (about.empty() ? "" : fmt::format(" (with {})", fmt::join(about, " and ")));
}

void throw_no_plan(const std::string& model, const Graph& graph, const Cluster& cluster,
                   const PlannerOptions& options, const PlanResult& result) {
  if (result.smallest_peak <= 0 && !options.pins.empty()) {
    const std::string why = why_impossible(options, result);
    fail("{} cannot be split over {} with {}{}{}; leave out a --pin", model, cluster.spec,
         fmt::join(options.pins.texts, ", "), why.empty() ? "" : ": ", why);
  }
  if (result.smallest_peak <= 0) {
    fail("{} cannot be split over {} as asked; leave out --mesh, or change the batch", model,
         cluster.spec);
  }
  const double limit = memory_limit(options, cluster);
  const double peak = static_cast<double>(result.smallest_peak);
  const std::string fits = what_fits(graph, cluster, options, peak / limit);
  const std::string advice = fits.empty()           ? "use more devices or a smaller batch"
                             : fits == cluster.spec ? "it fits without --mesh"
                                                    : fmt::format("it fits on {}", fits);
  throw DoesNotFit(fmt::format(
      "{} does not fit on {}: the smallest peak found is {} a device, the limit is {}, so {} too "
      "much; {}; cleave plan --memory none shows the plan anyway",
      model, cluster.spec, bytes_text(peak), bytes_text(limit), bytes_text(peak - limit), advice));
}

}  // namespace cleave
