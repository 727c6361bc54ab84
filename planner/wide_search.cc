#include "planner/wide_search.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <queue>
#include <set>
#include <thread>

#include "graph/error.h"
#include "planner/bounds.h"
#include "planner/pin_preferences.h"
#include "planner/pipeline_seconds.h"
#include "planner/remake.h"
#include "planner/remake_menu.h"
#include "planner/roles.h"
#include "planner/solver.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr const char* kUnfit = "does not fit in memory";
constexpr size_t kModes = 4;        // of recomputation that are compared, with none
constexpr double kEasy = 0.96;      // of the limit: what pieces may take, so that the rest fits too
constexpr size_t kSeeds = 4;        // meshes that are tried with a third axis
constexpr size_t kCountSeeds = 12;  // and with other numbers of micro-batches
constexpr int kTries = 6;           // to make a plan fit whose pieces alone would
constexpr size_t kBatch = 8;        // arrangements whose grounds get more options at once
constexpr double kHigh = 64;        // a high price, in steps a limit
constexpr double kHope = 0.5;       // of what the thriftiest ways cost, what better ones may save
constexpr int kRefinements = 3;     // rounds in which options are added for one entry
// Estimates are about as close: so many are planned in full that promise to be a little slower.
constexpr double kClose = 1.005;
constexpr size_t kMostBeyond = 3;
constexpr double kKept = 1.03;        // of its estimate: a plan that costs no more kept its promise
constexpr size_t kMostFailed = 12;    // arrangements that do not fit in the end, before giving up
constexpr size_t kMostRealised = 24;  // arrangements planned in full
constexpr size_t kTogether = 2;       // so many at once, on however few threads
constexpr size_t kMostAsked = 32;     // grounds whose ways are computed for the bound alone

// Work on [0, count) by so many threads; the first exception is thrown again.
template <class Work>
void in_parallel(size_t count, int threads, const Work& work) {
  std::atomic<size_t> next = 0;
  std::exception_ptr failure;
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  const auto loop = [&] {
    for (size_t i; (i = next++) < count;) {
      try {
        work(i);
      } catch (...) {
        if (!failed.test_and_set()) failure = std::current_exception();
      }
    }
  };
  std::vector<std::jthread> team;
  for (int t = 1; t < threads; ++t) team.emplace_back(loop);
  loop();
  team.clear();
  if (failure) std::rethrow_exception(failure);
}

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

std::string slower(double cost, double best) {
  return fmt::format("slower by {:.1f} %", 100 * (cost / best - 1));
}

}  // namespace

WideSearch::WideSearch(const Graph& graph, const Cluster& cluster, const PlannerOptions& options)
    : cluster_(cluster), options_(options), limit_(memory_limit(options, cluster)) {
  if (options_.threads == 0) {
    options_.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  }
  const Traced& traced =
      traced_.emplace(graph.micro_batches, traced_of(std::make_shared<const Graph>(graph)))
          .first->second;
  const Outline& first = traced.outline;
  const PreparedGraph& folded = traced.folded[0];
  ArrangementLimits limits;
  limits.batch = sequences_per_step(graph);
  limits.pieces = static_cast<int64_t>(first.pieces.size());
  limits.sequence = folded.restrictions.sequence >= 0;
  limits.experts = looks_up_in_layers(first, folded);
  limits.micro_batches = {graph.micro_batches};
  if (options.trace && limits.batch > 0) limits.micro_batches = divisors(limits.batch);
  if (const auto pinned = options.pins.micro_batches; pinned && options.trace) {
    limits.micro_batches = {*pinned};
  }
  limits.max_axes = options.space.max_axes;
  limits.stages = options.space.stages;
  limits_ = limits;
  for (Arrangement& a : arrangements_of(cluster, options.mesh, options.pins, limits)) {
    add_entry(std::move(a));
  }
}

void WideSearch::add_entry(Arrangement arrangement) {
  const auto key =
      std::make_tuple(ground_key(arrangement), arrangement.schedule, arrangement.chunks);
  if (!known_entries_.insert(key).second) return;
  Entry entry;
  entry.report = candidate_of(arrangement);
  entry.arrangement = std::move(arrangement);
  entries_.push_back(std::move(entry));
}

