#include "planner/planner.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <limits>

#include "graph/error.h"
#include "graph/repeats.h"
#include "planner/pin_preferences.h"
#include "planner/roles.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Every way to write n as an ordered product of at most `axes` factors above 1; {n} comes first.
void factorisations(int64_t n, size_t axes, std::vector<int64_t>& head,
                    std::vector<std::vector<int64_t>>& result) {
  if (n > 1 || head.empty()) {
    head.push_back(n);
    result.push_back(head);
    head.pop_back();
  }
  if (axes < 2) return;
  for (int64_t f = 2; f * 2 <= n; ++f) {
    if (n % f != 0) continue;
    head.push_back(f);
    factorisations(n / f, axes - 1, head, result);
    head.pop_back();
  }
}

std::vector<Mesh> meshes(const Cluster& cluster, const PlannerOptions& options,
                         std::vector<std::vector<AxisRole>>& roles) {
  std::vector<PinnedMesh> requests;
  if (!options.mesh.empty()) {
    requests.push_back({options.mesh.sizes, options.mesh.roles});
  } else {
    requests = pinned_meshes(options.pins, cluster.size(), options.max_axes);
  }
  if (requests.empty()) {
    std::vector<std::vector<int64_t>> sizes;
    std::vector<int64_t> head;
    factorisations(cluster.size(), options.max_axes, head, sizes);
    for (auto& s : sizes) requests.push_back({s, std::vector(s.size(), AxisRole::kAny)});
  }
  std::vector<Mesh> result;
  for (const auto& [s, asked] : requests) {
    // Axes of one tier are alike: only the descending order is kept.
    Mesh mesh;
    std::vector<AxisRole> r;
    for (size_t a = 0; a < s.size(); ++a) {
      if (s[a] == 1 && s.size() > 1) continue;  // an axis of one device splits nothing
      mesh.axes.push_back({fmt::format("a{}", a), s[a]});
      r.push_back(asked[a]);
    }
    if (mesh.axes.empty()) {
      mesh.axes.push_back({"a0", 1});
      r.push_back(AxisRole::kAny);
    }
    if (mesh.size() != cluster.size()) {
      fail("mesh {} has {} devices, the cluster {} has {}", fmt::join(s, "x"), mesh.size(),
           cluster.spec, cluster.size());
    }
    result.push_back(std::move(mesh));
    roles.push_back(std::move(r));
  }
  return result;
}

// The classes of the values that pass from one repeated layer of the forward to the next.
std::vector<ClassId> width_classes(const Graph& graph, const Dimensions& dims) {
  std::vector<ClassId> width;
  for (const Repeat& r : repeats(graph)) {
    const NodeId end = r.first + r.period * r.count;
    for (NodeId n = r.first + r.period; n < end; ++n) {
      for (Value v : graph.node(n).inputs) {
        const NodeId producer = graph.value(v).producer;
        if (producer < r.first || (producer - r.first) / r.period + 1 != (n - r.first) / r.period) {
          continue;
        }
        for (const ValueAtom& a : dims.values[static_cast<size_t>(v)]) {
          if (dims.classes[static_cast<size_t>(a.dimension_class)].role.empty()) {
            width.push_back(a.dimension_class);
          }
        }
      }
    }
  }
  std::sort(width.begin(), width.end());
  width.erase(std::unique(width.begin(), width.end()), width.end());
  return width;
}

Restrictions restrictions_of(const Graph& graph, const Dimensions& dims) {
  Restrictions r;
  r.batch = dims.class_with_role("batch");
  r.sequence = dims.class_with_role("sequence");
  r.width = width_classes(graph, dims);
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    for (size_t f = 0; f < node.extents.size(); ++f) {
      if (!node.signature->factors()[f].indexed) continue;
      for (const Atom& a : dims.factors[n][f]) r.indexed.push_back(a.dimension_class);
    }
  }
  std::sort(r.indexed.begin(), r.indexed.end());
  r.indexed.erase(std::unique(r.indexed.begin(), r.indexed.end()), r.indexed.end());
  std::erase_if(r.indexed, [&](ClassId c) {
    return c == r.batch || c == r.sequence ||
           std::find(r.width.begin(), r.width.end(), c) != r.width.end();
  });
  return r;
}

