// The grounds of the wide search: what their pieces take and hold, and whether that fits.
#include "planner/wide_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "graph/error.h"
#include "planner/in_parallel.h"
#include "planner/pin_preferences.h"
#include "planner/remake_menu.h"
#include "planner/solver.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr size_t kModes = 4;     // of recomputation that are compared, with none
constexpr double kEasy = 0.96;   // of the limit: what pieces may take, so that the rest fits too
constexpr double kHigh = 64;     // a high price, in steps a limit
constexpr double kHope = 0.5;    // of what the thriftiest ways cost, what better ones may save
constexpr int kRefinements = 3;  // rounds in which options are added for one entry

// What is computed again before memory asks for it.
RemakeMode base_mode(const Outline& outline, const Pins& pins) {
  switch (pins.recompute.value_or(Recompute::kNone)) {
    case Recompute::kNone: break;
    case Recompute::kSelective: return selective_mode(outline);
    case Recompute::kFull: return full_mode(outline);
  }
  return {};
}

// What pins of stages and cuts leave. Throws Error when a cut is no border of pieces, or a piece is
// pinned to two stages.
CutRules rules_of(const NodePins& pins, const Outline& o) {
  CutRules rules;
  const Graph& graph = *o.graph;
  rules.stage_of.assign(o.pieces.size(), -1);
  rules.begins.assign(o.pieces.size(), false);
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const int32_t stage = pins.stage_of[n];
    if (stage < 0 || graph.nodes()[n].phase != Phase::kForward) continue;
    int32_t& of = rules.stage_of[static_cast<size_t>(o.piece_of[n])];
    if (of >= 0 && of != stage) {
      fail("--pin: {} is pinned to stage {}, what cannot be cut from it to stage {}",
           pin_name(graph, static_cast<NodeId>(n)), stage, of);
    }
    of = stage;
  }
  for (NodeId n : pins.cuts) {
    const auto piece = static_cast<size_t>(o.piece_of[static_cast<size_t>(n)]);
    if (o.pieces[piece].first != n) {
      fail("--pin: the model cannot be cut before {}; the next place is before {}",
           pin_name(graph, n), pin_name(graph, o.pieces[piece].first));
    }
    rules.begins[piece] = true;
  }
  return rules;
}

}  // namespace

WideSearch::Traced WideSearch::traced_of(std::shared_ptr<const Graph> graph) const {
  check_deadline(options_);
  Traced t;
  t.outline = outline_of(std::move(graph), options_.pins);
  if (!options_.pins.nodes.empty()) {
    t.pins = node_pins(options_.pins, *t.outline.graph);
    t.rules = rules_of(t.pins, t.outline);
  }
  t.menu = {base_mode(t.outline, options_.pins)};
  t.folded.push_back(prepare_folded(t.outline, t.menu[0]));
  return t;
}

// One ground for arrangements that differ in schedule and chunks only.
void WideSearch::prepare_grounds(size_t first) {
  const size_t solved = grounds_.size();
  for (size_t i = first; i < entries_.size(); ++i) {
    const Arrangement& a = entries_[i].arrangement;
    const auto [at, added] = known_grounds_.emplace(ground_key(a), grounds_.size());
    if (added) {
      grounds_.emplace_back();
      grounds_.back().arrangement = a;
    }
    entries_[i].ground = at->second;
  }
  std::set<int64_t> micro;
  for (const Ground& g : grounds_) micro.insert(g.arrangement.micro_batches);
  std::vector<int64_t> missing;
  for (int64_t m : micro) {
    if (!traced_.contains(m)) missing.push_back(m);
  }
  std::vector<Traced> made(missing.size());
  in_parallel(missing.size(), options_.threads,
              [&](size_t i) { made[i] = traced_of(options_.trace(missing[i])); });
  for (size_t i = 0; i < missing.size(); ++i) traced_.emplace(missing[i], std::move(made[i]));
  in_parallel(grounds_.size() - solved, options_.threads,
              [&](size_t i) { solve(grounds_[solved + i]); });
}

