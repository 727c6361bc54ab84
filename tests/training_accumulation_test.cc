// Several micro-batches in a step train like one batch of all their sequences, by any plan; and a
// step whose numbers are not sound changes nothing.
#include <gtest/gtest.h>

#include "graph/json.h"
#include "graph/text.h"
#include "graph/verify.h"
#include "kernels/ops.h"
#include "tests/training_plans.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

constexpr int kShortRun = 8;

Graph graph_of(const Model& model, const ModelConfig& config, int64_t micro_batches,
               DType dtype = DType::kF64) {
  TraceOptions options;
  options.dtype = dtype;
  options.optimizer = {.kind = model.optimizer,
                       .lr = 3e-3,
                       .min_lr = 3e-4,
                       .warmup = 3,
                       .total_steps = kShortRun,
                       .micro_batches = micro_batches};
  return trace(config, options);
}

// Micro-batch `m` of the step's batch: its share of the whole's sequences, in order.
void feed_part(CpuRuntime& runtime, const ModelConfig& whole, int64_t micro_batches, int64_t step,
               int64_t m) {
  const Batch batch = batch_of(whole, step);
  const auto size = static_cast<int64_t>(batch.tokens.size()) / micro_batches;
  const auto part = [&](const std::vector<int32_t>& all) {
    return std::as_bytes(
        std::span(all).subspan(static_cast<size_t>(m * size), static_cast<size_t>(size)));
  };
  runtime.set_data("tokens", part(batch.tokens));
  runtime.set_data("targets", part(batch.targets));
}

// `whole`: the model with the batch of a step.
Curve train(const Graph& graph, const Plan& plan, const ModelConfig& whole) {
  CpuRuntime runtime(lower(graph, plan), {.seed = 42, .compare_ranks = true});
  runtime.initialize();
  Curve curve;
  for (int step = 0; step < kShortRun; ++step) {
    for (int64_t m = 0; m + 1 < graph.micro_batches; ++m) {
      feed_part(runtime, whole, graph.micro_batches, step, m);
      runtime.accumulate();
    }
    feed_part(runtime, whole, graph.micro_batches, step, graph.micro_batches - 1);
    const StepResult r = runtime.step();
    expect_planned(r.collectives, plan);
    curve.loss.push_back(r.value("loss"));
    curve.grad_norm.push_back(r.value("grad_norm"));
  }
  return curve;
}

ModelConfig part_of(ModelConfig whole, int64_t micro_batches) {
  whole.batch /= micro_batches;
  return whole;
}

TEST(MicroBatches, TrainLikeOneBatchByAnyPlan) {
  size_t plans = 0;
  double worst = 0;
  for (const size_t m : {0, 2, 5}) {  // without dropout, whose masks go by the pass
    const Model& model = models()[m];
    const ModelConfig whole = config_for(model, 2);
    const Graph once = graph_of(model, whole, 1);
    const Curve one = train(once, plan_for(once, "1", {}), whole);
    for (const int64_t micro_batches : {2, 4}) {
      const Graph graph = graph_of(model, part_of(whole, micro_batches), micro_batches);
      verify(graph);
      for (const char* mesh : {"1", "2", "dp=2", "tp=2", "4", "dp=2,tp=2", "tp=8"}) {
        for (int draw = 0; draw < 4; ++draw) {
          const uint64_t seed = 100 * plans + static_cast<uint64_t>(draw);
          const Plan plan =
              plan_for(graph, mesh, draw == 0 ? std::nullopt : std::optional<uint64_t>(seed));
          SCOPED_TRACE(
              fmt::format("{} x{} on {}, draw {}", model.label, micro_batches, mesh, draw));
          const double d = distance(train(graph, plan, whole), one);
          EXPECT_LE(d, kF64);
          worst = std::max(worst, d);
          ++plans;
        }
      }
    }
  }
  fmt::print("{} plans, the worst differs by {:.1e}\n", plans, worst);
}

TEST(MicroBatches, DropWhatOneDeviceDrops) {
  for (const size_t m : {1, 3}) {
    const ModelConfig whole = config_for(models()[m], 2);
    const Graph graph = graph_of(models()[m], part_of(whole, 2), 2);
    const Curve one = train(graph, plan_for(graph, "1", {}), whole);
    // The two passes of a step draw different masks.
    ASSERT_NE(graph.source_named("pass"), nullptr);
    for (const char* mesh : {"2", "dp=2,tp=2", "tp=4"}) {
      EXPECT_LE(distance(train(graph, plan_for(graph, mesh, {}), whole), one), kF64) << mesh;
    }
  }
}

