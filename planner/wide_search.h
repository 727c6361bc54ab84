// The search over the whole space: pipelines, micro-batches, meshes of several axes, recomputation.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "planner/arrangements.h"
#include "planner/estimate.h"
#include "planner/outline.h"
#include "planner/pins.h"
#include "planner/planner.h"

namespace cleave {

// Shapes are first compared on the folded graph, without a memory limit, where each costs a few
// milliseconds; the most promising are then made to fit, by recomputation and prices of memory, and
// planned in full, until no other's estimate is below the best plan found.
class WideSearch {
 public:
  // Everything referred to must outlive the search.
  WideSearch(const Graph& graph, const Cluster& cluster, const PlannerOptions& options);

  PlanResult run();

 private:
  // One number of micro-batches: its graph, and the ways to recompute that are compared.
  struct Traced {
    Outline outline;
    NodePins pins;   // empty lists: none
    CutRules rules;  // what pins say of cuts
    std::vector<RemakeMode> menu = {{}};
    bool has_menu = false;
    std::vector<PreparedGraph> folded;  // by mode of the menu
  };
  enum class Cuts { kQuick, kEven, kThorough };  // how they are looked for
  // How much of a ground's ways to run its pieces has been computed.
  enum class Known {
    kFree,     // the quickest without a limit
    kThrifty,  // and those that hold least
    kAll,
  };
  // One mesh with one number of micro-batches and stages, on the folded graph.
  struct Ground {
    Arrangement arrangement;           // the first that stands on it
    std::optional<Plan> free;          // without a limit
    std::vector<PieceOption> options;  // the first: of `free`
    Known known = Known::kFree;
    double base_price = 0;  // seconds a byte: the step over the limit
    // By kind of schedule, bytes that a rank was seen to need beyond what its pieces hold.
    std::array<double, 3> overhead = {};
    double bound = 0;  // lowest m (F + B) + U of all pieces together: seconds
    double sent = 0;   // seconds of what passes between stages
    std::string why_not;
  };
  struct Entry {
    Arrangement arrangement;
    size_t ground = 0;
    double free = 0;                 // seconds without a limit
    double estimate = 0, bound = 0;  // seconds
    double base_bound = 0;           // of all its pieces' work alone: of whatever ways they run
    double overhead = 0;             // of the ground when the estimate was made
    bool fitted = false;             // the estimate is of pieces that fit in memory
    bool final = false;              // more options of the ground would not change it
    Candidate report;
  };

  Traced& traced(const Ground& g) { return traced_.at(g.arrangement.micro_batches); }
  const Traced& traced(const Ground& g) const { return traced_.at(g.arrangement.micro_batches); }
  const Outline& outline(const Entry& e) const {
    return traced_.at(e.arrangement.micro_batches).outline;
  }
  // From here on: the entries from `first`, which are new.
  void prepare_grounds(size_t first);
  void estimate(size_t first);
  void add_entry(Arrangement arrangement);
  // Other numbers of micro-batches, and third axes, for the best entries so far.
  void add_neighbours();
  // Fits and plans entries, the quickest first, until no other's estimate is below the best plan.
  void work_through(size_t first);
  void solve(Ground& ground);
  double folded_flights(const Ground& ground) const;
  Costing folded_costing(const Ground& ground, double price) const;
  double boundary_seconds(const Ground& ground) const;
  void add_menus(const std::vector<size_t>& grounds);
  void add_options(const std::vector<size_t>& grounds, Known wanted);
  double& overhead(const Entry& e) {
    return grounds_[e.ground].overhead[static_cast<size_t>(e.arrangement.schedule)];
  }
  std::vector<PieceOption> options_at(const Ground& ground, size_t mode,
                                      const std::vector<double>& prices) const;
  // The estimate of the quickest plan that fits, as far as the ground's options are known; infinite
  // when none does.
  void fit(Entry& entry);
  void refine(Entry& entry);
  struct Realised {
    std::optional<Plan> plan;  // none: for the reason in the entry's report
    std::shared_ptr<const Graph> graph;
  };
  // Plans an arrangement in full; nothing that costs `best` or more. Safe to run at the same time
  // for entries of different grounds.
  Realised realise(Entry& entry, double best);
  Realised realised(Entry& entry, bool even, double best);
  // What is run so: the graph with cuts and recomputation, and what its placements are to cost.
  struct Attempt {
    Rewrite rewrite;
    std::shared_ptr<const Graph> run;
    PreparedGraph prepared;
    Costing costing;
    Pipeline pipeline;
  };
  Attempt attempt(const Entry& entry, const StageEstimate& estimate);
  static constexpr const char* kUnfit = "does not fit in memory";
  static std::string slower(double cost, double best);
  void note_peak(int64_t bytes);
  void raise_bound(Entry& e, double best);
  void raise_bounds(double best);
  bool hopeless() const;
  StageEstimate estimated(const Entry& entry, const std::vector<PieceOption>& options,
                          const std::vector<double>& limits, Cuts cuts = Cuts::kQuick);
  Traced traced_of(std::shared_ptr<const Graph> graph) const;
  // What each piece computes again, by its mode, as nodes of the outline's graph; pins have the
  // last word. `chosen`: by mode, by piece.
  std::vector<NodeId> remade_nodes(const Entry& entry,
                                   const std::vector<std::vector<bool>>& chosen) const;

  const Cluster& cluster_;
  PlannerOptions options_;
  double limit_;
  std::map<int64_t, Traced> traced_;  // by micro-batches
  using GroundKey = std::tuple<int32_t, int64_t, std::string, std::vector<AxisRole>>;
  static GroundKey ground_key(const Arrangement& a) {
    return {a.stages, a.micro_batches, a.mesh.to_string(), a.roles};
  }
  std::map<GroundKey, size_t> known_grounds_;
  std::set<std::tuple<GroundKey, ScheduleKind, int32_t>> known_entries_;
  std::vector<Ground> grounds_;
  std::vector<Entry> entries_;
  size_t chosen_ = 0;  // of the entries, when there is a plan
  ArrangementLimits limits_;
  Schedules schedules_;
  PlanResult result_;
  std::mutex peak_mutex_;  // of result_.smallest_peak
};

}  // namespace cleave
