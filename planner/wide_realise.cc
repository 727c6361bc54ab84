// An arrangement of the wide search planned in full.
#include "planner/wide_search.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "graph/error.h"
#include "planner/pin_preferences.h"
#include "planner/pipeline_seconds.h"
#include "planner/remake.h"
#include "planner/remake_menu.h"
#include "planner/roles.h"
#include "planner/solver.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kTries = 6;       // to make a plan fit whose pieces alone would
constexpr double kKept = 1.03;  // of its estimate: a plan that costs no more kept its promise

}  // namespace

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

WideSearch::Attempt WideSearch::attempt(const Entry& entry, const StageEstimate& e) {
  const Ground& ground = grounds_[entry.ground];
  const std::vector<PieceOption>& options = ground.options;
  const Outline& o = outline(entry);
  const Arrangement& arrangement = entry.arrangement;
  const int32_t chunks = arrangement.stages * arrangement.chunks;
  Attempt a;
  for (int32_t c = 1; c < chunks; ++c) {
    a.rewrite.cuts.push_back(o.pieces[size_t(e.first_piece[size_t(c)])].first);
  }
  std::vector<std::vector<bool>> chosen(traced(ground).menu.size(),
                                        std::vector<bool>(o.pieces.size(), false));
  a.pipeline = pipeline_of(arrangement);
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
    a.costing.runs.push_back({m + p - 1, m + p - 1, 1});
    a.costing.prices.push_back({.low = first.price, .high = second.price, .split = mix.split});
    a.costing.in_flight.push_back(schedule.in_flight(c));
  }
  a.rewrite.remade = remade_nodes(entry, chosen);
  RewrittenGraph made = rewritten(*o.graph, a.rewrite);
  a.run = std::make_shared<const Graph>(std::move(made.graph));
  a.prepared = prepare(o, a.run, made.origin);
  if (arrangement.stages > 1) {
    a.prepared.group_of = made.chunk_of;
    a.pipeline.chunk_of = std::move(made.chunk_of);
  }
  return a;
}

WideSearch::Realised WideSearch::realised(Entry& entry, bool even, double best) {
  const std::vector<PieceOption>& options = grounds_[entry.ground].options;
  const Arrangement& arrangement = entry.arrangement;
  const auto stages = static_cast<size_t>(arrangement.stages);
  const int32_t chunks = arrangement.stages * arrangement.chunks;
  const Schedule& schedule = schedules_.of(arrangement).schedule;
  // Bytes that a stage is to leave: what it lacked so far, and what it was seen to need beyond its
  // pieces.
  std::vector<double> lacking(stages, overhead(entry)), beyond = lacking, excess(stages, 0);
  std::vector<StageEstimate> tried;
  const auto leaving = [&](const std::vector<double>& margin) {
    std::vector<double> limits;
    for (double m : margin) limits.push_back(limit_ - m);
    return estimated(entry, options, limits, even ? Cuts::kEven : Cuts::kThorough);
  };
  for (int i = 0; i < kTries; ++i) {
    // With other pieces it may need less: where nothing leaves that much, what leaves enough.
    StageEstimate e = leaving(beyond);
    if (std::isinf(e.step_seconds)) e = leaving(lacking);
    if (std::isinf(e.step_seconds)) break;
    // The more tries, the more at once: what is left out comes in steps.
    const double step = 4e-3 * (i + 1) * limit_;
    const bool known = std::any_of(tried.begin(), tried.end(), [&](const StageEstimate& t) {
      return t.first_piece == e.first_piece && t.mixes == e.mixes;
    });
    if (known) {
      for (size_t s = 0; s < stages; ++s) lacking[s] += excess[s] > 0 ? step : 0;
      continue;
    }
    Attempt made = attempt(entry, e);
    const std::shared_ptr<const Graph>& run = made.run;
    const PlacementSolver solver(made.prepared, cluster_, arrangement.mesh, arrangement.roles,
                                 options_);
    Solved solved = solver.solve(made.costing, made.pipeline);
    if (!solved.plan) {
      entry.report.why_not = solved.too_large.empty() ? "no placement works" : solved.too_large;
      return {};
    }
    Plan& plan = *solved.plan;
    plan.rewrite = std::move(made.rewrite);
    std::vector<int64_t> held(stages, 0);
    for (int32_t c = 0; c < chunks; ++c) {
      const GroupLoad& l = plan.loads[size_t(c)];
      held[size_t(c % arrangement.stages)] += l.state_bytes + schedule.in_flight(c) * l.kept_bytes;
    }
    if (stages > 1) set_step_seconds(*run, plan, schedules_);
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
      return {std::move(solved.plan), run};
    }
    note_peak(plan.predicted.peak_bytes);
    for (size_t s = 0; s < stages; ++s) {
      const double more = static_cast<double>(bytes[s]) - e.bytes[s];
      if (i == 0) overhead(entry) = std::max(overhead(entry), more);
      beyond[s] = std::max(beyond[s], more);
      excess[s] = static_cast<double>(bytes[s]) - limit_;
      if (excess[s] <= 0) continue;
      lacking[s] += 1.02 * excess[s] + step;
      beyond[s] = std::max(beyond[s] + step, lacking[s]);
    }
    tried.push_back(std::move(e));
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

}  // namespace cleave