// Solves one mesh: first without pricing memory; when that does not fit, at the price at which the
// plan that is too large and one that fits cost the same (the dual's maximum is reached in a few
// such steps), and at last with the cheaper price for as many layers as fit. For every price the
// minimum of (seconds + price * (held bytes - limit)) is a lower bound on the seconds of any plan
// that fits, since what is held is never more than the peak.
class MeshSearch {
 public:
  MeshSearch(const Graph& graph, std::shared_ptr<const Dimensions> dims, const Layers& layers,
             const Cluster& cluster, const Mesh& mesh, std::vector<AxisRole> roles,
             const Restrictions& restrictions, const PlannerOptions& options, double limit)
      : graph_(graph),
        dims_(std::move(dims)),
        layers_(layers),
        cluster_(cluster),
        mesh_(mesh),
        roles_(std::move(roles)),
        families_(graph, *dims_, cluster, mesh, restrictions),
        options_(options),
        pinned_(pinned_preferences(options.pins, graph, *dims_, families_, mesh_, roles_,
                                   options.preferences)),
        limit_(limit) {}

  // `best_so_far`: seconds; a mesh whose bound is not below is given up.
  std::optional<Plan> search(double best_so_far, Candidate& report) {
    if (!pinned_.impossible.empty()) {
      report.cost = report.lower_bound = kInfinity;
      report.why_not = pinned_.impossible;
      return std::nullopt;
    }
    auto plan = solve({});
    report.lower_bound = lower_bound_;
    if (!plan) {
      // What was not searched has no bound; what is impossible, no cost.
      report.cost = kInfinity;
      report.lower_bound = too_large_.empty() ? kInfinity : 0;
      report.why_not = too_large_.empty() ? "no placement works" : too_large_;
      return std::nullopt;
    }
    describe(*plan, report);
    if (report.cost >= best_so_far) {
      report.why_not = fmt::format("slower by {:.1f} %", 100 * (report.cost / best_so_far - 1));
      return std::nullopt;
    }
    if (!fits(*plan)) {
      plan = squeeze(std::move(*plan), report);
      if (!plan) return std::nullopt;
      describe(*plan, report);
      report.lower_bound = lower_bound_;
      if (report.cost >= best_so_far) {
        report.why_not = "slower once it fits in memory";
        return std::nullopt;
      }
    }
    report.peak_bytes = plan->predicted.peak_bytes;
    plan->certificate.lower_bound = std::min(lower_bound_, plan->certificate.cost);
    return plan;
  }

  // The plan at one price, without looking at the limit.
  std::optional<Plan> solve(const MemoryPrice& price) {
    const Costing costing = Costing::plain(graph_.micro_batches, price);
    const PlacementProblem problem(graph_, *dims_, families_, cluster_, mesh_, layers_, {},
                                   costing, pinned_.preferences);
    EliminationLimits limits;
    limits.prune_dominated = true;
    const MinSumResult result = solve_by_elimination(problem.problem(), limits);
    if (result.status == MinSumStatus::kTooLarge) {
      too_large_ = fmt::format(
          "the search over mesh {} needs tables of {:.2g} entries; fix the mesh's roles, as in "
          "--mesh dp=2,tp=4",
          mesh_.to_string(), std::max(result.needed_table, result.needed_total));
    }
    if (!result.solved()) return std::nullopt;
    Plan plan;
    plan.mesh = mesh_;
    plan.roles = roles_;
    plan.cluster = cluster_;
    plan.dimensions = dims_;
    problem.read_solution(result.solution.choice, plan);
    CLEAVE_ASSERT(
        !price.free() || !pinned_.preferences.empty() ||
            std::abs(plan.certificate.cost - result.solution.cost) <= 1e-9 * result.solution.cost,
        "the plan costs {}, the search found {}", plan.certificate.cost, result.solution.cost);
    if (price.split == 0) {
      lower_bound_ =
          std::max(lower_bound_, price.free() ? result.solution.cost
                                              : result.solution.cost - price.high * limit_);
    }
    plan.predicted.peak_bytes =
        options_.live_bytes ? options_.live_bytes(plan) : plan.predicted.held_bytes;
    return plan;
  }

 private:
  void describe(Plan& plan, Candidate& report) const {
    name_axes(graph_, plan);
    report.mesh = plan.mesh;
    report.cost = plan.certificate.cost;
    report.compute_seconds = plan.predicted.compute_seconds;
    report.communication_seconds = plan.predicted.communication_seconds;
  }

  // Asks for the exact peak only where the quick one would do.
  bool fits(Plan& plan) const {
    if (static_cast<double>(plan.predicted.peak_bytes) > limit_) return false;
    if (options_.peak_bytes) plan.predicted.peak_bytes = options_.peak_bytes(plan);
    return static_cast<double>(plan.predicted.peak_bytes) <= limit_;
  }

