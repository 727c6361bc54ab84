#include "planner/wide_search.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <set>
#include <thread>

#include "graph/error.h"
#include "planner/mesh_search.h"
#include "planner/remake_menu.h"
#include "planner/roles.h"
#include "planner/solver.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr size_t kModes = 4;          // of recomputation that are compared, with none
constexpr int kTries = 6;             // to make a plan fit whose pieces alone would
constexpr size_t kMostRealised = 24;  // arrangements planned in full

// The counts of micro-batches worth a graph of their own: powers of two, and the whole batch.
std::vector<int64_t> counts(int64_t batch) {
  std::vector<int64_t> result;
  for (int64_t m = 1; m <= batch; ++m) {
    if (batch % m == 0) result.push_back(m);
  }
  return result;
}

// Sequences in a step, all micro-batches together; 0: the graph has no batch.
int64_t sequences(const Graph& graph) {
  for (const Source& s : graph.sources()) {
    if (s.kind != SourceKind::kData || s.roles.empty() || s.roles[0] != "batch") continue;
    return graph.type(s.value).shape[0] * graph.micro_batches;
  }
  return 0;
}

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

std::string slower(double cost, double best) {
  return fmt::format("slower by {:.1f} %", 100 * (cost / best - 1));
}

}  // namespace

WideSearch::WideSearch(const Graph& graph, const Cluster& cluster, const PlannerOptions& options)
    : cluster_(cluster),
      options_(options),
      limit_(options.memory_limit > 0 ? options.memory_limit : cluster.device.memory) {
  const Outline& first =
      outlines_.emplace(graph.micro_batches, outline_of(std::make_shared<const Graph>(graph)))
          .first->second;
  const PreparedGraph folded = prepare_folded(first, {});
  ArrangementLimits limits;
  limits.batch = sequences(graph);
  limits.pieces = static_cast<int64_t>(first.pieces.size());
  limits.sequence = folded.restrictions.sequence >= 0;
  limits.experts = std::any_of(folded.restrictions.indexed.begin(),
                               folded.restrictions.indexed.end(), [&](ClassId c) {
                                 for (size_t n = 0; n < folded.graph->nodes().size(); ++n) {
                                   const int32_t p = folded.piece_of[n];
                                   if (first.pieces[static_cast<size_t>(p)].repeat < 0) continue;
                                   for (const auto& factor : folded.dimensions->factors[n]) {
                                     for (const Atom& a : factor) {
                                       if (a.dimension_class == c) return true;
                                     }
                                   }
                                 }
                                 return false;
                               });
  limits.micro_batches = {graph.micro_batches};
  if (options.trace && limits.batch > 0) limits.micro_batches = counts(limits.batch);
  limits.max_axes = options.space.max_axes;
  limits.stages = options.space.stages;
  for (Arrangement& arrangement : arrangements_of(cluster, options.mesh, options.pins, limits)) {
    Entry entry;
    entry.report.mesh = arrangement.mesh;
    entry.report.stages = arrangement.stages;
    entry.report.chunks = arrangement.chunks;
    entry.report.schedule = arrangement.schedule;
    entry.report.micro_batches = arrangement.micro_batches;
    entry.arrangement = std::move(arrangement);
    entries_.push_back(std::move(entry));
  }
}

const Outline& WideSearch::outline(int64_t micro_batches) { return outlines_.at(micro_batches); }

// One ground for arrangements that differ in schedule and chunks only. Of the counts of
// micro-batches, those are kept that give each part of the data axes 1, 2, 4, ... sequences.
void WideSearch::prepare_grounds() {
  std::map<std::tuple<int32_t, int64_t, std::string, std::vector<AxisRole>>, size_t> known;
  for (Entry& e : entries_) {
    const auto key = std::make_tuple(e.arrangement.stages, e.arrangement.micro_batches,
                                     e.arrangement.mesh.to_string(), e.arrangement.roles);
    const auto [at, added] = known.emplace(key, grounds_.size());
    if (added) {
      grounds_.emplace_back();
      grounds_.back().arrangement = e.arrangement;
    }
    e.ground = at->second;
  }
  std::set<int64_t> micro;
  for (const Ground& g : grounds_) micro.insert(g.arrangement.micro_batches);
  std::vector<int64_t> missing;
  for (int64_t m : micro) {
    if (!outlines_.contains(m)) missing.push_back(m);
  }
  std::vector<Outline> made(missing.size());
  in_parallel(missing.size(), options_.threads,
              [&](size_t i) { made[i] = outline_of(options_.trace(missing[i])); });
  for (size_t i = 0; i < missing.size(); ++i) outlines_.emplace(missing[i], std::move(made[i]));
}

