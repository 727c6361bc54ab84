// What a step of several micro-batches does once: found in the graph, priced once, run once, and
// held once.
#include "planner/made_once.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "executor/memory_layout.h"
#include "planner/cost.h"
#include "planner/remake.h"
#include "tests/training_pipeline.h"
#include "tracer/nn.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

Graph bf16_graph(int64_t micro_batches, int64_t layers = 2) {
  ModelConfig config = model_named("gpt2:355m");
  config.layers = layers;
  config.batch = 8;
  config.dropout = 0.1;
  return step_graph(config, micro_batches, DType::kBF16);
}

// Weights are in use as another type's copies, or as a function of them.
Tensor reparametrised(const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
  const Embedding wte("wte", c.vocab, c.hidden);
  Tensor x = wte(tokens);
  for (int64_t i = 0; i < c.layers; ++i) {
    const Scope layer(fmt::format("h.{}", i));
    const Tensor w = parameter("w", {c.hidden, c.hidden}, normal(0.3));
    x = x + gelu(linear(x, tanh(w)));
  }
  return cross_entropy(linear(x, wte.weight), targets);
}

Graph reparametrised_graph(ModelConfig config, int64_t micro_batches, DType dtype = DType::kF64) {
  config.batch /= micro_batches;
  TraceOptions options;
  options.dtype = dtype;
  options.optimizer = {.lr = 3e-3, .warmup = 3, .total_steps = 8, .micro_batches = micro_batches};
  return trace("reparametrised", config, reparametrised, options);
}

ModelConfig small() {
  ModelConfig config = model_named("gpt2:tiny");
  config.layers = 4, config.hidden = 16, config.vocab = 32, config.sequence = 8, config.batch = 8;
  return config;
}

TEST(MadeOnce, CopiesOfParameters) {
  const auto count = [](const std::vector<bool>& once) {
    return std::count(once.begin(), once.end(), true);
  };
  EXPECT_EQ(count(made_once(bf16_graph(1))), 0);
  const Graph graph = bf16_graph(4);
  const std::vector<bool> once = made_once(graph), may = can_be_remade(graph);
  int64_t found = 0, parameters = 0;
  for (const Source& s : graph.sources()) parameters += s.kind == SourceKind::kParameter;
  for (size_t n = 0; n < once.size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (!once[n]) continue;
    ++found;
    EXPECT_EQ(node.op->name, "cast");
    EXPECT_EQ(graph.source_of(node.inputs[0])->kind, SourceKind::kParameter);
    EXPECT_FALSE(may[n]) << "it is there all the time";
  }
  EXPECT_EQ(found, parameters);
}

// Widening a gradient is part of the product that makes it; adding it reads and writes the
// accumulator.
TEST(MadeOnce, AddingToAnAccumulatorIsPricedByIt) {
  const Graph graph = bf16_graph(4);
  const Cluster cluster = parse_cluster("h100");
  const auto plan = plan_with(graph, cluster, {}, {}, MemoryPrice{}, PlannerOptions{});
  ASSERT_TRUE(plan);
  const std::vector<Adding> adding = addings(graph);
  double bytes = 0, seconds = 0;
  for (size_t n = 0; n < adding.size(); ++n) {
    if (adding[n] == Adding::kWidens) {
      EXPECT_EQ(plan->nodes[n].seconds, 0);
    }
    if (adding[n] != Adding::kAdds) continue;
    seconds += plan->nodes[n].seconds;
    bytes += 8.0 * static_cast<double>(numel(graph.type(graph.nodes()[n].outputs[0]).shape));
  }
  EXPECT_GT(bytes, 8 * 50e6);
  EXPECT_NEAR(seconds * cluster.device.bandwidth / bytes, 1, 1e-6);
  // In one type nothing is widened.
  const Graph plain = step_graph(model_named("gpt2:tiny"), 2, DType::kF32);
  const std::vector<Adding> none = addings(plain);
  EXPECT_EQ(std::count(none.begin(), none.end(), Adding::kNone), std::ssize(plain.nodes()));
}

// Casts count with the update.
TEST(MadeOnce, CountsOnceAStep) {
  const Graph graph = bf16_graph(4);
  const auto plan = plan_with(graph, parse_cluster("h100"), {}, {}, MemoryPrice{}, {});
  ASSERT_TRUE(plan);
  const std::vector<bool> once = made_once(graph);
  double casts = 0, forward = 0, update = 0;
  for (size_t n = 0; n < once.size(); ++n) {
    const double seconds = plan->nodes[n].seconds;
    const Phase phase = graph.nodes()[n].phase;
    if (once[n]) casts += seconds;
    if (!once[n] && phase == Phase::kForward) forward += seconds;
    if (phase == Phase::kUpdate) update += seconds;
  }
  EXPECT_GT(casts, 0.05 * update);
  EXPECT_NEAR(plan->loads[0].seconds[0], forward, 1e-9);
  EXPECT_NEAR(plan->loads[0].seconds[2], casts + update, 1e-9);
}