  static double held(const Plan& plan) { return static_cast<double>(plan.predicted.held_bytes); }

  std::optional<Plan> squeeze(Plan over, Candidate& report) {
    std::optional<Plan> best;
    report.peak_bytes = over.predicted.peak_bytes;
    const auto consider = [&](Plan& plan) {
      report.peak_bytes = std::min(report.peak_bytes, plan.predicted.peak_bytes);
      if (!fits(plan)) return false;
      if (!best || plan.certificate.cost < best->certificate.cost) best = plan;
      return true;
    };
    // From a price at which the excess would cost as much as the step, upwards until it fits.
    const double excess = static_cast<double>(over.predicted.peak_bytes) - limit_;
    double price = 4 * over.certificate.cost / excess;
    std::optional<Plan> under;
    for (int tries = 0; tries < 6 && !best; ++tries) {
      if (tries > 0) price *= 64;
      under = solve({.low = price, .high = price});
      if (!under) break;
      if (!consider(*under)) over = *under;
    }
    if (!best) {
      report.cost = kInfinity;
      report.why_not = "does not fit in memory";
      return std::nullopt;
    }
    for (int i = 0; i < 12 && held(over) > held(*under); ++i) {
      const double slope =
          (under->certificate.cost - over.certificate.cost) / (held(over) - held(*under));
      if (slope <= 0) break;
      price = slope;
      auto middle = solve({.low = price, .high = price});
      if (!middle) break;
      const double known = over.certificate.cost + price * held(over);
      const double found = middle->certificate.cost + price * held(*middle);
      const bool same = found >= known * (1 - 1e-9);
      if (consider(*middle)) {
        under = std::move(middle);
      } else {
        over = std::move(*middle);
      }
      if (same) break;
    }
    mix(price, consider, best);
    return best;
  }

  // As many layers as fit at a slightly lower price than the others.
  template <class Consider>
  void mix(double price, const Consider& consider, const std::optional<Plan>& best) {
    int32_t copies = 0;
    for (const Layer& l : layers_.nodes) copies = std::max(copies, l.copy + 1);
    int32_t fit = 0, over = copies + 1;
    while (over - fit > 1 && best->certificate.cost > lower_bound_ * (1 + 1e-3)) {
      const int32_t middle = (fit + over) / 2;
      auto plan = solve({.low = price * (1 - 1e-3), .high = price * (1 + 1e-3), .split = middle});
      if (!plan) break;
      (consider(*plan) ? fit : over) = middle;
    }
  }

  const Graph& graph_;
  std::shared_ptr<const Dimensions> dims_;
  const Layers& layers_;
  const Cluster& cluster_;
  Mesh mesh_;
  std::vector<AxisRole> roles_;
  Families families_;
  const PlannerOptions& options_;
  PinnedPreferences pinned_;
  double limit_;
  double lower_bound_ = 0;
  std::string too_large_;  // why elimination gave up, if it did
};

// Matrix products and attention, by what they do: some factor is reduced, whole or not.
bool reduces(const Node& node) {
  for (size_t f = 0; f < node.extents.size(); ++f) {
    for (size_t o = 0; o < node.outputs.size(); ++o) {
      if (node.signature->reduced_in(static_cast<int>(f), o)) return true;
    }
  }
  return false;
}

void predict(const Graph& graph, Plan& plan) {
  Prediction& p = plan.predicted;
  if (p.step_seconds <= 0) return;  // a graph that does nothing
  p.tokens_per_second = tokens_per_step(graph) / p.step_seconds;
  const double peak =
      plan.cluster.peak_flops(product_dtype(graph)) * static_cast<double>(plan.cluster.size());
  p.mfu_full = model_flops(graph, true) / p.step_seconds / peak;
  p.mfu_causal = model_flops(graph, false) / p.step_seconds / peak;
  p.state_bytes = 0;
  for (const Source& s : graph.sources()) {
    if (s.kind == SourceKind::kData) continue;
    const Shape local = plan.layout(s.value, 0).local_shape(plan.mesh);
    p.state_bytes += numel(local) * size_of(graph.type(s.value).dtype);
  }
}

// Pins of what this search does not choose cannot be kept.
void expect_searched(const Pins& pins) {
  const bool pipeline = pins.stages.value_or(1) > 1 || pins.chunks.value_or(1) > 1 || pins.schedule;
  const bool remakes = pins.recompute.value_or(Recompute::kNone) != Recompute::kNone;
  if (pipeline || remakes || pins.offload.value_or(false) || !pins.nodes.empty()) {
    fail("--pin: pipelines, recomputation and offload are not searched yet");
  }
}

}  // namespace

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

