#include "planner/exhaustive_search.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>

#include "graph/error.h"
#include "planner/closing.h"
#include "planner/estimate.h"
#include "planner/remake_menu.h"
#include "planner/roles.h"
#include "planner/wide_search.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kMostVariants = 1e5;
constexpr int64_t kMostNodes = 20000;  // of one search tree

// Calls `visit` with every ascending choice of `count` of the pieces after the first.
void for_each_cut(int32_t pieces, int32_t count, std::vector<int32_t>& head,
                  const std::function<void(const std::vector<int32_t>&)>& visit) {
  if (static_cast<int32_t>(head.size()) == count) {
    visit(head);
    return;
  }
  const int32_t left = count - static_cast<int32_t>(head.size());
  for (int32_t p = head.empty() ? 1 : head.back() + 1; p + left <= pieces; ++p) {
    head.push_back(p);
    for_each_cut(pieces, count, head, visit);
    head.pop_back();
  }
}

double choose(double n, double k) {
  double result = 1;
  for (double i = 0; i < k; ++i) result *= (n - i) / (i + 1);
  return result;
}

class Exhaustive {
 public:
  Exhaustive(const Graph& graph, const Cluster& cluster, const PlannerOptions& options)
      : cluster_(cluster),
        options_(options),
        limit_(options.memory_limit > 0 ? options.memory_limit : cluster.device.memory) {
    add(std::make_shared<const Graph>(graph));
  }

  PlanResult run() {
    const int64_t traced = outlines_.begin()->first;
    const Outline& first = outlines_.begin()->second;
    ArrangementLimits limits;
    limits.batch = sequences_in(*first.graph);
    limits.pieces = static_cast<int64_t>(first.pieces.size());
    limits.micro_batches = {traced};
    if (options_.trace && limits.batch > 0) {
      limits.micro_batches.clear();
      for (int64_t m = 1; m <= limits.batch; ++m) {
        if (limits.batch % m == 0) limits.micro_batches.push_back(m);
      }
    }
    limits.max_axes = options_.space.max_axes;
    limits.stages = options_.space.stages;
    for (const Arrangement& a : arrangements_of(cluster_, options_.mesh, options_.pins, limits)) {
      if (a.schedule == ScheduleKind::kZeroBubble && !options_.pins.schedule) continue;
      search(a);
    }
    if (result_.plan) {
      result_.plan->certificate.lower_bound = std::min(bound_, result_.plan->certificate.cost);
    }
    return std::move(result_);
  }

 private:
  static int64_t sequences_in(const Graph& graph) {
    for (const Source& s : graph.sources()) {
      if (s.kind != SourceKind::kData || s.roles.empty() || s.roles[0] != "batch") continue;
      return graph.type(s.value).shape[0] * graph.micro_batches;
    }
    return 0;
  }

  void add(std::shared_ptr<const Graph> graph) {
    const int64_t micro = graph->micro_batches;
    outlines_.emplace(micro, outline_of(std::move(graph)));
  }

  void search(const Arrangement& a) {
    if (!outlines_.contains(a.micro_batches)) add(options_.trace(a.micro_batches));
    const Outline& o = outlines_.at(a.micro_batches);
    const std::vector<RemakeMode> menu =
        options_.space.recompute ? exhaustive_menu(o) : std::vector<RemakeMode>(1);
    const auto pieces = static_cast<int32_t>(o.pieces.size());
    const int32_t chunks = a.stages * a.chunks;
    // Only pieces that a way to recompute changes choose one.
    std::vector<int32_t> choosers;
    for (int32_t p = 0; p < pieces; ++p) {
      const auto like = static_cast<size_t>(o.pieces[size_t(p)].like);
      if (std::any_of(menu.begin(), menu.end(), [&](const RemakeMode& mode) {
            return !mode.empty() && !mode.places[like].empty();
          })) {
        choosers.push_back(p);
      }
    }
    const double variants =
        choose(pieces - 1, chunks - 1) *
        std::pow(static_cast<double>(menu.size()), static_cast<double>(choosers.size()));
    if (variants > kMostVariants) {
      fail(
          "an exhaustive search of {} has {:.2g} variants of cuts and recomputation; at most {} "
          "are looked at",
          a.to_string(), variants, kMostVariants);
    }
    std::vector<int32_t> head;
    for_each_cut(pieces, chunks - 1, head, [&](const std::vector<int32_t>& cuts) {
      std::vector<size_t> mode(choosers.size(), 0);
      while (true) {
        close(a, o, menu, choosers, mode, cuts);
        size_t i = 0;
        while (i < mode.size() && ++mode[i] == menu.size()) mode[i++] = 0;
        if (i == mode.size()) break;
      }
    });
  }

