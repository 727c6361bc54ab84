#include "tests/support/joint_brute_force.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "planner/exhaustive_search.h"
#include "planner/outline.h"
#include "planner/placement_problem.h"
#include "planner/rewrite.h"
#include "planner/schedule.h"

namespace cleave::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

class Frontier {
 public:
  // Whether some plan is as good in both.
  bool beaten(const JointPoint& p) const {
    auto at = std::upper_bound(points_.begin(), points_.end(), p.bytes,
                               [](double bytes, const JointPoint& q) { return bytes < q.bytes; });
    return at != points_.begin() && std::prev(at)->seconds <= p.seconds;
  }
  void add(const JointPoint& p) {
    if (beaten(p)) return;
    std::erase_if(
        points_, [&](const JointPoint& q) { return q.bytes >= p.bytes && q.seconds >= p.seconds; });
    points_.insert(
        std::upper_bound(points_.begin(), points_.end(), p.bytes,
                         [](double bytes, const JointPoint& q) { return bytes < q.bytes; }),
        p);
  }
  const std::vector<JointPoint>& points() const { return points_; }

 private:
  std::vector<JointPoint> points_;  // bytes ascending, seconds descending
};

// What a choice adds up to: by chunk and phase its seconds and those of transfers into it, by stage
// its bytes.
struct Sums {
  int32_t chunks = 1, stages = 1;
  size_t size() const { return static_cast<size_t>(6 * chunks + stages); }
  size_t seconds(int32_t chunk, int32_t phase) const {
    return static_cast<size_t>(3 * chunk + phase);
  }
  size_t received(int32_t chunk, int32_t phase) const {
    return static_cast<size_t>(3 * (chunks + chunk) + phase);
  }
  size_t bytes(int32_t stage) const { return static_cast<size_t>(6 * chunks + stage); }
};

// One graph on one mesh under one schedule.
class Variant {
 public:
  Variant(const PreparedGraph& prepared, const Cluster& cluster, const Mesh& mesh,
          const PlannerOptions& options, const Schedule& schedule)
      : schedule_(schedule), sums_{schedule.stages * schedule.chunks, schedule.stages} {
    Restrictions restrictions = prepared.restrictions;
    restrictions.roles.assign(mesh.axes.size(), AxisRole::kAny);
    const Families families(*prepared.graph, *prepared.dimensions, cluster, mesh, restrictions);
    // The problem's tables under a costing that counts one thing only say how much of that each
    // choice takes: costs are sums.
    std::map<std::vector<int32_t>, std::vector<double>> tables;
    for (size_t k = 0; k < sums_.size(); ++k) {
      const Costing costing = counting(k);
      const PlacementProblem problem(*prepared.graph, *prepared.dimensions, families, cluster, mesh,
                                     prepared.grouping(), costing, options.preferences);
      sizes_ = problem.problem().domain_sizes;
      for (const CostTerm& term : problem.problem().terms) {
        std::vector<double>& all = tables[term.variables];
        all.resize(term.table->cost.size() * sums_.size(), 0);
        for (size_t i = 0; i < term.table->cost.size(); ++i) {
          all[i * sums_.size() + k] += term.table->cost[i];
        }
      }
    }
    by_last_.resize(sizes_.size());
    for (auto& [variables, all] : tables) {
      Table table{variables, std::move(all)};
      if (variables.empty()) {
        constant_.resize(sums_.size(), 0);
        for (size_t k = 0; k < sums_.size(); ++k) constant_[k] += table.sums[k];
        continue;
      }
      by_last_[static_cast<size_t>(*std::max_element(variables.begin(), variables.end()))]
          .push_back(std::move(table));
    }
  }

  // How many choices there are, forbidden ones left out as far as one variable tells.
  double count() const {
    double n = 1;
    for (size_t v = 0; v < sizes_.size(); ++v) {
      int allowed = 0;
      for (int32_t c = 0; c < sizes_[v]; ++c) {
        allowed += std::none_of(by_last_[v].begin(), by_last_[v].end(), [&](const Table& t) {
          return t.variables.size() == 1 &&
                 std::isinf(t.sums[static_cast<size_t>(c) * sums_.size()]);
        });
      }
      n *= allowed;
    }
    return n;
  }

  // Leaves off when `visits` are used up.
  void visit_all(Frontier& frontier, double& visits) {
    frontier_ = &frontier;
    visits_ = &visits;
    choice_.assign(sizes_.size(), 0);
    sum_.assign(sizes_.size() + 1, std::vector<double>(sums_.size(), 0));
    if (!constant_.empty()) sum_[0] = constant_;
    visit(0);
  }

 private:
  struct Table {
    std::vector<int32_t> variables;
    std::vector<double> sums;  // by entry, by place in Sums
  };