MeshRequest parse_mesh(std::string_view text) {
  MeshRequest request;
  const auto number = [&](std::string_view s) {
    int64_t n = 0;
    const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), n);
    if (error != std::errc() || end != s.data() + s.size() || n < 1 || n > 1'000'000) {
      fail("mesh '{}': '{}' is not a size; write 2x4, or dp=2,tp=4", text, s);
    }
    return n;
  };
  const bool named = text.find('=') != std::string_view::npos;
  for (std::string_view rest = text;;) {
    const std::string_view part = rest.substr(0, rest.find(named ? ',' : 'x'));
    if (named) {
      const size_t equals = part.find('=');
      const std::string_view role = part.substr(0, equals);
      const std::optional<AxisRole> known =
          equals == std::string_view::npos ? std::nullopt : role_named(role);
      if (!known || *known == AxisRole::kAny) {
        fail(
            "mesh '{}': '{}' is not an axis; write dp=N, ep=N, cp=N or tp=N, or sizes alone as in "
            "2x4",
            text, part);
      }
      const AxisRole r = *known;
      if (std::find(request.roles.begin(), request.roles.end(), r) != request.roles.end()) {
        fail("mesh '{}' has two axes named {}", text, role);
      }
      request.roles.push_back(r);
      request.sizes.push_back(number(part.substr(equals + 1)));
    } else {
      request.roles.push_back(AxisRole::kAny);
      request.sizes.push_back(number(part));
    }
    if (part.size() == rest.size()) break;
    rest.remove_prefix(part.size() + 1);
  }
  if (request.sizes.size() > 4) {
    fail("mesh '{}' has {} axes; at most 4 are planned", text, request.sizes.size());
  }
  return request;
}

std::optional<Plan> plan_with(const Graph& graph, const Cluster& cluster, const Mesh& mesh,
                              const std::vector<AxisRole>& roles, const MemoryPrice& price,
                              const PlannerOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const auto dims = std::make_shared<const Dimensions>(find_dimensions(graph));
  Restrictions restrictions = restrictions_of(graph, *dims);
  restrictions.roles = roles;
  const Layers layers = layers_of(graph, repeats(graph));
  auto plan =
      MeshSearch(graph, dims, layers, cluster, mesh, roles, restrictions, options, kInfinity)
          .solve(price);
  if (!plan) return plan;
  if (options.peak_bytes) plan->predicted.peak_bytes = options.peak_bytes(*plan);
  plan->certificate.lower_bound = 0;  // no other plan was looked at
  name_axes(graph, *plan);
  plan->mesh = mesh;
  predict(graph, *plan);
  plan->search_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return plan;
}

PlanResult find_plan(const Graph& graph, const Cluster& cluster, const PlannerOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  expect_searched(options.pins);
  PlanResult result;
  const auto dims = std::make_shared<const Dimensions>(find_dimensions(graph));
  Restrictions restrictions = restrictions_of(graph, *dims);
  const double limit = options.memory_limit > 0 ? options.memory_limit : cluster.device.memory;
  std::vector<std::vector<AxisRole>> roles;
  const std::vector<Mesh> all = meshes(cluster, options, roles);
  const Layers layers = layers_of(graph, repeats(graph));
  double bound = kInfinity;
  for (size_t m = 0; m < all.size(); ++m) {
    restrictions.roles = roles[m];
    MeshSearch search(graph, dims, layers, cluster, all[m], roles[m], restrictions, options, limit);
    Candidate report;
    report.mesh = all[m];
    const double best = result.plan ? result.plan->certificate.cost : kInfinity;
    auto plan = search.search(best, report);
    bound = std::min(bound, report.lower_bound);
    if (plan) {
      if (result.plan) {
        for (Candidate& c : result.candidates) {
          if (c.why_not.empty()) {
            c.why_not =
                fmt::format("slower by {:.1f} %", 100 * (c.cost / plan->certificate.cost - 1));
          }
        }
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
    result.graph = std::make_shared<const Graph>(graph);
    Plan& plan = *result.plan;
    plan.certificate.lower_bound = std::min(plan.certificate.cost, bound);
    name_axes(graph, plan);
    predict(graph, plan);
    plan.candidates = result.candidates;
    plan.pins = options.pins.texts;
    plan.search_seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return result;
}

}  // namespace cleave
