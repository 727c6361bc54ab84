// The memory of a pipeline's first stage as "Reducing Activation Recomputation in Large Transformer
// Models" (Korthikanti et al., 2022, sections 4.2.3 and 4.3) counts it, and out of the liveness of
// the whole traced model.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <set>

#include "executor/lower.h"
#include "executor/memory_layout.h"
#include "graph/error.h"
#include "planner/planner.h"
#include "planner/rewrite.h"
#include "tests/paper_layers.h"
#include "tracer/optimizer.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

// A published configuration: tensor parallelism 8, sequence parallelism.
struct Published {
  const char* name;
  Shapes shapes;
  int64_t layers, stages, chunks, micro_batches;
};

constexpr int64_t kPaperVocabulary = 51200, kPaperRanks = 8;

// The whole model. Its output layer has a weight of its own where there is a pipeline, so that the
// first stage has nothing of it, as the paper counts.
Graph paper_model(const Published& p) {
  OptimizerOptions optimizer;
  optimizer.micro_batches = p.micro_batches;
  return trace_training_step(
      "gpt",
      [&] {
        const Shapes& n = p.shapes;
        const Tensor tokens = data("tokens", {n.b, n.s}, DType::kI32, {"batch", "sequence"});
        const Tensor targets = data("targets", {n.b, n.s}, DType::kI32, {"batch", "sequence"});
        const Embedding wte("wte", kPaperVocabulary, n.h);
        const Tensor wpe = parameter("wpe.weight", {n.s, n.h}, normal(0.02));
        Tensor x = Dropout("dropout", 0.1)(wte(tokens) + wpe);
        for (int64_t i = 0; i < p.layers; ++i) x = layer(x, n, i);
        x = LayerNorm("ln_f", n.h)(x);
        const Tensor head =
            p.stages == 1 ? wte.weight : parameter("head", {kPaperVocabulary, n.h}, normal(0.02));
        return cross_entropy(linear(x, head).to(DType::kF32), targets);
      },
      optimizer, {.compute = DType::kBF16});
}

struct FirstStage {
  double activations = 0;  // bytes of one rank kept for the backward, when most are
  double laid_out = 0;     // the same in the arena: room for every chunk's most
  double states = 0;       // parameters, moments, accumulators
};

FirstStage first_stage(const Published& p, Remake what) {
  const Graph traced = paper_model(p);
  const int64_t chunks = p.stages * p.chunks;
  Rewrite rewrite{.remade = remade_nodes(traced, what), .cuts = {}};
  for (int64_t c = 1; c < chunks; ++c) {
    const std::string scope = fmt::format("h.{}", c * p.layers / chunks);
    for (size_t n = 0; n < traced.nodes().size(); ++n) {
      const std::string& s = traced.scopes()[static_cast<size_t>(traced.nodes()[n].scope)];
      if (s != scope && !s.starts_with(scope + ".")) continue;
      rewrite.cuts.push_back(static_cast<NodeId>(n));
      break;
    }
  }
  const RewrittenGraph made = rewritten(traced, rewrite);
  const ScheduleKind kind =
      p.chunks > 1 ? ScheduleKind::kInterleaved : ScheduleKind::kOneForwardOneBackward;
  const Schedule schedule =
      make_schedule(kind, static_cast<int32_t>(p.stages), static_cast<int32_t>(p.chunks),
                    static_cast<int32_t>(p.micro_batches));
  Pipeline pipeline;
  pipeline.schedule = kind;
  pipeline.stages = schedule.stages;
  pipeline.chunks = schedule.chunks;
  if (chunks > 1) pipeline.chunk_of = made.chunk_of;
  // A high price: what can be gathered again in the backward is not kept.
  Costing costing = Costing::plain(p.micro_batches, {.low = 1.0, .high = 1.0});
  const auto groups = static_cast<size_t>(chunks);
  costing.runs.resize(groups, costing.runs[0]);
  costing.prices.resize(groups, costing.prices[0]);
  costing.in_flight.assign(groups, 1);
  Mesh mesh;
  mesh.axes = {{"tp", kPaperRanks}};
  const Cluster cluster = parse_cluster(fmt::format("{}x8xa100", p.stages));
  const auto plan =
      plan_with(made.graph, cluster, mesh, {AxisRole::kInner}, costing, pipeline, PlannerOptions{});
  FirstStage result;
  if (!plan) throw InternalError("no plan");
  const Program program = lower_unplaced(made.graph, *plan);
  std::set<int32_t> others;  // data and the loss
  for (const ProgramSource& s : program.sources) others.insert(program.tensor(s.tensor).buffer);
  for (const ProgramOutput& o : program.outputs) others.insert(program.tensor(o.tensor).buffer);
  const std::vector<Lifetime> lifetimes = buffer_lifetimes(program);
  const auto end = static_cast<int32_t>(program.instrs.size());
  const auto part_at = [&](int32_t time) {
    return time < end ? program.instrs[static_cast<size_t>(time)].part : Part::kUpdate;
  };
  std::vector<double> kept(groups, 0);  // by chunk: of one micro-batch
  for (size_t b = 0; b < lifetimes.size(); ++b) {
    const Buffer& buffer = program.buffers[b];
    if (program.stage_of(buffer.chunk) != 0) continue;
    if (buffer.persistent) result.states += static_cast<double>(buffer.bytes);
    if (buffer.persistent || others.contains(static_cast<int32_t>(b))) continue;
    if (lifetimes[b].last < 0 || part_at(lifetimes[b].first) != Part::kForward) continue;
    if (part_at(lifetimes[b].last) != Part::kBackward) continue;
    kept[static_cast<size_t>(buffer.chunk)] += static_cast<double>(buffer.bytes);
  }
  result.activations = schedule.stages == 1 ? kept[0] : schedule.most_held(0, kept);
  for (int32_t c = 0; c < chunks; c += schedule.stages) {
    result.laid_out += slots_of(program, c) * kept[static_cast<size_t>(c)];
  }
  return result;
}