  Costing counting(size_t k) const {
    Costing costing;
    const auto chunks = static_cast<size_t>(sums_.chunks);
    costing.runs.assign(chunks, {0, 0, 0});
    costing.sends.assign(chunks, {0, 0, 0});
    costing.prices.assign(chunks, {});
    for (int32_t c = 0; c < sums_.chunks; ++c) {
      const auto at = static_cast<size_t>(c);
      // Every micro-batch whose forward has begun and whose backward has not ended is held.
      costing.in_flight.push_back(sums_.stages == 1 ? 1 : schedule_.in_flight(c));
      for (int32_t p = 0; p < 3; ++p) {
        costing.runs[at][static_cast<size_t>(p)] = k == sums_.seconds(c, p);
        costing.sends[at][static_cast<size_t>(p)] = k == sums_.received(c, p);
      }
      if (k == sums_.bytes(c % sums_.stages))
        costing.prices[at] = {.low = 1, .high = 1, .split = 0};
    }
    return costing;
  }

  void visit(size_t v) {
    if (--*visits_ < 0) return;
    if (v == sizes_.size()) {
      frontier_->add({seconds(sum_[v]), bytes(sum_[v])});
      return;
    }
    for (int32_t c = 0; c < sizes_[v]; ++c) {
      choice_[v] = c;
      std::vector<double>& sum = sum_[v + 1];
      sum = sum_[v];
      bool allowed = true;
      for (const Table& t : by_last_[v]) {
        size_t at = 0;
        for (int32_t u : t.variables) {
          at = at * static_cast<size_t>(sizes_[static_cast<size_t>(u)]) +
               static_cast<size_t>(choice_[static_cast<size_t>(u)]);
        }
        const double* add = &t.sums[at * sums_.size()];
        allowed = allowed && !std::isinf(add[0]);
        for (size_t k = 0; k < sum.size(); ++k) sum[k] += add[k];
      }
      // What is added later takes nothing away.
      if (allowed && !frontier_->beaten({busiest(sum), bytes(sum)})) visit(v + 1);
    }
  }

  double bytes(const std::vector<double>& sum) const {
    double most = 0;
    for (int32_t s = 0; s < sums_.stages; ++s) most = std::max(most, sum[sums_.bytes(s)]);
    return most;
  }

  // Of the stage with most to do.
  double busiest(const std::vector<double>& sum) const {
    double most = 0;
    for (int32_t s = 0; s < sums_.stages; ++s) {
      double own = 0;
      for (int32_t c = s; c < sums_.chunks; c += sums_.stages) {
        own += schedule_.micro_batches * (sum[sums_.seconds(c, 0)] + sum[sums_.seconds(c, 1)]) +
               sum[sums_.seconds(c, 2)];
      }
      most = std::max(most, own);
    }
    return most;
  }

  // The schedule run, and each stage's update after its last unit.
  double seconds(const std::vector<double>& sum) const {
    if (sums_.stages == 1) return busiest(sum);
    std::vector<ChunkSeconds> chunks(static_cast<size_t>(sums_.chunks));
    std::vector<double> updates(static_cast<size_t>(sums_.stages), 0);
    for (int32_t c = 0; c < sums_.chunks; ++c) {
      ChunkSeconds& t = chunks[static_cast<size_t>(c)];
      t.forward = sum[sums_.seconds(c, 0)];
      t.backward = sum[sums_.seconds(c, 1)];
      if (c + 1 < sums_.chunks) t.send_forward = sum[sums_.received(c + 1, 0)];
      if (c > 0) t.send_backward = sum[sums_.received(c - 1, 1)];
      updates[static_cast<size_t>(c % sums_.stages)] +=
          sum[sums_.seconds(c, 2)] + sum[sums_.received(c, 2)];
    }
    const SimulatedSchedule run = simulate(schedule_, chunks);
    double end = 0;
    for (size_t s = 0; s < updates.size(); ++s) end = std::max(end, run.end[s] + updates[s]);
    return end;
  }

  const Schedule& schedule_;
  const Sums sums_;
  std::vector<int32_t> sizes_;               // by variable
  std::vector<std::vector<Table>> by_last_;  // by the last variable that they need
  std::vector<double> constant_;
  std::vector<int32_t> choice_;
  std::vector<std::vector<double>> sum_;  // by how many variables are chosen
  Frontier* frontier_ = nullptr;
  double* visits_ = nullptr;
};

// All ways to choose for each of n from 0 .. k-1.
template <class Visit>
void for_each_choice(size_t n, size_t k, const Visit& visit) {
  std::vector<size_t> choice(n, 0);
  while (true) {
    visit(choice);
    size_t i = 0;
    while (i < n && ++choice[i] == k) choice[i++] = 0;
    if (i == n) return;
  }
}

class Space {
 public:
  Space(const Cluster& cluster, const PlannerOptions& options, double visits)
      : cluster_(cluster), options_(options), visits_(visits) {}