// Groups count as often as they stand for pieces.
Costing WideSearch::folded_costing(const Ground& ground, double price) const {
  const auto& groups = outlines_.at(ground.arrangement.micro_batches).folded.groups;
  const double m = static_cast<double>(ground.arrangement.micro_batches);
  const double p = static_cast<double>(ground.arrangement.stages);
  Costing costing;
  for (const FoldedGroup& g : groups) {
    costing.runs.push_back({m * g.weight, m * g.weight, g.weight});
    const double byte = price * g.weight;
    costing.prices.push_back({.low = byte, .high = byte});
    costing.in_flight.push_back(std::max(1.0, std::min(m, p) / 2));
  }
  return costing;
}

// What a rank of one stage sends to its twin of the next for one micro-batch.
double WideSearch::boundary_seconds(const Ground& ground) const {
  const Graph& graph = *ground.prepared->graph;
  const Plan& plan = *ground.free;
  double most = 0;
  for (size_t v = 0; v < graph.values().size(); ++v) {
    const NodeId producer = graph.values()[v].producer;
    if (producer == kNoNode || graph.node(producer).phase != Phase::kForward) continue;
    const FoldedGroup& group =
        outlines_.at(ground.arrangement.micro_batches)
            .folded.groups[static_cast<size_t>(ground.prepared->group_of_value[v])];
    if (group.piece >= 0) continue;  // it passes between layers
    const Layout layout = plan.layout(static_cast<Value>(v), 0);
    most += static_cast<double>(numel(layout.local_shape(plan.mesh)) *
                                size_of(graph.values()[v].type.dtype)) /
            std::max(1.0, group.inside ? 1.0 : 2.0);
    break;
  }
  const bool leaves = 2 * ground.arrangement.mesh.size() > cluster_.devices_per_node;
  const Link& link = leaves ? cluster_.between : cluster_.within;
  return link.start + link.latency + most / link.bandwidth;
}

