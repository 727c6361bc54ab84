// The search: which mesh, and which split of every op on it, is predicted to be fastest among those
// that fit in memory.
#pragma once

#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "graph/graph.h"
#include "planner/arrangements.h"
#include "planner/cluster.h"
#include "planner/pins.h"
#include "planner/placement_problem.h"
#include "planner/plan.h"

namespace cleave {

// Seconds of a plan's program on one rank, without communication.
struct RunSeconds {
  std::vector<double> nodes;          // by node: of the instructions that it became, each time
  std::array<double, 3> phases = {};  // by phase: of all instructions, each time it runs
};

// What the search may choose besides the mesh and the placements on it.
struct SearchSpace {
  bool stages = false;     // pipelines
  bool recompute = false;  // what the backward computes again
  bool offload = false;    // when nothing else fits: states in the host's memory
  size_t max_axes = 2;     // of a mesh
  // Everything there is, exactly: every cut between pieces, every way to recompute of every piece
  // (exhaustive_menu), the optimum of each under the memory limit. For small graphs; zero-bubble
  // schedules only when pinned.
  bool exhaustive = false;
};

// Thrown by a search that has not ended when its deadline has passed.
class SearchStopped : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Its functions are called from several threads at once.
struct PlannerOptions {
  MeshRequest mesh;
  double memory_limit = 0;  // bytes a device; 0: the cluster's own; infinite: no limit
  SearchSpace space;
  // The same step in so many micro-batches, which divide its sequences; null: as it was traced.
  std::function<std::shared_ptr<const Graph>(int64_t micro_batches)> trace;
  // The memory of one rank of each stage under a plan for this graph, in bytes: what is live at
  // once at most, asked often; and the peak of the executor's own layout, asked of the plan that is
  // chosen. Without them what is held at the end of the forward stands for both.
  std::function<std::vector<int64_t>(const Graph&, const Plan&)> live_bytes, peak_bytes;
  // What the program that runs a plan of one stage takes, asked of the plan that is chosen: the
  // search charges every node by itself, and joining some of them saves time. Null, or nothing:
  // what the search charges.
  std::function<std::optional<RunSeconds>(const Graph&, const Plan&)> run_seconds;
  Preferences preferences;
  Pins pins;
  int threads = 0;  // 0: as many as there are cores
  // Looked at before every solve and what else is long; after it the search throws SearchStopped.
  // Results do not depend on the clock otherwise.
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();
};

// Throws SearchStopped when the deadline has passed.
void check_deadline(const PlannerOptions& options);

struct PlanResult {
  std::optional<Plan> plan;            // empty: nothing that was searched fits
  std::shared_ptr<const Graph> graph;  // the one that the plan is for: rewritten as it says
  // Bytes: of the plan that came nearest, planned or estimated; with states on the host, where that
  // was tried. 0: none came near.
  int64_t smallest_peak = 0;
  std::vector<Candidate> candidates;
};

// Plans a graph for a cluster. Throws Error when the request cannot be met by any mesh (sizes that
// do not multiply to the number of devices).
PlanResult find_plan(const Graph& graph, const Cluster& cluster, const PlannerOptions& options);

// The best plan on one mesh under one costing, whatever the limit; empty when the preferences
// leave none. Axes keep the mesh's names. `pipeline`: of the graph, whose groups the costing's are.
std::optional<Plan> plan_with(const Graph& graph, const Cluster& cluster, const Mesh& mesh,
                              const std::vector<AxisRole>& roles, const Costing& costing,
                              const Pipeline& pipeline, const PlannerOptions& options);
// The same for one stage, at one price of memory.
std::optional<Plan> plan_with(const Graph& graph, const Cluster& cluster, const Mesh& mesh,
                              const std::vector<AxisRole>& roles, const MemoryPrice& price,
                              const PlannerOptions& options);

// Bytes a device: the options' limit, or the cluster's own.
double memory_limit(const PlannerOptions& options, const Cluster& cluster);

// Sequences of one step, all its micro-batches together; 0: no data input has a batch dimension.
int64_t sequences_per_step(const Graph& graph);

// Tokens of one step: the product of the sizes of the first data input with a batch dimension.
double tokens_per_step(const Graph& graph);

// The element type of the forward's largest contraction, which a peak rate is quoted for.
DType product_dtype(const Graph& graph);

// Floating-point operations of the model itself: those of the contractions of the forward, three
// times (the backward does each twice). `masked_too`: as if attention masked nothing.
double model_flops(const Graph& graph, bool masked_too);

}  // namespace cleave