// Data parallelism sums gradients over devices once a step, however many micro-batches it has.
TEST(MicroBatches, GradientsAreReducedOnce) {
  const Model& model = models()[0];
  ModelConfig c = config_for(model, 2);
  double bytes[2];
  for (const int64_t micro_batches : {1, 4}) {
    const Graph graph = graph_of(model, c, micro_batches);
    const Plan plan = plan_for(graph, "dp=2", {});
    double& sum = bytes[micro_batches == 4];
    sum = 0;
    for (const PlannedCollectives& p : plan.collectives) {
      EXPECT_TRUE(p.phase == Phase::kUpdate || !p.parameters) << micro_batches;
      if (p.parameters) sum += p.bytes;
    }
    for (const Source& s : graph.sources()) {
      if (s.kind != SourceKind::kAccumulator) continue;
      EXPECT_TRUE(plan.layout(s.value, 0).placements[0].is_partial()) << s.name;
    }
  }
  EXPECT_GT(bytes[0], 0);
  EXPECT_NEAR(bytes[1], bytes[0], 64);  // the loss is summed after the last one, too
}

TEST(MicroBatches, ArePartOfTheGraphsWrittenForms) {
  const Graph graph = graph_of(models()[0], config_for(models()[0], 2), 3);
  for (const Graph& again : {graph_from_text(to_text(graph), ops::find),
                             graph_from_json_text(to_json_text(graph), ops::find)}) {
    EXPECT_EQ(again.micro_batches, 3);
    EXPECT_EQ(to_text(again), to_text(graph));
  }
}

TEST(MicroBatches, GradientsDoNotWaitForTheEnd) {
  // Each is added to its accumulator by the node behind the one that completes it, or nearly.
  const Graph graph = graph_of(models()[0], config_for(models()[0], 2), 2);
  size_t sums = 0;
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    const Source* sum = node.inputs.empty() ? nullptr : graph.source_of(node.inputs[0]);
    if (sum == nullptr || sum->kind != SourceKind::kAccumulator) continue;
    EXPECT_LE(static_cast<NodeId>(n) - graph.value(node.inputs[1]).producer, 3) << sum->name;
    ++sums;
  }
  size_t parameters = 0;
  for (const Source& s : graph.sources()) parameters += s.kind == SourceKind::kParameter;
  EXPECT_EQ(sums, parameters + 1);  // and the loss
}

// --- Steps that are not sound ------------------------------------------------------------------

std::vector<std::vector<std::byte>> kept_of(const CpuRuntime& runtime, const Graph& graph) {
  std::vector<std::vector<std::byte>> all;
  for (const Source& s : graph.sources()) {
    const bool counts_passes = s.name == "pass";
    const bool kept = s.kind == SourceKind::kParameter || s.kind == SourceKind::kState;
    if (kept && !counts_passes) all.push_back(runtime.read_source(s.name));
  }
  return all;
}

TEST(UnsoundSteps, ChangeNothing) {
  for (const size_t m : {0, 5}) {
    for (const int64_t micro_batches : {1, 2}) {
      const ModelConfig whole = config_for(models()[m], 2);
      TraceOptions options;
      options.optimizer = {.kind = models()[m].optimizer,
                           .lr = 0.1,
                           .warmup = 0,
                           .total_steps = 100,
                           .micro_batches = micro_batches,
                           .limits = true};
      const Graph graph = trace(part_of(whole, micro_batches), options);
      CpuRuntime runtime(lower(graph, plan_for(graph, "dp=2,tp=2", {})),
                         {.seed = 1, .compare_ranks = true});
      runtime.initialize();
      const auto step = [&](float loss_limit, float norm_limit) {
        for (int64_t i = 0; i < micro_batches; ++i) {
          feed_part(runtime, whole, micro_batches, 0, i);
          runtime.set_data("loss_limit", std::as_bytes(std::span(&loss_limit, 1)));
          runtime.set_data("norm_limit", std::as_bytes(std::span(&norm_limit, 1)));
          if (i + 1 < micro_batches) runtime.accumulate();
        }
        return runtime.step();
      };
      const StepResult sound = step(INFINITY, INFINITY);
      EXPECT_GT(sound.value("clip"), 0);
      auto before = kept_of(runtime, graph);
      for (const auto& [loss_limit, norm_limit] : {std::pair(0.1f, INFINITY), {INFINITY, 1e-3f}}) {
        EXPECT_EQ(step(loss_limit, norm_limit).value("clip"), -1);
        EXPECT_EQ(kept_of(runtime, graph), before);
      }
      EXPECT_GT(step(INFINITY, INFINITY).value("clip"), 0);
      EXPECT_NE(kept_of(runtime, graph), before);
      // An infinite weight: nothing is sound any more, and the op that meets it first is found.
      const std::string name = "h.1.mlp.fc.weight";
      std::vector<std::byte> weight = runtime.read_source(name);
      const float infinite = INFINITY;
      std::memcpy(weight.data(), &infinite, sizeof infinite);
      runtime.write_source(name, weight);
      before = kept_of(runtime, graph);
      runtime.watch(true);
      const StepResult bad = step(INFINITY, INFINITY);
      EXPECT_EQ(bad.value("clip"), -1);
      EXPECT_EQ(kept_of(runtime, graph), before);
      EXPECT_NE(bad.first_nonfinite.find("matmul at h.1.mlp.fc gpt2.cc:"), std::string::npos)
          << bad.first_nonfinite;
      EXPECT_NE(bad.first_nonfinite.find("(h.1.mlp.fc.weight) held some"), std::string::npos)
          << bad.first_nonfinite;
    }
  }
}

}  // namespace
}  // namespace cleave