  void close(const Arrangement& a, const Outline& o, const std::vector<RemakeMode>& menu,
             const std::vector<int32_t>& choosers, const std::vector<size_t>& mode,
             const std::vector<int32_t>& cuts) {
    Rewrite rewrite;
    for (size_t k = 0; k < menu.size(); ++k) {
      std::vector<bool> chosen(o.pieces.size(), false);
      for (size_t i = 0; i < choosers.size(); ++i) chosen[size_t(choosers[i])] = mode[i] == k;
      const auto nodes = o.nodes_of(menu[k], chosen);
      rewrite.remade.insert(rewrite.remade.end(), nodes.begin(), nodes.end());
    }
    std::sort(rewrite.remade.begin(), rewrite.remade.end());
    for (int32_t p : cuts) rewrite.cuts.push_back(o.pieces[size_t(p)].first);
    RewrittenGraph made = rewritten(*o.graph, rewrite);
    auto run = std::make_shared<const Graph>(std::move(made.graph));
    PreparedGraph prepared = prepare(o, run, made.origin);
    prepared.explicit_keeping = true;
    Pipeline pipeline;
    if (a.stages > 1) {
      prepared.group_of = made.chunk_of;
      pipeline.schedule = a.schedule;
      pipeline.stages = a.stages;
      pipeline.chunks = a.chunks;
      pipeline.chunk_of = std::move(made.chunk_of);
    }
    const Closing closing(prepared, cluster_, a, pipeline, options_, limit_);
    const double best = result_.plan ? result_.plan->certificate.cost : kInfinity;
    Closing::Result found = closing.run(best, kMostNodes);
    bound_ = std::min(bound_, found.bound);
    Candidate report;
    report.mesh = a.mesh;
    report.stages = a.stages;
    report.chunks = a.chunks;
    report.schedule = a.schedule;
    report.micro_batches = a.micro_batches;
    report.lower_bound = found.bound;
    report.cost = found.plan ? found.plan->certificate.cost : kInfinity;
    report.why_not = "slower, or does not fit";
    if (found.plan) {
      for (Candidate& c : result_.candidates) c.why_not = "slower, or does not fit";
      report.why_not.clear();
      found.plan->rewrite = std::move(rewrite);
      if (a.stages > 1) {
        found.plan->pipeline.seconds = chunk_seconds(*run, *found.plan);
        found.plan->pipeline.step_seconds = found.plan->certificate.cost;
      }
      found.plan->predicted.step_seconds = found.plan->certificate.cost;
      found.plan->predicted.peak_bytes = found.plan->predicted.held_bytes;
      name_axes(*run, *found.plan);
      result_.plan = std::move(found.plan);
      result_.graph = std::move(run);
    }
    result_.candidates.push_back(std::move(report));
  }

  const Cluster& cluster_;
  const PlannerOptions& options_;
  const double limit_;
  std::map<int64_t, Outline> outlines_;  // by micro-batches
  double bound_ = kInfinity;
  PlanResult result_;
};

}  // namespace

std::vector<RemakeMode> exhaustive_menu(const Outline& outline) {
  std::vector<RemakeMode> menu = {{}};
  for (RemakeMode mode : {selective_mode(outline), full_mode(outline)}) {
    if (std::find(menu.begin(), menu.end(), mode) == menu.end()) menu.push_back(std::move(mode));
  }
  return menu;
}

PlanResult search_exhaustively(const Graph& graph, const Cluster& cluster,
                               const PlannerOptions& options) {
  return Exhaustive(graph, cluster, options).run();
}

}  // namespace cleave
