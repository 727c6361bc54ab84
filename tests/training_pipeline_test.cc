// Pipelines train like one device: stages, chunks, schedules, micro-batches, meshes inside, and
// recomputation; what they send is what is promised; and none waits for ever.
#include <gtest/gtest.h>

#include <algorithm>

#include "executor/memory_layout.h"
#include "graph/philox.h"
#include "graph/verify.h"
#include "tests/training_pipeline.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

struct Shape4 {  // how a pipeline is shaped
  ScheduleKind kind = ScheduleKind::kOneForwardOneBackward;
  int stages = 2, chunks = 1, micro_batches = 4;
  const char* mesh = "1";  // of each stage
};

std::string text_of(const Shape4& p) {
  return fmt::format("{} {} stages x {} chunks, {} micro-batches, mesh {}", name_of(p.kind),
                     p.stages, p.chunks, p.micro_batches, p.mesh);
}

Pipeline pipeline_of(const Shape4& p, const RewrittenGraph& r) {
  Pipeline pipeline;
  pipeline.schedule = p.kind;
  pipeline.stages = p.stages;
  pipeline.chunks = p.chunks;
  pipeline.chunk_of = r.chunk_of;
  return pipeline;
}

// What every micro-batch sends, by the graph and the plan alone.
int64_t sends_of(const Graph& graph, const Program& program) {
  int64_t count = 0;
  for (const Node& n : graph.nodes()) count += n.op->transfer;
  int64_t once = 0, within = 0;
  for (const Instr& i : program.instrs) {
    if (i.kind == InstrKind::kSend && once_a_step(i.part)) ++once;
    if (i.kind == InstrKind::kCompute && i.op->transfer) ++within;  // in one chunk: a copy
  }
  return (count - within - once) * graph.micro_batches + once;
}

double largest_difference(const Graph& graph, const ModelConfig& config, const Curve& one,
                          const Shape4& shape, const Rewrite& rewrite,
                          std::optional<uint64_t> seed = {}) {
  const RewrittenGraph r = rewritten(graph, rewrite);
  verify(r.graph);
  const Pipeline pipeline = pipeline_of(shape, r);
  const Plan plan = pipeline_plan(r.graph, shape.mesh, pipeline, seed);
  Program program = lower(r.graph, plan);
  EXPECT_EQ(program.stages(), shape.stages);
  EXPECT_EQ(peak_bytes(r.graph, plan), program.arena_bytes);
  EXPECT_LE(live_bytes(r.graph, plan), program.arena_bytes);
  const int64_t sends = sends_of(r.graph, program);
  int64_t promised = 0;
  for (int32_t s = 0; s < program.stages(); ++s) {
    for (const CollectiveCount& c : count_collectives(program, s))
      promised += c.kind == InstrKind::kSend ? c.count : 0;
  }
  EXPECT_EQ(promised, sends);
  return distance(train_in_parts(std::move(program), r.graph, config, &plan), one);
}

constexpr ScheduleKind k1F1B = ScheduleKind::kOneForwardOneBackward;
constexpr ScheduleKind kInter = ScheduleKind::kInterleaved;
constexpr ScheduleKind kZero = ScheduleKind::kZeroBubble;

const std::vector<Shape4>& shapes() {
  static const std::vector<Shape4> table = {
      {k1F1B, 2, 1, 1, "1"},         {k1F1B, 2, 1, 2, "1"},     {k1F1B, 2, 1, 8, "1"},
      {k1F1B, 3, 1, 4, "1"},         {k1F1B, 4, 1, 8, "1"},     {k1F1B, 8, 1, 8, "1"},
      {k1F1B, 2, 1, 4, "dp=2"},      {k1F1B, 2, 1, 4, "tp=2"},  {k1F1B, 4, 1, 4, "tp=2"},
      {k1F1B, 2, 1, 4, "dp=2,tp=2"}, {kInter, 2, 2, 2, "1"},    {kInter, 2, 2, 8, "1"},
      {kInter, 4, 2, 4, "1"},        {kInter, 2, 2, 4, "tp=2"}, {kInter, 2, 2, 4, "dp=2"},
      {kZero, 2, 1, 1, "1"},         {kZero, 2, 1, 4, "1"},     {kZero, 3, 1, 8, "1"},
      {kZero, 4, 1, 8, "1"},         {kZero, 2, 1, 4, "tp=2"},  {kZero, 2, 1, 4, "dp=2"},
  };
  return table;
}

void train_all(DType dtype, double tolerance, size_t every) {
  double worst = 0;
  size_t runs = 0;
  for (size_t m = 0; m < models().size(); ++m) {
    const Model& model = models()[m];
    for (size_t i = m % every; i < shapes().size(); i += every) {
      const Shape4& shape = shapes()[i];
      ModelConfig config = config_for(model, 2);
      config.layers = 4;
      const Graph graph = step_graph(config, shape.micro_batches, dtype, model.optimizer);
      const Curve one = train_in_parts(lower(graph, plan_for(graph, "1", {})), graph, config);
      SCOPED_TRACE(fmt::format("{}: {}", model.label, text_of(shape)));
      const Rewrite rewrite{{},
                            even_cuts(graph, shape.stages * shape.chunks, i, i % 3 == 2 ? 0.5 : 0)};
      try {
        const double d = largest_difference(graph, config, one, shape, rewrite,
                                            i % 2 == 1 ? std::optional<uint64_t>(i) : std::nullopt);
        EXPECT_LE(d, tolerance);
        worst = std::max(worst, d);
        ++runs;
      } catch (const std::exception& e) {
        ADD_FAILURE() << e.what();
      }
    }
  }
  EXPECT_GE(runs, shapes().size());
  fmt::print("{} pipelines in {}, the worst differs by {:.1e}\n", runs, name_of(dtype), worst);
}

TEST(Pipelines, TrainLikeOneDevice) { train_all(DType::kF64, 1e-12, 2); }
TEST(Pipelines, TrainLikeOneDeviceInSinglePrecision) { train_all(DType::kF32, kF32, 5); }

}  // namespace
}  // namespace cleave