// What the paper says, without the masks of dropouts, of which Cleave keeps none: a byte for each
// of two elements of the residual stream and of the weights of attention in a layer, and s b h p
// for the dropout behind the embedding.
double paper_activations(const Published& p, Remake what) {
  const double s = static_cast<double>(p.shapes.s), b = static_cast<double>(p.shapes.b);
  const double h = static_cast<double>(p.shapes.h), a = static_cast<double>(p.shapes.a);
  const double t = static_cast<double>(kPaperRanks), stages = static_cast<double>(p.stages);
  const double layer = what == Remake::kNothing ? 32 + 4 * a * s / h
                       : what == Remake::kCore  ? 32
                                                : 2;
  const double interleaved =
      p.chunks > 1 ? 1 + (stages - 1) / (stages * static_cast<double>(p.chunks)) : 1;
  const double layers = s * b * h / t * layer * static_cast<double>(p.layers) * interleaved;
  const double output = p.stages > 1 ? 0 : 4 * s * b * h / t * (1 + kPaperVocabulary / h);
  return layers + output;
}

// Parameters of one rank of the first stage.
double paper_parameters(const Published& p) {
  const double h = static_cast<double>(p.shapes.h), s = static_cast<double>(p.shapes.s);
  const double layers = static_cast<double>(p.layers) / static_cast<double>(p.stages);
  const double layer = 12 * h * h * (1 + 13 / (12 * h));
  return (layers * layer + (kPaperVocabulary + s) * h) / static_cast<double>(kPaperRanks);
}

void expect_first_stage(const Published& p) {
  constexpr double kGiB = 1 << 30;
  for (const auto& [what, words] : {std::pair(Remake::kNothing, "nothing"),
                                    {Remake::kCore, "the core of attention"},
                                    {Remake::kLayer, "layers"}}) {
    SCOPED_TRACE(fmt::format("{}, computed again: {}", p.name, words));
    const FirstStage stage = first_stage(p, what);
    const double paper = paper_activations(p, what);
    fmt::print(
        "{:5} computing {:22} again: {:7.2f} GiB of activations, the paper {:7.2f} ({:+.2f} %), "
        "laid out {:7.2f}; {:6.2f} GiB of states, {:.2f} bytes a parameter\n",
        p.name, words, stage.activations / kGiB, paper / kGiB,
        100 * (stage.activations / paper - 1), stage.laid_out / kGiB, stage.states / kGiB,
        stage.states / paper_parameters(p));
    EXPECT_NEAR(stage.activations / paper, 1, 0.001);
    // Parameters in fp32 and two moments, and where gradients are added up an accumulator in fp32.
    // The 16-bit copies that the paper's runs kept, 2 bytes more, are made when they are needed.
    const double bytes = p.micro_batches > 1 ? 16 : 12;
    EXPECT_NEAR(stage.states / (bytes * paper_parameters(p)), 1, 0.02);
    // The arena has room for every chunk's most, which chunks of one stage do not hold at one time.
    EXPECT_NEAR(stage.laid_out / stage.activations, p.chunks == 1 ? 1 : 1.25,
                p.chunks == 1 ? 0 : 0.02);
  }
}

TEST(FirstStage, Gpt22b) {
  expect_first_stage({"22B", {.h = 6144, .a = 64, .s = 2048, .b = 4}, 48, 1, 1, 1});
}

TEST(FirstStage, Gpt175b) {
  expect_first_stage({"175B", {.h = 12288, .a = 96, .s = 2048, .b = 1}, 96, 8, 3, 64});
}

TEST(FirstStage, Gpt530b) {
  expect_first_stage({"530B", {.h = 20480, .a = 128, .s = 2048, .b = 1}, 105, 35, 3, 280});
}

TEST(FirstStage, Gpt1t) {
  expect_first_stage({"1T", {.h = 25600, .a = 160, .s = 2048, .b = 1}, 128, 64, 1, 512});
}

}  // namespace
}  // namespace cleave