void WideSearch::solve(Ground& ground) {
  const Outline& o = outline(ground.arrangement.micro_batches);
  ground.prepared = prepare_folded(o, {});
  const PlacementSolver solver(*ground.prepared, cluster_, ground.arrangement.mesh,
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
  ground.loads = piece_loads(o, *ground.free);
  ground.bound = solved.minimum;
  ground.sent = ground.arrangement.stages > 1 ? boundary_seconds(ground) : 0;
}

// Estimates without a limit, the quickest first.
void WideSearch::rank() {
  for (Entry& e : entries_) {
    const Ground& g = grounds_[e.ground];
    if (!g.free) {
      e.estimate = kInfinity;
      e.bound = g.bound;
      e.report.why_not = g.why_not;
      e.report.cost = kInfinity;
      continue;
    }
    const Outline& o = outline(e.arrangement.micro_batches);
    const std::vector<double> limits(static_cast<size_t>(e.arrangement.stages), kInfinity);
    e.estimate =
        estimate_stages(e.arrangement, o.pieces, {{0, 0, g.loads}}, limits, g.sent).step_seconds;
    // Every stage does its share of all micro-batches and of the update: the slowest at least the
    // mean.
    const double bound = g.bound / e.arrangement.stages;
    e.bound = std::min(bound, e.estimate);
    e.report.cost = e.estimate;
    e.report.lower_bound = e.bound;
  }
  std::stable_sort(entries_.begin(), entries_.end(),
                   [](const Entry& a, const Entry& b) { return a.estimate < b.estimate; });
}

// What pieces take and hold under several prices of memory and modes of recomputation. The first is
// without either.
std::vector<PieceOption> WideSearch::options_for(const Entry& entry,
                                                 std::vector<RemakeMode>& menu) {
  const Ground& ground = grounds_[entry.ground];
  const Outline& o = outline(entry.arrangement.micro_batches);
  std::vector<PieceOption> options = {{0, 0, ground.loads}};
  menu = {{}};
  if (options_.space.recompute) {
    menu = remake_menu(o, *ground.prepared, *ground.free, kModes);
  }
  const double base = entry.estimate / limit_;
  for (size_t mode = 0; mode < menu.size(); ++mode) {
    const PreparedGraph prepared = mode == 0 ? *ground.prepared : prepare_folded(o, menu[mode]);
    const PlacementSolver solver(prepared, cluster_, ground.arrangement.mesh,
                                 ground.arrangement.roles, options_);
    for (double price : {0.0, base, 64 * base}) {
      if (mode == 0 && price == 0) continue;
      const Solved solved = solver.solve(folded_costing(ground, price));
      if (!solved.plan) continue;
      options.push_back({static_cast<int32_t>(mode), price, piece_loads(o, *solved.plan)});
    }
  }
  return options;
}

std::optional<Plan> WideSearch::realise_one_stage(Entry& entry,
                                                  const std::vector<PieceOption>& options,
                                                  const std::vector<RemakeMode>& menu,
                                                  std::shared_ptr<const Graph>& graph) {
  const Outline& o = outline(entry.arrangement.micro_batches);
  std::optional<Plan> best;
  double margin = 0;
  Candidate report = entry.report;
  for (int i = 0; i < kTries; ++i) {
    const StageEstimate e =
        estimate_stages(entry.arrangement, o.pieces, options, {limit_ - margin}, 0);
    if (std::isinf(e.step_seconds)) {
      entry.report.why_not = "does not fit in memory";
      break;
    }
    const StageMix& mix = e.mixes[0];
    Rewrite rewrite;
    std::vector<bool> before(o.pieces.size()), after(o.pieces.size());
    for (size_t p = 0; p < before.size(); ++p) {
      before[p] = static_cast<int32_t>(p) < mix.split, after[p] = !before[p];
    }
    rewrite.remade = o.nodes_of(menu[size_t(options[size_t(mix.first)].mode)], before);
    const auto more = o.nodes_of(menu[size_t(options[size_t(mix.second)].mode)], after);
    rewrite.remade.insert(rewrite.remade.end(), more.begin(), more.end());
    std::sort(rewrite.remade.begin(), rewrite.remade.end());
    RewrittenGraph made = rewritten(*o.graph, rewrite);
    auto run = std::make_shared<const Graph>(std::move(made.graph));
    const PreparedGraph prepared = prepare(o, run, made.origin);
    MeshSearch search(prepared, cluster_, entry.arrangement.mesh, entry.arrangement.roles, options_,
                      limit_);
    Candidate found = entry.report;
    auto plan = search.search(result_.plan ? result_.plan->certificate.cost : kInfinity, found);
    if (plan) {
      plan->rewrite = std::move(rewrite);
      graph = std::move(run);
      entry.report = found;
      return plan;
    }
    const double peak = static_cast<double>(found.peak_bytes);
    if (result_.smallest_peak == 0 ||
        (found.peak_bytes > 0 && found.peak_bytes < result_.smallest_peak)) {
      result_.smallest_peak = found.peak_bytes;
    }
    entry.report.why_not = found.why_not;
    entry.report.peak_bytes = found.peak_bytes;
    if (found.why_not != "does not fit in memory" || peak <= limit_) break;
    margin += std::max(peak - limit_, 0.02 * limit_);
  }
  return std::nullopt;
}

std::optional<Plan> WideSearch::realise_stages(Entry& entry,
                                               const std::vector<PieceOption>& options,
                                               const std::vector<RemakeMode>& menu,
                                               std::shared_ptr<const Graph>& graph) {
  const Outline& o = outline(entry.arrangement.micro_batches);
  const Ground& ground = grounds_[entry.ground];
  const Arrangement& arrangement = entry.arrangement;
  const auto stages = static_cast<size_t>(arrangement.stages);
  const int32_t chunks = arrangement.stages * arrangement.chunks;
  std::vector<double> margin(stages, 0);
  for (int i = 0; i < kTries; ++i) {
    std::vector<double> limits;
    for (double m : margin) limits.push_back(limit_ - m);
    const StageEstimate e = estimate_stages(arrangement, o.pieces, options, limits, ground.sent);
    if (std::isinf(e.step_seconds)) {
      entry.report.why_not = "does not fit in memory";
      return std::nullopt;
    }
    Rewrite rewrite;
    for (int32_t c = 1; c < chunks; ++c) {
      rewrite.cuts.push_back(o.pieces[size_t(e.first_piece[size_t(c)])].first);
    }
    std::vector<std::vector<bool>> chosen(menu.size(), std::vector<bool>(o.pieces.size(), false));
    Costing costing;
    Pipeline pipeline;
    pipeline.schedule = arrangement.schedule;
    pipeline.stages = arrangement.stages;
    pipeline.chunks = arrangement.chunks;
    const Schedule schedule =
        make_schedule(arrangement.schedule, arrangement.stages, arrangement.chunks,
                      static_cast<int32_t>(arrangement.micro_batches));
    const double m = static_cast<double>(arrangement.micro_batches);
    const double p = static_cast<double>(arrangement.stages);
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
    for (size_t mode = 0; mode < menu.size(); ++mode) {
      const auto nodes = o.nodes_of(menu[mode], chosen[mode]);
      rewrite.remade.insert(rewrite.remade.end(), nodes.begin(), nodes.end());
    }
    std::sort(rewrite.remade.begin(), rewrite.remade.end());
    RewrittenGraph made = rewritten(*o.graph, rewrite);
    auto run = std::make_shared<const Graph>(std::move(made.graph));
    PreparedGraph prepared = prepare(o, run, made.origin);
    prepared.group_of = made.chunk_of;
    pipeline.chunk_of = std::move(made.chunk_of);
    const PlacementSolver solver(prepared, cluster_, arrangement.mesh, arrangement.roles, options_);
    Solved solved = solver.solve(costing, pipeline);
    if (!solved.plan) {
      entry.report.why_not = solved.too_large.empty() ? "no placement works" : solved.too_large;
      return std::nullopt;
    }
    Plan& plan = *solved.plan;
    plan.rewrite = std::move(rewrite);
    plan.pipeline.seconds = chunk_seconds(*run, plan);
    std::vector<double> updates(stages, 0);
    std::vector<int64_t> held(stages, 0);
    for (int32_t c = 0; c < chunks; ++c) {
      const GroupLoad& l = plan.loads[size_t(c)];
      updates[size_t(c % arrangement.stages)] += l.seconds[2] + l.received[2];
      held[size_t(c % arrangement.stages)] += l.state_bytes + schedule.in_flight(c) * l.kept_bytes;
    }
    plan.pipeline.step_seconds =
        step_seconds(arrangement, plan.pipeline.seconds, std::vector<double>(stages, 0));
    plan.certificate.cost = step_seconds(arrangement, plan.pipeline.seconds, updates);
    plan.predicted.step_seconds = plan.certificate.cost;
    entry.report.cost = plan.certificate.cost;
    if (result_.plan && plan.certificate.cost >= result_.plan->certificate.cost) {
      entry.report.why_not = slower(plan.certificate.cost, result_.plan->certificate.cost);
      return std::nullopt;
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
      graph = std::move(run);
      return std::move(solved.plan);
    }
    if (result_.smallest_peak == 0 || plan.predicted.peak_bytes < result_.smallest_peak) {
      result_.smallest_peak = plan.predicted.peak_bytes;
    }
    for (size_t s = 0; s < stages; ++s) {
      margin[s] += std::max(0.0, static_cast<double>(bytes[s]) - limit_) * 1.02;
    }
  }
  entry.report.why_not = "does not fit in memory";
  return std::nullopt;
}

void WideSearch::realise(Entry& entry) {
  std::vector<RemakeMode> menu = {{}};
  std::vector<PieceOption> options = {{0, 0, grounds_[entry.ground].loads}};
  // Without pressure one option will do.
  const Outline& o = outline(entry.arrangement.micro_batches);
  const std::vector<double> limits(static_cast<size_t>(entry.arrangement.stages), 0.9 * limit_);
  const bool easy =
      std::isfinite(estimate_stages(entry.arrangement, o.pieces, options, limits, 0).step_seconds);
  if (!easy) {
    options = options_for(entry, menu);
    const double estimate =
        estimate_stages(entry.arrangement, o.pieces, options,
                        std::vector<double>(limits.size(), limit_), grounds_[entry.ground].sent)
            .step_seconds;
    if (std::isinf(estimate)) {
      entry.report.cost = kInfinity;
      entry.report.why_not = "does not fit in memory";
      return;
    }
    entry.report.cost = estimate;
    if (result_.plan && estimate >= result_.plan->certificate.cost) {
      entry.report.why_not = slower(estimate, result_.plan->certificate.cost) + " once it fits";
      return;
    }
  }
  std::shared_ptr<const Graph> graph;
  auto plan = entry.arrangement.stages == 1 ? realise_one_stage(entry, options, menu, graph)
                                            : realise_stages(entry, options, menu, graph);
  if (!plan) return;
  result_.plan = std::move(plan);
  result_.graph = std::move(graph);
}

PlanResult WideSearch::run() {
  prepare_grounds();
  in_parallel(grounds_.size(), std::max(1, options_.threads),
              [&](size_t i) { solve(grounds_[i]); });
  rank();
  size_t realised = 0;
  double bound = kInfinity;
  for (Entry& e : entries_) {
    const double best = result_.plan ? result_.plan->certificate.cost : kInfinity;
    if (e.estimate < best && realised < kMostRealised) {
      ++realised;
      realise(e);
    } else if (std::isfinite(e.estimate)) {
      e.report.why_not = slower(e.estimate, best);
    }
    bound = std::min(bound, e.bound);
  }
  for (Entry& e : entries_) {
    if (e.report.why_not.empty() && result_.plan &&
        e.report.cost > result_.plan->certificate.cost) {
      e.report.why_not = slower(e.report.cost, result_.plan->certificate.cost);
    }
    result_.candidates.push_back(std::move(e.report));
  }
  if (result_.plan) {
    result_.plan->certificate.lower_bound = std::min(bound, result_.plan->certificate.cost);
  }
  return std::move(result_);
}

std::vector<ChunkSeconds> chunk_seconds(const Graph& graph, const Plan& plan) {
  std::vector<ChunkSeconds> chunks(plan.loads.size());
  for (size_t c = 0; c < chunks.size(); ++c) {
    chunks[c].forward = plan.loads[c].seconds[0];
    chunks[c].backward = plan.loads[c].seconds[1];
    if (c > 0) chunks[c - 1].send_forward = plan.loads[c].received[0];
    if (c + 1 < chunks.size()) chunks[c + 1].send_backward = plan.loads[c].received[1];
  }
  if (plan.pipeline.schedule != ScheduleKind::kZeroBubble) return chunks;
  // What the chunk before waits for: whatever a transfer out of the chunk is made of.
  const auto& chunk_of = plan.pipeline.chunk_of;
  std::vector<bool> awaited(graph.nodes().size(), false);
  for (size_t n = graph.nodes().size(); n-- > 0;) {
    const Node& node = graph.nodes()[n];
    if (node.phase != Phase::kBackward || !(node.op->transfer || awaited[n])) continue;
    for (Value v : node.inputs) {
      const NodeId producer = graph.value(v).producer;
      if (producer != kNoNode) awaited[static_cast<size_t>(producer)] = true;
    }
  }
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    if (graph.nodes()[n].phase != Phase::kBackward || awaited[n] || graph.nodes()[n].op->transfer) {
      continue;
    }
    ChunkSeconds& c = chunks[static_cast<size_t>(chunk_of[n])];
    c.weight_gradient += plan.nodes[n].seconds;
    c.backward -= plan.nodes[n].seconds;
  }
  return chunks;
}

}  // namespace cleave