// What is made when the step begins and read by micro-batches: bytes of all buffers that begin it
// and are read later. And the layout's own parameters and states.
struct Held {
  int64_t begun = 0, later = 0, persistent = 0;
};

Held held_by(const Program& program) {
  Held held;
  std::set<int32_t> read;
  for (const Instr& instr : program.instrs) {
    if (once_a_step(instr.part)) continue;
    for (TensorId t : instr.in) read.insert(program.tensor(t).buffer);
  }
  for (const Instr& instr : program.instrs) {
    const bool makes = instr.kind == InstrKind::kCompute || instr.kind == InstrKind::kReceive;
    if (instr.part != Part::kBegin || !makes) continue;
    const int32_t b = program.tensor(instr.out[0]).buffer;
    EXPECT_EQ(program.buffers[size_t(b)].slots, 1);
    if (read.contains(b)) held.later += program.buffers[size_t(b)].bytes;
    ++held.begun;
  }
  for (const Buffer& b : program.buffers) held.persistent += b.persistent ? b.bytes : 0;
  return held;
}

int64_t state_bytes(const Plan& plan) {
  int64_t bytes = 0;
  for (const GroupLoad& l : plan.loads) bytes += l.state_bytes;
  return bytes;
}

// Held like a parameter, whatever is in flight. What the search counts is what the layout holds:
// not what only other copies are made of, as a weight that is sent and then cast.
TEST(MadeOnce, IsHeldOnceByAPipeline) {
  const Graph traced = bf16_graph(8, 8);
  const RewrittenGraph cut = rewritten(traced, {{}, even_cuts(traced, 4)});
  const PipelineShape shape{.stages = 4, .chunks = 1, .micro_batches = 8};
  const Plan plan = pipeline_plan(cut.graph, "1", pipeline_of(shape, cut));
  const std::vector<bool> once = made_once(cut.graph);
  const Held held = held_by(lower(cut.graph, plan));
  EXPECT_EQ(held.begun, std::count(once.begin(), once.end(), true));
  EXPECT_EQ(state_bytes(plan), held.persistent + held.later);
}

// A function of a copy: the copy is gone when the step has begun, the function's value is what
// micro-batches read, and whose parts ZeRO goes by.
TEST(MadeOnce, OnlyWhatIsReadLaterIsHeld) {
  ModelConfig config = small();
  config.hidden = 64;
  const Graph graph = reparametrised_graph(config, 4, DType::kBF16);
  const auto plan = plan_with(graph, parse_cluster("h100"), {}, {}, MemoryPrice{}, {});
  ASSERT_TRUE(plan);
  const Held held = held_by(lower(graph, *plan));
  EXPECT_EQ(state_bytes(*plan), held.persistent + held.later);
  const std::vector<std::vector<Value>> copies = copies_made_once(graph);
  int functions = 0;
  for (size_t s = 0; s < copies.size(); ++s) {
    for (Value v : copies[s]) {
      const std::string_view op = graph.node(graph.value(v).producer).op->name;
      const bool layer = graph.sources()[s].name.starts_with("h.");
      EXPECT_EQ(op, layer ? "tanh" : "cast") << graph.sources()[s].name;
      functions += op == "tanh";
    }
  }
  EXPECT_EQ(functions, config.layers);
}

// Of random plans: what is made once is made by one instruction, brought to where it is held by
// others, and none of them runs again in a micro-batch.
struct Begun {
  int64_t programs = 0, collectives = 0;
};

void expect_begun(const Graph& graph, const Program& program, Begun& seen) {
  const std::vector<bool> once = made_once(graph);
  std::vector<int64_t> runs(once.size(), 0);
  for (const Instr& instr : program.instrs) {
    const bool begins = instr.part == Part::kBegin;
    seen.collectives += begins && is_collective(instr.kind);
    if (instr.node == kNoNode || instr.kind == InstrKind::kSend) continue;
    EXPECT_EQ(begins, once[static_cast<size_t>(instr.node)]) << instr.where;
    ++runs[static_cast<size_t>(instr.node)];
  }
  for (size_t n = 0; n < once.size(); ++n) EXPECT_TRUE(!once[n] || runs[n] == 1);
  ++seen.programs;
}