// Micro-batches in flight, as if all stages had the mean.
double WideSearch::folded_flights(const Ground& ground) const {
  const auto m = static_cast<double>(ground.arrangement.micro_batches);
  return std::max(1.0, std::min<double>(m, ground.arrangement.stages) / 2);
}

// Groups count as often as they stand for pieces.
Costing WideSearch::folded_costing(const Ground& ground, double price) const {
  const auto& groups = traced(ground).outline.folded.groups;
  const double m = static_cast<double>(ground.arrangement.micro_batches);
  Costing costing;
  for (const FoldedGroup& g : groups) {
    costing.runs.push_back({m * g.weight, m * g.weight, g.weight});
    const double byte = price * g.weight;
    costing.prices.push_back({.low = byte, .high = byte});
    costing.in_flight.push_back(folded_flights(ground));
  }
  return costing;
}

// What a rank of one stage sends to its twin of the next for one micro-batch: what passes from one
// repeated layer to the next, where it is most.
double WideSearch::boundary_seconds(const Ground& ground) const {
  const PreparedGraph& prepared = traced(ground).folded[0];
  const FoldedGraph& folded = traced(ground).outline.folded;
  const Graph& graph = *prepared.graph;
  const Plan& plan = *ground.free;
  std::vector<double> bytes(folded.groups.size(), 0);
  for (size_t v = 0; v < graph.values().size(); ++v) {
    const NodeId producer = graph.values()[v].producer;
    if (producer == kNoNode || graph.node(producer).phase != Phase::kForward) continue;
    const auto group = static_cast<size_t>(prepared.group_of_value[v]);
    if (folded.groups[group].piece >= 0) continue;
    const Layout layout = plan.layout(static_cast<Value>(v), 0);
    bytes[group] += static_cast<double>(numel(layout.local_shape(plan.mesh)) *
                                        size_of(graph.values()[v].type.dtype));
  }
  double most = 0;
  for (size_t g = 0; g < bytes.size(); ++g) {
    if (bytes[g] > 0) most = std::max(most, bytes[g] / folded.passages(g));
  }
  return transfer_seconds(cluster_, ground.arrangement.mesh, 0, 1, most);
}

void WideSearch::solve(Ground& ground) {
  const Outline& o = traced(ground).outline;
  const PlacementSolver solver(traced(ground).folded[0], cluster_, ground.arrangement.mesh,
                               ground.arrangement.roles, options_);
  if (!solver.impossible().empty()) {
    ground.why_not = solver.impossible();
    ground.bound = kInfinity;
    return;
  }
  Solved solved = solver.solve(folded_costing(ground, 0));
  if (!solved.plan) {
    ground.why_not = solved.too_large.empty() ? "no placement works" : solved.too_large;
    ground.bound = solved.too_large.empty() ? kInfinity : 0;
    return;
  }
  ground.free = std::move(solved.plan);
  ground.options = {{0, 0, piece_loads(o, traced(ground).folded[0], *ground.free)}};
  ground.bound = solved.minimum;
  ground.sent = ground.arrangement.stages > 1 ? boundary_seconds(ground) : 0;
}

StageEstimate WideSearch::estimated(const Entry& entry, const std::vector<PieceOption>& options,
                                    const std::vector<double>& limits, Cuts cuts) {
  const Ground& ground = grounds_[entry.ground];
  const Traced& t = traced(ground);
  CutRules rules = t.rules;
  rules.even = cuts == Cuts::kEven;
  rules.thorough = cuts == Cuts::kThorough;
  return estimate_stages(entry.arrangement, t.outline.pieces, options, limits, ground.sent,
                         schedules_, rules);
}

