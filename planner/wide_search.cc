#include "planner/wide_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <queue>
#include <set>
#include <thread>

#include "graph/error.h"
#include "planner/bounds.h"
#include "planner/in_parallel.h"
#include "planner/pin_preferences.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr size_t kSeeds = 4;        // meshes that are tried with a third axis
constexpr size_t kCountSeeds = 12;  // and with other numbers of micro-batches
constexpr size_t kBatch = 8;        // arrangements whose grounds get more options at once
// Estimates are about as close: so many are planned in full that promise to be a little slower.
constexpr double kClose = 1.005;
constexpr size_t kMostBeyond = 3;
constexpr size_t kMostFailed = 12;    // arrangements that do not fit in the end, before giving up
constexpr size_t kMostRealised = 24;  // arrangements planned in full
constexpr size_t kTogether = 2;       // so many at once, on however few threads
constexpr size_t kMostAsked = 32;     // grounds whose ways are computed for the bound alone

}  // namespace

std::string WideSearch::slower(double cost, double best) {
  return fmt::format("slower by {:.1f} %", 100 * (cost / best - 1));
}

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
