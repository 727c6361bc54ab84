#include "planner/exhaustive_search.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>

#include "graph/error.h"
#include "planner/closing.h"
#include "planner/estimate.h"
#include "planner/pipeline_seconds.h"
#include "planner/remake_menu.h"
#include "planner/roles.h"

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kMostVariants = 1e5;
constexpr int64_t kMostNodes = 200000;  // of one search tree

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
      : cluster_(cluster), options_(options), limit_(memory_limit(options, cluster)) {
    add(std::make_shared<const Graph>(graph));
  }

  PlanResult run() {
    const int64_t traced = outlines_.begin()->first;
    const Outline& first = outlines_.begin()->second;
    ArrangementLimits limits;
    limits.batch = sequences_per_step(*first.graph);
    limits.pieces = static_cast<int64_t>(first.pieces.size());
    limits.micro_batches = {traced};
    if (options_.trace && limits.batch > 0) {
      limits.micro_batches = divisors(limits.batch);
    }
    limits.max_axes = options_.space.max_axes;
    limits.stages = options_.space.stages;
    limits.every_count = true;
    for (const Arrangement& a : arrangements_of(cluster_, options_.mesh, options_.pins, limits)) {
      if (a.schedule == ScheduleKind::kZeroBubble && !options_.pins.schedule) continue;
      search(a);
    }
    // The roots of all trees are solved; those go on that may still hide something better, the
    // lowest bound first.
    std::vector<size_t> order;
    for (size_t i = 0; i < variants_.size(); ++i) order.push_back(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return variants_[a].bound < variants_[b].bound; });
    double bound = kInfinity;
    for (size_t i : order) {
      if (!variants_[i].closed) close(variants_[i], kMostNodes);
      bound = std::min(bound, variants_[i].bound);
    }
    for (const Variant& v : variants_) result_.candidates.push_back(v.report);
    if (result_.plan) {
      result_.plan->certificate.lower_bound = std::min(bound, result_.plan->certificate.cost);
    }
    return std::move(result_);
  }

 private:
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
        add_variant(a, o, menu, choosers, mode, cuts);
        size_t i = 0;
        while (i < mode.size() && ++mode[i] == menu.size()) mode[i++] = 0;
        if (i == mode.size()) break;
      }
    });
  }

  // One rewritten graph on one arrangement.
  struct Variant {
    Arrangement arrangement;
    const Outline* outline = nullptr;
    Rewrite rewrite;
    double bound = 0;  // no plan is faster, or none below the best found
    bool closed = false;
    Candidate report;
  };

  void add_variant(const Arrangement& a, const Outline& o, const std::vector<RemakeMode>& menu,
                   const std::vector<int32_t>& choosers, const std::vector<size_t>& mode,
                   const std::vector<int32_t>& cuts) {
    Variant v{a, &o, {}, 0, false, {}};
    for (size_t k = 0; k < menu.size(); ++k) {
      std::vector<bool> chosen(o.pieces.size(), false);
      for (size_t i = 0; i < choosers.size(); ++i) chosen[size_t(choosers[i])] = mode[i] == k;
      const auto nodes = o.nodes_of(menu[k], chosen);
      v.rewrite.remade.insert(v.rewrite.remade.end(), nodes.begin(), nodes.end());
    }
    std::sort(v.rewrite.remade.begin(), v.rewrite.remade.end());
    for (int32_t p : cuts) v.rewrite.cuts.push_back(o.pieces[size_t(p)].first);
    v.report = candidate_of(a);
    v.report.cost = kInfinity;
    v.report.why_not = kNotChosen;
    close(v, 1);
    variants_.push_back(std::move(v));
  }

  // `most_nodes`: of its search tree.
  void close(Variant& v, int64_t most_nodes) {
    const double best = result_.plan ? result_.plan->certificate.cost : kInfinity;
    if (v.bound >= best) return;
    const Arrangement& a = v.arrangement;
    RewrittenGraph made = rewritten(*v.outline->graph, v.rewrite);
    auto run = std::make_shared<const Graph>(std::move(made.graph));
    PreparedGraph prepared = prepare(*v.outline, run, made.origin);
    prepared.explicit_keeping = true;
    Pipeline pipeline;
    if (a.stages > 1) {
      prepared.group_of = made.chunk_of;
      pipeline = pipeline_of(a);
      pipeline.chunk_of = std::move(made.chunk_of);
    }
    const Closing closing(prepared, cluster_, a, pipeline, options_, limit_, schedules_);
    Closing::Result found = closing.run(best, most_nodes);
    v.closed = found.complete;
    v.bound = v.report.lower_bound = found.bound;
    if (!found.plan) return;
    for (Variant& other : variants_) other.report.why_not = kNotChosen;
    Plan& plan = *found.plan;
    v.report.cost = plan.certificate.cost;
    v.report.planned = true;
    v.report.why_not.clear();
    plan.rewrite = v.rewrite;
    if (a.stages > 1) set_step_seconds(*run, plan, schedules_);
    plan.predicted.peak_bytes = plan.predicted.held_bytes;
    name_axes(*run, plan);
    result_.plan = std::move(found.plan);
    result_.graph = std::move(run);
  }

  static constexpr const char* kNotChosen = "slower, or does not fit";

  const Cluster& cluster_;
  const PlannerOptions& options_;
  const double limit_;
  std::map<int64_t, Outline> outlines_;  // by micro-batches
  std::vector<Variant> variants_;
  Schedules schedules_;
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