WideSearch::Traced WideSearch::traced_of(std::shared_ptr<const Graph> graph) const {
  Traced t;
  t.outline = outline_of(std::move(graph));
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
    t.menu = remake_menu(t.outline, t.folded[0], *ground.free, kModes);
    for (size_t mode = 1; mode < t.menu.size(); ++mode) {
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

std::vector<NodeId> WideSearch::remade_nodes(const Entry& entry,
                                             const std::vector<std::vector<bool>>& chosen) const {
  const Traced& t = traced(grounds_[entry.ground]);
  std::vector<NodeId> nodes;
  for (size_t mode = 0; mode < t.menu.size(); ++mode) {
    const auto more = t.outline.nodes_of(t.menu[mode], chosen[mode]);
    nodes.insert(nodes.end(), more.begin(), more.end());
  }
  if (!t.pins.remade.empty()) {
    const std::vector<bool> may = can_be_remade(*t.outline.graph);
    std::erase_if(nodes, [&](NodeId n) { return t.pins.remade[size_t(n)] == 0; });
    for (size_t n = 0; n < may.size(); ++n) {
      if (t.pins.remade[n] == 1 && may[n]) nodes.push_back(static_cast<NodeId>(n));
    }
  }
  std::sort(nodes.begin(), nodes.end());
  nodes.erase(std::unique(nodes.begin(), nodes.end()), nodes.end());
  return nodes;
}

void WideSearch::note_peak(int64_t bytes) {
  const std::lock_guard lock(peak_mutex_);
  if (bytes > 0 && (result_.smallest_peak == 0 || bytes < result_.smallest_peak)) {
    result_.smallest_peak = bytes;
  }
}

WideSearch::Realised WideSearch::realised(Entry& entry, bool even, double best) {
  Ground& ground = grounds_[entry.ground];
  const std::vector<PieceOption>& options = ground.options;
  const std::vector<RemakeMode>& menu = traced(ground).menu;
  const Outline& o = outline(entry);
  const Arrangement& arrangement = entry.arrangement;
  const auto stages = static_cast<size_t>(arrangement.stages);
  const int32_t chunks = arrangement.stages * arrangement.chunks;
  const bool piped = arrangement.stages > 1;
  std::vector<double> margin(stages, overhead(entry));
  for (int i = 0; i < kTries; ++i) {
    std::vector<double> limits;
    for (double m : margin) limits.push_back(limit_ - m);
    const StageEstimate e = estimated(entry, options, limits, even ? Cuts::kEven : Cuts::kThorough);
    if (std::isinf(e.step_seconds)) break;
    Rewrite rewrite;
    for (int32_t c = 1; c < chunks; ++c) {
      rewrite.cuts.push_back(o.pieces[size_t(e.first_piece[size_t(c)])].first);
    }
    std::vector<std::vector<bool>> chosen(menu.size(), std::vector<bool>(o.pieces.size(), false));
    Costing costing;
    Pipeline pipeline = pipeline_of(arrangement);
    const Schedule& schedule = schedules_.of(arrangement).schedule;
    const double m = static_cast<double>(arrangement.micro_batches);
    const double p = static_cast<double>(arrangement.stages);  // m + p - 1 passes from end to end
    for (int32_t c = 0; c < chunks; ++c) {
      const StageMix& mix = e.mixes[size_t(c % arrangement.stages)];
      const PieceOption& first = options[size_t(mix.first)];
      const PieceOption& second = options[size_t(mix.second)];
      const int32_t end =
          c + 1 < chunks ? e.first_piece[size_t(c) + 1] : static_cast<int32_t>(o.pieces.size());
      for (int32_t piece = e.first_piece[size_t(c)]; piece < end; ++piece) {
        chosen[size_t((piece < mix.split ? first : second).mode)][size_t(piece)] = true;
      }
      costing.runs.push_back({m + p - 1, m + p - 1, 1});
      costing.prices.push_back({.low = first.price, .high = second.price, .split = mix.split});
      costing.in_flight.push_back(schedule.in_flight(c));
    }
    rewrite.remade = remade_nodes(entry, chosen);
    RewrittenGraph made = rewritten(*o.graph, rewrite);
    auto run = std::make_shared<const Graph>(std::move(made.graph));
    PreparedGraph prepared = prepare(o, run, made.origin);
    if (piped) {
      prepared.group_of = made.chunk_of;
      pipeline.chunk_of = std::move(made.chunk_of);
    }
    const PlacementSolver solver(prepared, cluster_, arrangement.mesh, arrangement.roles, options_);
    Solved solved = solver.solve(costing, pipeline);
    if (!solved.plan) {
      entry.report.why_not = solved.too_large.empty() ? "no placement works" : solved.too_large;
      return {};
    }
    Plan& plan = *solved.plan;
    plan.rewrite = std::move(rewrite);
    std::vector<int64_t> held(stages, 0);
    for (int32_t c = 0; c < chunks; ++c) {
      const GroupLoad& l = plan.loads[size_t(c)];
      held[size_t(c % arrangement.stages)] += l.state_bytes + schedule.in_flight(c) * l.kept_bytes;
    }
    if (piped) set_step_seconds(*run, plan, schedules_);
    entry.report.cost = plan.certificate.cost;
    entry.report.planned = true;
    if (plan.certificate.cost >= best) {
      entry.report.why_not = slower(plan.certificate.cost, best);
      return {};
    }
    std::vector<int64_t> bytes = options_.live_bytes ? options_.live_bytes(*run, plan) : held;
    const auto over = [&](int64_t b) { return static_cast<double>(b) > limit_; };
    if (options_.peak_bytes && std::none_of(bytes.begin(), bytes.end(), over)) {
      bytes = options_.peak_bytes(*run, plan);
    }
    plan.predicted.peak_bytes = *std::max_element(bytes.begin(), bytes.end());
    entry.report.peak_bytes = plan.predicted.peak_bytes;
    if (std::none_of(bytes.begin(), bytes.end(), over)) {
      name_axes(*run, plan);
      entry.report.mesh = plan.mesh;
      entry.report.compute_seconds = plan.predicted.compute_seconds;
      entry.report.communication_seconds = plan.predicted.communication_seconds;
      entry.report.why_not.clear();
      return {std::move(solved.plan), std::move(run)};
    }
    note_peak(plan.predicted.peak_bytes);
    for (size_t s = 0; s < stages; ++s) {
      const double more = static_cast<double>(bytes[s]) - e.bytes[s];
      if (i == 0) overhead(entry) = std::max(overhead(entry), more);
      // The more tries, the more at once: what is left out comes in steps.
      const double excess = static_cast<double>(bytes[s]) - limit_;
      if (excess > 0) margin[s] += 1.02 * excess + 4e-3 * (i + 1) * limit_;
    }
  }
  entry.report.why_not = kUnfit;
  entry.report.cost = kInfinity;
  return {};
}

WideSearch::Realised WideSearch::realise(Entry& entry, double best) {
  refine(entry);
  const double promised = entry.estimate;
  Realised found;
  Candidate report;
  // What uneven cuts promise they may not keep: values cost something to pass where layers have no
  // border.
  for (const bool even : {false, true}) {
    if (even && (entry.arrangement.chunks == 1 || entry.report.cost < kKept * promised ||
                 entry.report.why_not == kUnfit)) {
      break;
    }
    Realised made = realised(entry, even, best);
    if (!made.plan) continue;
    best = made.plan->certificate.cost;
    found = std::move(made);
    report = entry.report;
  }
  if (found.plan) entry.report = std::move(report);
  return found;
}

void WideSearch::work_through(size_t first) {
  using Next = std::pair<double, size_t>;
  std::priority_queue<Next, std::vector<Next>, std::greater<>> queue;
  for (size_t i = first; i < entries_.size(); ++i) queue.emplace(entries_[i].estimate, i);
  const size_t most_unfit = hopeless() ? 2 * kBatch : entries_.size();
  size_t failed = 0, unfit = 0, realised = 0, beyond = 0;
  double worth = kClose;
  const auto done = [&] {
    return queue.empty() || std::isinf(queue.top().first) || unfit >= most_unfit ||
           (result_.plan && queue.top().first >= worth * result_.plan->certificate.cost);
  };
  while (!done() && realised < kMostRealised) {
    // What needs more options of its ground before it can be compared, several at once.
    std::vector<size_t> thrifty, all, batch;
    while (!done() && batch.size() < kBatch) {
      const size_t i = queue.top().second;
      Entry& e = entries_[i];
      Ground& ground = grounds_[e.ground];
      if (e.final && e.overhead == overhead(e)) break;
      queue.pop();
      if (!e.fitted || e.overhead != overhead(e)) fit(e);
      if (e.final) {
        queue.emplace(e.estimate, i);
        continue;
      }
      if (ground.base_price == 0) ground.base_price = e.free / limit_;
      auto& list = e.fitted ? all : thrifty;
      if (std::find(list.begin(), list.end(), e.ground) == list.end()) list.push_back(e.ground);
      batch.push_back(i);
    }
    if (!batch.empty()) {
      add_options(thrifty, Known::kThrifty);
      add_options(all, Known::kAll);
      in_parallel(batch.size(), options_.threads, [&](size_t i) { fit(entries_[batch[i]]); });
      for (size_t i : batch) {
        unfit += std::isinf(entries_[i].estimate);
        queue.emplace(entries_[i].estimate, i);
      }
      continue;
    }
    // Two at once, if the next needs nothing either.
    std::vector<size_t> next;
    while (!done() && next.size() < kTogether) {
      const size_t i = queue.top().second;
      const Entry& e = entries_[i];
      if (!e.final || e.overhead != overhead(e)) break;
      if (!next.empty() && e.ground == entries_[next[0]].ground) break;
      if (result_.plan && e.estimate >= result_.plan->certificate.cost && ++beyond == kMostBeyond) {
        worth = 1;
      }
      queue.pop();
      next.push_back(i);
    }
    if (next.empty()) break;
    realised += next.size();
    const bool had = result_.plan.has_value();
    const double best = had ? result_.plan->certificate.cost : kInfinity;
    std::vector<Realised> made(next.size());
    in_parallel(next.size(), options_.threads,
                [&](size_t i) { made[i] = realise(entries_[next[i]], best); });
    for (size_t i = 0; i < next.size(); ++i) {
      Entry& e = entries_[next[i]];
      if (made[i].plan) {
        if (result_.plan && made[i].plan->certificate.cost >= result_.plan->certificate.cost) {
          continue;
        }
        result_.plan = std::move(made[i].plan);
        result_.graph = std::move(made[i].graph);
        chosen_ = next[i];
        continue;
      }
      // Its pieces seemed to fit as they are, and with others they may.
      Ground& ground = grounds_[e.ground];
      if (std::isfinite(e.estimate) && ground.known != Known::kAll && e.report.why_not == kUnfit) {
        if (ground.base_price == 0) ground.base_price = e.free / limit_;
        add_options({e.ground}, Known::kAll);
        fit(e);
        queue.emplace(e.estimate, next[i]);
        continue;
      }
      if (!had) ++failed;
    }
    // When the most promising do not fit after all, those behind them will not either.
    if (!result_.plan && failed >= kMostFailed) break;
  }
}

// Whether parameters and states alone, cut into as many parts as there are devices, are too much.
bool WideSearch::hopeless() const {
  const Graph& graph = *traced_.begin()->second.outline.graph;
  double bytes = 0;
  for (const Source& s : graph.sources()) {
    if (s.kind != SourceKind::kParameter && s.kind != SourceKind::kState) continue;
    if (options_.preferences.on_host && options_.preferences.on_host(s)) continue;
    bytes +=
        static_cast<double>(numel(graph.type(s.value).shape) * size_of(graph.type(s.value).dtype));
  }
  return bytes / static_cast<double>(cluster_.size()) > limit_;
}

void WideSearch::add_neighbours() {
  std::vector<size_t> order;
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (grounds_[entries_[i].ground].free) order.push_back(i);
  }
  // What does not fit by how much it lacks.
  const auto rank = [&](size_t i) {
    const Entry& e = entries_[i];
    return std::pair(e.estimate, std::isinf(e.estimate) ? e.report.peak_bytes : 0);
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return rank(a) < rank(b); });
  const bool axes =
      options_.space.max_axes > 2 && options_.mesh.empty() && !pins_axes(options_.pins);
  std::set<size_t> grounds;
  for (size_t i : order) {
    if (grounds.size() == kCountSeeds) break;
    if (!grounds.insert(entries_[i].ground).second) continue;
    const Arrangement from = entries_[i].arrangement;
    for (Arrangement& a : with_other_counts(from, limits_)) add_entry(std::move(a));
    if (!axes || grounds.size() > kSeeds) continue;
    for (Arrangement& a : with_third_axis(from, cluster_, limits_)) add_entry(std::move(a));
  }
}

