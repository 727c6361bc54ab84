#include "cli/planning.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "cli/format.h"
#include "cli/plan_parts.h"
#include "cli/planned.h"
#include "executor/prediction.h"
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

// Whether what lies between steps is too much even when no device holds any of it twice.
bool hopeless(const Graph& graph, const Cluster& cluster, double limit) {
  double bytes = 0;
  for (const Source& s : graph.sources()) {
    if (s.kind != SourceKind::kParameter && s.kind != SourceKind::kState) continue;
    const TensorType& type = graph.type(s.value);
    bytes += static_cast<double>(numel(type.shape) * size_of(type.dtype));
  }
  return bytes > limit * static_cast<double>(cluster.size());
}

// Any mesh of a few devices, of more only one, of open roles; of pinned sizes those that there are.
MeshRequest quick_mesh(const Cluster& c, const Pins& pins) {
  constexpr int64_t kFew = 8;
  if (c.size() <= kFew || !pins.empty()) return {};
  return parse_mesh(fmt::format("{}x{}", std::max<int64_t>(c.nodes, 2),
                                c.size() / std::max<int64_t>(c.nodes, 2)));
}

// A cluster of more of the same devices, or the same one, on which the model was found to fit, with
// all states on the devices; empty: none. A few quick searches, on given meshes without a
// pipeline, and never a clock: the answer is the same however slow the machine is.
std::string what_fits(const Graph& graph, const Cluster& cluster, PlannerOptions options) {
  constexpr int64_t kMost = 256;
  constexpr int kTries = 4;
  const bool same_devices = !options.mesh.sizes.empty();  // on another mesh than was asked for
  const double limit = memory_limit(options, cluster);
  options.space.stages = options.space.offload = false;
  options.trace = nullptr;
  int tries = 0;
  for (int64_t times = same_devices ? 1 : 2; times <= kMost; times *= 2) {
    const auto more = larger(cluster, times);
    if (!more) return "";
    if (hopeless(graph, *more, limit)) continue;
    if (++tries > kTries) return "";
    options.mesh = quick_mesh(*more, options.pins);
    try {
      if (find_plan(graph, *more, options).plan) return more->spec;
    } catch (const Error&) {  // not on so many devices
    }
  }
  return "";
}

}  // namespace

PlannerOptions planner_options(const Graph& graph, const std::string& mesh,
                               const std::string& memory, const std::vector<std::string>& no_fuse) {
  PlannerOptions options;
  if (!mesh.empty()) options.mesh = parse_mesh(mesh);
  check_batch(graph, options.mesh);
  if (memory == "none") {
    options.memory_limit = std::numeric_limits<double>::infinity();
  } else if (!memory.empty()) {
    options.memory_limit = parse_bytes(memory, "--memory");
  }
  ask_program(options, no_fuse);
  return options;
}

DType planned_precision(const Cluster& cluster) { return cluster.default_dtype(); }

std::string precision_note(const ModelArguments& model, const Cluster& cluster) {
  if (!model.precision.empty() || planned_precision(cluster) != DType::kF16) return "";
  const auto rate = [&](DType dtype) {
    return fmt::format("{:.3g}", cluster.peak_flops(dtype) / 1e12);
  };
  return fmt::format(
      "fp16, as no --precision is given: products at {} TFLOP/s, in bf16 at {}, in fp32 at {}",
      rate(DType::kF16), rate(DType::kBF16), rate(DType::kF32));
}

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
                   const PlannerOptions& options, const PlanResult& result, bool without_limit) {
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
  if (peak <= limit) {
    throw DoesNotFit(fmt::format(
        "{} does not fit on {}: plans were estimated to, but none that was made in full takes {} a "
        "device at most; use more devices or a smaller batch",
        model, cluster.spec, bytes_text(limit)));
  }
  const std::string fits = what_fits(graph, cluster, options);
  const std::string advice = fits.empty()           ? "use more devices or a smaller batch"
                             : fits == cluster.spec ? "it fits without --mesh"
                             : options.mesh.empty()
                                 ? fmt::format("it fits on {}", fits)
                                 : fmt::format("it fits on {} without --mesh", fits);
  throw DoesNotFit(fmt::format(
      "{} does not fit on {}: the smallest peak found or estimated is {} a device, the limit is "
      "{}, "
      "so {} too much; {}{}",
      model, cluster.spec, bytes_text(peak), bytes_text(limit), bytes_text(peak - limit), advice,
      without_limit ? "; cleave fit looks for the smallest change, cleave plan --memory none shows "
                      "the plan anyway"
                    : ""));
}

}  // namespace cleave