// Without a limit.
void WideSearch::estimate(size_t first) {
  in_parallel(entries_.size() - first, options_.threads, [&](size_t i) {
    Entry& e = entries_[first + i];
    const Ground& g = grounds_[e.ground];
    if (!g.free) {
      e.estimate = e.report.cost = kInfinity;
      e.bound = g.bound;
      e.report.why_not = g.why_not;
      return;
    }
    const std::vector<double> limits(static_cast<size_t>(e.arrangement.stages), kInfinity);
    e.estimate = e.free = estimated(e, g.options, limits).step_seconds;
    if (std::isinf(e.estimate)) {
      e.report.cost = e.bound = kInfinity;
      e.report.why_not = "no cuts are as pinned";
      return;
    }
    // Every stage does its share of all micro-batches and of the update: the slowest at least the
    // mean.
    e.bound = e.base_bound = std::min(g.bound / e.arrangement.stages, e.estimate);
    e.report.cost = e.estimate;
    e.report.lower_bound = e.bound;
  });
}

// What pieces take and hold in this mode at these prices, each a placement of its own.
std::vector<PieceOption> WideSearch::options_at(const Ground& ground, size_t mode,
                                                const std::vector<double>& prices) const {
  const Traced& t = traced(ground);
  const PlacementSolver solver(t.folded[mode], cluster_, ground.arrangement.mesh,
                               ground.arrangement.roles, options_);
  std::vector<PieceOption> options;
  for (double price : prices) {
    const Solved solved = solver.solve(folded_costing(ground, price));
    if (!solved.plan) continue;
    options.push_back(
        {static_cast<int32_t>(mode), price, piece_loads(t.outline, t.folded[mode], *solved.plan)});
  }
  return options;
}

void WideSearch::add_menus(const std::vector<size_t>& grounds) {
  if (!options_.space.recompute || options_.pins.recompute) return;
  std::map<int64_t, size_t> missing;  // by micro-batches: a ground
  for (size_t g : grounds) {
    CLEAVE_ASSERT(grounds_[g].free, "a ground that could not be solved has no menu");
    const Traced& t = traced(grounds_[g]);
    if (!t.has_menu) missing.emplace(grounds_[g].arrangement.micro_batches, g);
  }
  const std::vector<std::pair<int64_t, size_t>> todo(missing.begin(), missing.end());
  in_parallel(todo.size(), options_.threads, [&](size_t i) {
    const Ground& ground = grounds_[todo[i].second];
    Traced& t = traced(ground);
    check_deadline(options_);
    t.menu = remake_menu(t.outline, t.folded[0], *ground.free, kModes);
    for (size_t mode = 1; mode < t.menu.size(); ++mode) {
      check_deadline(options_);
      t.folded.push_back(prepare_folded(t.outline, t.menu[mode]));
    }
    t.has_menu = true;
  });
}

void WideSearch::add_options(const std::vector<size_t>& grounds, Known wanted) {
  add_menus(grounds);
  struct Job {
    size_t ground = 0, mode = 0;
    std::vector<double> prices;
    std::vector<PieceOption> found;
  };
  std::vector<Job> jobs;
  const auto add = [&](size_t g, size_t mode, const std::vector<double>& prices) {
    Job& job = jobs.emplace_back();
    job.ground = g, job.mode = mode, job.prices = prices;
  };
  for (size_t g : grounds) {
    Ground& ground = grounds_[g];
    const double base = ground.base_price;
    const size_t last = traced(ground).menu.size() - 1;
    if (ground.known == Known::kFree) {
      add(g, last, {base, kHigh * base});
      ground.known = Known::kThrifty;
    }
    if (ground.known < wanted) {
      if (last > 0) add(g, 0, {base});
      for (size_t mode = 1; mode <= last; ++mode) add(g, mode, {0});
      ground.known = Known::kAll;
    }
  }
  in_parallel(jobs.size(), options_.threads, [&](size_t i) {
    jobs[i].found = options_at(grounds_[jobs[i].ground], jobs[i].mode, jobs[i].prices);
  });
  for (Job& job : jobs) {
    auto& options = grounds_[job.ground].options;
    options.insert(options.end(), job.found.begin(), job.found.end());
  }
}

