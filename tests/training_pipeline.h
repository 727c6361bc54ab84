// Graphs of small models cut into pipeline chunks, and what they train to.
#pragma once

#include <string>
#include <vector>

#include "graph/repeats.h"
#include "planner/cut.h"
#include "tests/training_plans.h"

namespace cleave::testing {

// The graph of one step in `micro_batches` parts of the model's batch.
inline Graph step_graph(ModelConfig config, int64_t micro_batches, DType dtype = DType::kF64,
                        OptimizerOptions::Kind optimizer = {}, std::optional<DType> moments = {}) {
  config.batch /= micro_batches;
  TraceOptions options;
  options.dtype = dtype;
  options.optimizer = {.kind = optimizer,
                       .lr = optimizer == OptimizerOptions::Kind::kSgd ? 0.1 : 3e-3,
                       .min_lr = 3e-4,
                       .warmup = 3,
                       .total_steps = 8,
                       .moments = moments,
                       .micro_batches = micro_batches};
  return trace(config, options);
}

// Cuts before nodes that part the forward into pieces with about as many nodes each, moved by up to
// `shift` nodes by the seed.
inline std::vector<NodeId> even_cuts(const Graph& graph, int chunks, uint64_t seed = 0,
                                     double shift = 0) {
  NodeId end = 0;
  while (graph.node(end).phase == Phase::kForward) ++end;
  std::vector<NodeId> cuts;
  for (int c = 1; c < chunks; ++c) {
    const double jitter = shift * (2 * chance(seed, fmt::format("cut {}", c)) - 1);
    const auto at = static_cast<NodeId>(end * (c + jitter) / chunks);
    cuts.push_back(std::max(cuts.empty() ? 1 : cuts.back() + 1, at));
  }
  return cuts;
}

// How a pipeline is shaped.
struct PipelineShape {
  ScheduleKind kind = ScheduleKind::kOneForwardOneBackward;
  int stages = 2, chunks = 1, micro_batches = 4;
  const char* mesh = "1";  // of each stage
};

inline std::string text_of(const PipelineShape& p) {
  return fmt::format("{} {} stages x {} chunks, {} micro-batches, mesh {}", name_of(p.kind),
                     p.stages, p.chunks, p.micro_batches, p.mesh);
}

inline Pipeline pipeline_of(const PipelineShape& p, const RewrittenGraph& r) {
  Pipeline pipeline;
  pipeline.schedule = p.kind;
  pipeline.stages = p.stages;
  pipeline.chunks = p.chunks;
  pipeline.chunk_of = r.chunk_of;
  return pipeline;
}

// The best plan of a cut graph for this pipeline, with the mesh in every stage; with a seed, a
// random one.
inline Plan pipeline_plan(const Graph& graph, const std::string& mesh, const Pipeline& pipeline,
                          std::optional<uint64_t> seed = {}) {
  PlannerOptions options;
  if (seed) options.preferences = random_preferences(graph, *seed);
  const MeshRequest request = parse_mesh(mesh);
  Mesh stage;
  for (size_t a = 0; a < request.sizes.size(); ++a)
    stage.axes.push_back({fmt::format("a{}", a), request.sizes[a]});
  const auto groups = static_cast<size_t>(pipeline.stages * pipeline.chunks);
  Costing costing = Costing::plain(graph.micro_batches);
  costing.runs.resize(groups, costing.runs[0]);
  costing.prices.resize(groups, costing.prices[0]);
  costing.in_flight.resize(groups, costing.in_flight[0]);
  const Cluster cluster = parse_cluster(fmt::format("cpu:{}", stage.size()));
  auto plan = plan_with(graph, cluster, stage, request.roles, costing, pipeline, options);
  if (!plan) throw InternalError("no plan");
  return std::move(*plan);
}

inline constexpr int kPipelineSteps = 6;

// One step on the whole batch in the graph's micro-batches.
inline StepResult step_in_parts(CpuRuntime& runtime, const Graph& graph, const ModelConfig& whole,
                                int64_t step) {
  const Batch batch = batch_of(whole, step);
  const size_t size = batch.tokens.size() / static_cast<size_t>(graph.micro_batches);
  for (int64_t m = 0; m < graph.micro_batches; ++m) {
    const auto part = [&](const std::vector<int32_t>& all) {
      return std::as_bytes(std::span(all).subspan(static_cast<size_t>(m) * size, size));
    };
    runtime.set_data("tokens", part(batch.tokens));
    runtime.set_data("targets", part(batch.targets));
    if (m + 1 < graph.micro_batches) runtime.accumulate();
  }
  return runtime.step();
}

// Trains for a few steps, each on the whole batch in the graph's micro-batches.
inline Curve train_in_parts(Program program, const Graph& graph, const ModelConfig& whole,
                            const Plan* plan = nullptr,
                            RunOptions options = {.seed = 42, .compare_ranks = true}) {
  CpuRuntime runtime(std::move(program), options);
  runtime.initialize();
  Curve curve;
  for (int step = 0; step < kPipelineSteps; ++step) {
    const StepResult r = step_in_parts(runtime, graph, whole, step);
    if (plan != nullptr) expect_planned(r.collectives, *plan);
    curve.loss.push_back(r.value("loss"));
    curve.grad_norm.push_back(r.value("grad_norm"));
  }
  return curve;
}

}  // namespace cleave::testing
