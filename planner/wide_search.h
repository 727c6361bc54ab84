// The search over the whole space: pipelines, micro-batches, meshes of several axes, recomputation.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "planner/arrangements.h"
#include "planner/estimate.h"
#include "planner/outline.h"
#include "planner/planner.h"

namespace cleave {

// Shapes are first compared on the folded graph, without a memory limit, where each costs a few
// milliseconds; the most promising are then made to fit, by recomputation and prices of memory, and
// planned in full, until no other's lower bound is below the best plan found.
class WideSearch {
 public:
  // Everything referred to must outlive the search.
  WideSearch(const Graph& graph, const Cluster& cluster, const PlannerOptions& options);

  PlanResult run();

 private:
  // One mesh with one number of micro-batches, on the folded graph.
  struct Ground {
    Arrangement arrangement;  // its mesh and micro-batches; stages as the first arrangement that
                              // stands on it
    std::optional<PreparedGraph> prepared;  // without recomputation
    std::optional<Plan> free;               // without a limit
    std::vector<GroupLoad> loads;           // by piece
    double bound = 0;                       // lowest m (F + B) + U of all pieces together: seconds
    double sent = 0;                        // seconds of what passes between stages
    std::string why_not;
  };
  struct Entry {
    Arrangement arrangement;
    size_t ground = 0;
    double estimate = 0, bound = 0;  // seconds, without a limit
    Candidate report;
  };

  const Outline& outline(int64_t micro_batches);
  void prepare_grounds();
  void solve(Ground& ground);
  Costing folded_costing(const Ground& ground, double price) const;
  double boundary_seconds(const Ground& ground) const;
  void rank();
  std::vector<PieceOption> options_for(const Entry& entry, std::vector<RemakeMode>& menu);
  // Plans a arrangement in full; the reason in its report when nothing comes of it.
  void realise(Entry& entry);
  std::optional<Plan> realise_one_stage(Entry& entry, const std::vector<PieceOption>& options,
                                        const std::vector<RemakeMode>& menu,
                                        std::shared_ptr<const Graph>& graph);
  std::optional<Plan> realise_stages(Entry& entry, const std::vector<PieceOption>& options,
                                     const std::vector<RemakeMode>& menu,
                                     std::shared_ptr<const Graph>& graph);

  const Cluster& cluster_;
  const PlannerOptions& options_;
  double limit_;
  std::map<int64_t, Outline> outlines_;  // by micro-batches
  std::vector<Ground> grounds_;
  std::vector<Entry> entries_;
  PlanResult result_;
};

// The plan's chunks in seconds, by its loads.
std::vector<ChunkSeconds> chunk_seconds(const Graph& graph, const Plan& plan);

}  // namespace cleave