// Ways that were not computed for a ground are no part of its bound: without all of them, its
// entries are bounded as if memory were no limit, unless not even the thriftiest fit.
void WideSearch::raise_bound(Entry& e, double best) {
  const Ground& g = grounds_[e.ground];
  if (!g.free || e.base_bound >= best) return;
  const std::vector<Piece>& pieces = outline(e).pieces;
  const auto stages = static_cast<size_t>(e.arrangement.stages);
  const std::vector<double> limits(stages, limit_), none(stages, kInfinity);
  const bool all = g.known == Known::kAll;
  const bool unfit = e.final && std::isinf(e.estimate);
  if (!all && unfit && nothing_fits(e.arrangement, pieces, g.options, limits, schedules_)) {
    e.bound = kInfinity;
  } else {
    e.bound = std::max(e.base_bound, pipeline_bound(e.arrangement, pieces, g.options,
                                                    all ? limits : none, g.sent, best, schedules_));
  }
  e.report.lower_bound = e.bound;
}

// Where the work alone bounds too little; then, the lowest first, of entries whose ground's ways
// were not all computed.
void WideSearch::raise_bounds(double best) {
  // Without a plan to compare it with, or when other plans would not use the host, nobody asks.
  if (std::isinf(best) || options_.preferences.on_host) return;
  in_parallel(entries_.size(), options_.threads, [&](size_t i) { raise_bound(entries_[i], best); });
  for (size_t asked = 0; asked < kMostAsked;) {
    std::vector<size_t> order;
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (entries_[i].bound < best) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return entries_[a].bound < entries_[b].bound; });
    std::vector<size_t> grounds;
    for (size_t i : order) {
      Ground& ground = grounds_[entries_[i].ground];
      // What could not be solved has no ways that could be asked for.
      if (!ground.free || ground.known == Known::kAll || grounds.size() == kBatch) break;
      if (std::find(grounds.begin(), grounds.end(), entries_[i].ground) != grounds.end()) continue;
      if (ground.base_price == 0) ground.base_price = entries_[i].free / limit_;
      grounds.push_back(entries_[i].ground);
    }
    if (grounds.empty()) return;
    asked += grounds.size();
    add_options(grounds, Known::kAll);
    in_parallel(order.size(), options_.threads, [&](size_t i) {
      Entry& e = entries_[order[i]];
      if (std::find(grounds.begin(), grounds.end(), e.ground) != grounds.end()) {
        raise_bound(e, best);
      }
    });
  }
}

PlanResult WideSearch::run() {
  prepare_grounds(0);
  estimate(0);
  work_through(0);
  if (const size_t first = entries_.size(); !hopeless()) {
    add_neighbours();
    prepare_grounds(first);
    estimate(first);
    work_through(first);
  }
  const double best = result_.plan ? result_.plan->certificate.cost : kInfinity;
  double bound = kInfinity;
  raise_bounds(best);
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& e = entries_[i];
    bound = std::min(bound, e.bound);
    if (!e.report.why_not.empty() || (result_.plan && i == chosen_)) continue;
    e.report.why_not = e.report.cost <= best ? "promising, but not planned in full"
                       : e.report.planned    ? slower(e.report.cost, best)
                                             : "by an estimate " + slower(e.report.cost, best);
  }
  std::stable_sort(entries_.begin(), entries_.end(),
                   [](const Entry& a, const Entry& b) { return a.report.cost < b.report.cost; });
  for (Entry& e : entries_) result_.candidates.push_back(std::move(e.report));
  if (result_.plan) result_.plan->certificate.lower_bound = std::min(bound, best);
  return std::move(result_);
}

}  // namespace cleave