// Nothing changes: one device, several, and pipelines whose cuts lie anywhere, with nodes computed
// again, micro-batch by micro-batch, train like one device on the whole batch, and execute the
// plan's collectives.
TEST(MadeOnce, TrainsAlike) {
  const ModelConfig config = small();
  const Graph whole = reparametrised_graph(config, 1);
  const auto one_plan = plan_with(whole, parse_cluster("cpu:1"), {}, {}, MemoryPrice{}, {});
  ASSERT_TRUE(one_plan);
  const Curve one = train_in_parts(lower(whole, *one_plan), whole, config);
  const Graph graph = reparametrised_graph(config, 4);
  EXPECT_EQ(std::count_if(graph.nodes().begin(), graph.nodes().end(),
                          [](const Node& n) { return n.op->name == "tanh"; }),
            config.layers);
  const std::vector<bool> once = made_once(graph);
  EXPECT_EQ(std::count(once.begin(), once.end(), true), config.layers);
  double worst = 0;
  Begun meshes, pipelines;
  for (const char* mesh : {"1", "dp=2", "tp=2", "2x2"}) {
    PlannerOptions options;
    options.mesh = parse_mesh(mesh);
    int64_t devices = 1;
    for (int64_t size : options.mesh.sizes) devices *= size;
    for (uint64_t seed = 0; seed < 8; ++seed) {
      if (seed > 0) options.preferences = random_preferences(graph, seed);
      const auto found = find_plan(graph, parse_cluster(fmt::format("cpu:{}", devices)), options);
      ASSERT_TRUE(found.plan);
      const Program program = lower(graph, *found.plan);
      expect_begun(graph, program, meshes);
      worst = std::max(worst, distance(train_in_parts(program, graph, config, &*found.plan), one));
    }
  }
  const std::vector<bool> may = can_be_remade(graph);
  for (uint64_t seed = 0; seed < 8; ++seed) {
    for (const PipelineShape& shape :
         {PipelineShape{.stages = 2}, PipelineShape{.stages = 4, .mesh = "2"},
          PipelineShape{.kind = ScheduleKind::kInterleaved, .stages = 2, .chunks = 2},
          PipelineShape{.kind = ScheduleKind::kZeroBubble, .stages = 2, .mesh = "2x2"}}) {
      std::vector<NodeId> remade;
      for (size_t n = 0; n < may.size(); ++n) {
        if (may[n] && chance(seed, fmt::format("again {}", n)) < 0.3) {
          remade.push_back(static_cast<NodeId>(n));
        }
      }
      const int chunks = shape.stages * shape.chunks;
      const RewrittenGraph cut = rewritten(graph, {remade, even_cuts(graph, chunks, seed, 0.9)});
      const Plan plan = pipeline_plan(cut.graph, shape.mesh, pipeline_of(shape, cut), seed);
      const Program program = lower(cut.graph, plan);
      expect_begun(cut.graph, program, pipelines);
      worst = std::max(worst, distance(train_in_parts(program, cut.graph, config, &plan), one));
    }
  }
  fmt::print(
      "{} programs on meshes begin with {} collectives, {} pipelines with {}; the worst "
      "differs by {:.1e}\n",
      meshes.programs, meshes.collectives, pipelines.programs, pipelines.collectives, worst);
  EXPECT_GT(meshes.collectives, 0);
  EXPECT_GT(pipelines.collectives, 0);
  EXPECT_LE(worst, 1e-10);
}

// The way of distributed optimizers: weights lie in parts with their moments, and their copies are
// gathered once a step, in 16 bits, and held. With more sharding these are gathered for each use.
TEST(MadeOnce, CopiesAreGatheredOnceOrForEachUse) {
  const Graph graph = bf16_graph(4);
  const std::vector<std::vector<Value>> copies = copies_made_once(graph);
  for (const char* zero : {"0", "1", "3"}) {
    PlannerOptions options;
    options.mesh = parse_mesh("dp=2");
    options.pins = parse_pins(std::vector<std::string>{fmt::format("zero={}", zero)}, "--pin");
    const auto found = find_plan(graph, parse_cluster("2xh100"), options);
    ASSERT_TRUE(found.plan);
    const Plan& plan = *found.plan;
    EXPECT_EQ(fmt::format("{}", plan.zero), zero);
    double weights = 0, held = 0;      // bytes: of all copies, of what one rank holds
    double gathered = 0, reduced = 0;  // sent
    for (size_t s = 0; s < copies.size(); ++s) {
      for (Value copy : copies[s]) {
        weights += 2.0 * static_cast<double>(numel(graph.type(copy).shape));
        const Layout layout = layout_of(*plan.dimensions, copy, plan.held.at(copy));
        held += 2.0 * static_cast<double>(numel(layout.local_shape(plan.mesh)));
      }
    }
    for (const PlannedCollectives& c : plan.collectives) {
      if (!c.parameters) continue;
      (c.kind == StepKind::kAllGather ? gathered : reduced) += c.bytes;
    }
    SCOPED_TRACE(
        fmt::format("zero={}: {:.1f} MB of {:.1f} MB of copies held, {:.1f} MB gathered, "
                    "{:.1f} MB reduced",
                    zero, held / 1e6, weights / 1e6, gathered / 1e6, reduced / 1e6));
    const std::string_view stage = zero;
    EXPECT_NEAR(held / weights, stage == "3" ? 0.5 : 1, 0.01);
    // In each of the four forwards, and kept for the backward: there is room. Gradients are summed
    // over the micro-batches first, in 32 bits.
    EXPECT_NEAR(gathered / (weights / 2), stage == "0" ? 0 : stage == "1" ? 1 : 4, 0.05);
    EXPECT_NEAR(reduced / (weights / 2), stage == "0" ? 4 : 2, 0.05);
    EXPECT_EQ(peak_bytes(graph, plan), lower(graph, plan).arena_bytes);
  }
}

}  // namespace
}  // namespace cleave