  void add(std::shared_ptr<const Graph> graph, int64_t batch, bool micro_batches_chosen) {
    const Outline outline = outline_of(std::move(graph));
    const auto pieces = static_cast<int64_t>(outline.pieces.size());
    const int64_t m = outline.graph->micro_batches, devices = cluster_.size();
    for (int64_t stages = 1; stages <= devices; ++stages) {
      if (devices % stages != 0 || (stages > 1 && !options_.space.stages)) continue;
      // Fewer micro-batches than stages are no choice where there could be as many.
      const bool as_many = batch >= stages && batch % stages == 0;
      if (micro_batches_chosen && stages > 1 && m < (as_many ? stages : 2)) continue;
      for (int64_t chunks = 1; chunks <= (stages == 1 ? 1 : 8); ++chunks) {
        if (stages * chunks > pieces || chunks == 5 || chunks == 7) continue;
        if (chunks > 1 && m % stages != 0) continue;
        const Schedule schedule = make_schedule(
            chunks > 1 ? ScheduleKind::kInterleaved : ScheduleKind::kOneForwardOneBackward,
            static_cast<int32_t>(stages), static_cast<int32_t>(chunks), static_cast<int32_t>(m));
        for (int64_t inner = 1; inner <= devices / stages; ++inner) {
          if (devices / stages % inner != 0) continue;
          std::vector<int64_t> sizes;
          for (int64_t size : {devices / stages / inner, inner}) {
            if (size > 1) sizes.push_back(size);
          }
          // Once for one axis, not as its first and as its second.
          if (inner == devices / stages && inner > 1) continue;
          if (sizes.empty()) sizes.push_back(1);
          Mesh mesh;
          for (int64_t size : sizes)
            mesh.axes.push_back({fmt::format("a{}", mesh.axes.size()), size});
          add_cuts(outline, mesh, schedule);
        }
      }
    }
  }

  JointSpace result() {
    space_.frontier = frontier_.points();
    return std::move(space_);
  }

 private:
  // Every set of pieces after the first at which chunks begin.
  void add_cuts(const Outline& outline, const Mesh& mesh, const Schedule& schedule) {
    const size_t places = outline.pieces.size() - 1;
    const int cuts = schedule.stages * schedule.chunks - 1;
    for_each_choice(places, 2, [&](const std::vector<size_t>& cut) {
      if (std::count(cut.begin(), cut.end(), 1) != cuts) return;
      Rewrite rewrite;
      for (size_t p = 0; p < places; ++p) {
        if (cut[p] == 1) rewrite.cuts.push_back(outline.pieces[p + 1].first);
      }
      add_recomputation(outline, mesh, schedule, rewrite);
    });
  }

  // Every way of every piece to recompute, each set of nodes once.
  void add_recomputation(const Outline& outline, const Mesh& mesh, const Schedule& schedule,
                         Rewrite rewrite) {
    const std::vector<RemakeMode> menu =
        options_.space.recompute ? exhaustive_menu(outline) : std::vector<RemakeMode>(1);
    std::set<std::vector<NodeId>> known;
    for_each_choice(outline.pieces.size(), menu.size(), [&](const std::vector<size_t>& mode) {
      rewrite.remade.clear();
      for (size_t p = 0; p < mode.size(); ++p) {
        if (menu[mode[p]].empty()) continue;
        for (int32_t place : menu[mode[p]].places[static_cast<size_t>(outline.pieces[p].like)]) {
          rewrite.remade.push_back(outline.pieces[p].first + place);
        }
      }
      std::sort(rewrite.remade.begin(), rewrite.remade.end());
      if (!known.insert(rewrite.remade).second || space_.too_large) return;
      RewrittenGraph made = rewritten(*outline.graph, rewrite);
      PreparedGraph prepared =
          prepare(outline, std::make_shared<const Graph>(std::move(made.graph)), made.origin);
      prepared.explicit_keeping = true;
      if (schedule.stages > 1) prepared.group_of = made.chunk_of;
      Variant variant(prepared, cluster_, mesh, options_, schedule);
      space_.plans += variant.count();
      ++space_.variants;
      variant.visit_all(frontier_, visits_);
      space_.too_large = visits_ < 0;
    });
  }

  const Cluster& cluster_;
  const PlannerOptions& options_;
  double visits_;  // that are left
  Frontier frontier_;
  JointSpace space_;
};

}  // namespace

double JointSpace::cheapest(double limit) const {
  double best = kInfinity;
  for (const JointPoint& p : frontier) {
    if (p.bytes <= limit) best = std::min(best, p.seconds);
  }
  return best;
}

JointSpace joint_space(const Graph& graph, const Cluster& cluster, const PlannerOptions& options,
                       int64_t batch, double visits) {
  Space space(cluster, options, visits);
  if (!options.trace) {
    space.add(std::make_shared<const Graph>(graph), batch, false);
    return space.result();
  }
  std::vector<int64_t> counts;
  for (int64_t m = 1; m <= batch; ++m) {
    if (batch % m == 0) counts.push_back(m);
  }
  for (int64_t m : counts) space.add(options.trace(m), batch, counts.size() > 1);
  return space.result();
}

}  // namespace cleave::testing