void WideSearch::fit(Entry& entry) {
  Ground& ground = grounds_[entry.ground];
  std::vector<double> limits(static_cast<size_t>(entry.arrangement.stages),
                             kEasy * limit_ - overhead(entry));
  double seconds = estimated(entry, ground.options, limits).step_seconds;
  if (std::isinf(seconds) && ground.known != Known::kFree) {
    limits.assign(limits.size(), limit_ - overhead(entry));
    seconds = estimated(entry, ground.options, limits).step_seconds;
  }
  entry.overhead = overhead(entry);
  entry.fitted = std::isfinite(seconds);
  entry.report.cost = seconds;
  entry.report.planned = false;
  if (entry.fitted) {
    // Between the quickest and the thriftiest ways there will be better ones, and so where the
    // quickest fit in uneven stages.
    const bool hope = ground.known != Known::kAll && seconds > entry.free * (1 + 1e-9);
    entry.estimate = hope ? entry.free + kHope * (seconds - entry.free) : seconds;
    entry.final = !hope;
    return;
  }
  entry.final = ground.known != Known::kFree;
  if (!entry.final) return;
  entry.estimate = kInfinity;
  entry.report.why_not = kUnfit;
  // What the thriftiest way would hold, as far as pieces tell.
  double least = kInfinity;
  const std::vector<double> none(limits.size(), kInfinity);
  for (const PieceOption& option : ground.options) {
    const StageEstimate e = estimated(entry, {option}, none);
    if (e.bytes.empty()) continue;
    least = std::min(least, *std::max_element(e.bytes.begin(), e.bytes.end()));
  }
  if (std::isfinite(least)) {
    entry.report.peak_bytes = static_cast<int64_t>(least + overhead(entry));
    note_peak(entry.report.peak_bytes);
  }
}

// Prices at which a byte costs what the entry's own mix of options pays for it, and the ways that
// are best at these: the columns that a linear program over mixes would ask for.
void WideSearch::refine(Entry& entry) {
  Ground& ground = grounds_[entry.ground];
  if (ground.known == Known::kFree) return;
  const std::vector<double> limits(static_cast<size_t>(entry.arrangement.stages),
                                   kEasy * limit_ - overhead(entry));
  const double m = static_cast<double>(entry.arrangement.micro_batches);
  for (int round = 0; round < kRefinements; ++round) {
    const StageEstimate e = estimated(entry, ground.options, limits);
    if (std::isinf(e.step_seconds)) return;
    double price = 0;
    for (const StageMix& mix : e.mixes) {
      const PieceOption& a = ground.options[size_t(mix.first)];
      const PieceOption& b = ground.options[size_t(mix.second)];
      double more = 0, less = 0;  // seconds of b above a, bytes of a above b
      for (size_t p = 0; p < a.loads.size(); ++p) {
        const GroupLoad &x = a.loads[p], &y = b.loads[p];
        more += m * (y.seconds[0] + y.seconds[1] - x.seconds[0] - x.seconds[1]) + y.seconds[2] -
                x.seconds[2];
        less += static_cast<double>(x.state_bytes - y.state_bytes) +
                folded_flights(ground) * static_cast<double>(x.kept_bytes - y.kept_bytes);
      }
      if (more > 0 && less > 0) price = std::max(price, more / less);
    }
    if (price <= 0) return;
    const bool known =
        std::any_of(ground.options.begin(), ground.options.end(),
                    [&](const auto& o) { return std::abs(o.price - price) <= 1e-3 * price; });
    if (known) return;
    std::vector<std::vector<PieceOption>> found(traced(ground).menu.size());
    in_parallel(found.size(), options_.threads,
                [&](size_t mode) { found[mode] = options_at(ground, mode, {price}); });
    for (auto& list : found) {
      ground.options.insert(ground.options.end(), list.begin(), list.end());
    }
  }
}

}  // namespace cleave
