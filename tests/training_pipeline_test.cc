// Pipelines train like one device: stages, chunks, schedules, micro-batches, meshes inside, and
// recomputation; what they send is what is promised; and none waits for ever.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "graph/philox.h"
#include "graph/verify.h"
#include "planner/remake.h"
#include "tests/training_pipeline.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

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
                          const PipelineShape& shape, const Rewrite& rewrite,
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

const std::vector<PipelineShape>& shapes() {
  static const std::vector<PipelineShape> table = {
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
      const PipelineShape& shape = shapes()[i];
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

// A share of the nodes that can be computed again, drawn by the seed.
std::vector<NodeId> some_remade(const Graph& graph, uint64_t seed) {
  const std::vector<bool> possible = can_be_remade(graph);
  std::vector<NodeId> nodes;
  for (size_t n = 0; n < possible.size(); ++n) {
    if (possible[n] && chance(seed, fmt::format("remade {}", n)) < 0.7)
      nodes.push_back(static_cast<NodeId>(n));
  }
  return nodes;
}

TEST(Pipelines, ComputeAgainWhatTheyDoNotKeep) {
  double worst = 0;
  size_t runs = 0;
  const std::vector<PipelineShape> table = {{k1F1B, 2, 1, 4, "1"},
                                            {kZero, 3, 1, 4, "1"},
                                            {kInter, 2, 2, 4, "1"},
                                            {k1F1B, 2, 1, 2, "tp=2"},
                                            {kZero, 2, 1, 4, "dp=2"}};
  for (size_t m = 0; m < models().size(); ++m) {
    for (size_t i = m % 3; i < table.size(); i += 3) {
      const PipelineShape& shape = table[i];
      SCOPED_TRACE(fmt::format("{}: {}", models()[m].label, text_of(shape)));
      ModelConfig config = config_for(models()[m], 2);
      config.layers = 4;
      const Graph graph =
          step_graph(config, shape.micro_batches, DType::kF64, models()[m].optimizer);
      const Curve one = train_in_parts(lower(graph, plan_for(graph, "1", {})), graph, config);
      const Rewrite rewrite{some_remade(graph, runs),
                            even_cuts(graph, shape.stages * shape.chunks, runs, 0.5)};
      ASSERT_FALSE(rewrite.remade.empty());
      try {
        const double d = largest_difference(graph, config, one, shape, rewrite);
        EXPECT_LE(d, 1e-12);
        worst = std::max(worst, d);
        ++runs;
      } catch (const std::exception& e) {
        ADD_FAILURE() << e.what();
      }
    }
  }
  fmt::print("{} pipelines, the worst differs by {:.1e}\n", runs, worst);
}

// The search's own: with a limit that ever fewer plans keep.
TEST(Pipelines, ThatTheSearchChooses) {
  double worst = 0;
  int pipelines = 0, remakes = 0;
  for (const size_t m : {1, 4}) {
    ModelConfig config = config_for(models()[m], 2);
    config.layers = 6;
    const Graph graph = step_graph(config, 1);
    const Curve one = train_in_parts(lower(graph, plan_for(graph, "1", {})), graph, config);
    PlannerOptions options;
    options.space = {.stages = true, .recompute = true, .max_axes = 2};
    options.trace = [&](int64_t micro_batches) {
      return std::make_shared<const Graph>(step_graph(config, micro_batches));
    };
    options.live_bytes = stage_live_bytes;
    options.peak_bytes = stage_peak_bytes;
    options.memory_limit = std::numeric_limits<double>::infinity();
    const bool dropout = config.dropout > 0;  // masks go by the micro-batch
    for (int tries = 0; tries < 4; ++tries) {
      // On as few devices as these a mesh alone is most often faster: one is asked for.
      options.pins.stages = tries == 1 ? std::optional<int32_t>(2) : std::nullopt;
      const PlanResult found = find_plan(graph, parse_cluster("cpu:4"), options);
      if (!found.plan) break;
      const Plan& plan = *found.plan;
      SCOPED_TRACE(fmt::format("{}: {} stages of mesh {}, {} micro-batches, limit {}",
                               models()[m].label, plan.pipeline.stages, plan.mesh.to_string(),
                               found.graph->micro_batches, options.memory_limit));
      Program program = lower(*found.graph, plan);
      EXPECT_EQ(program.arena_bytes, plan.predicted.peak_bytes);
      EXPECT_LE(static_cast<double>(program.arena_bytes), options.memory_limit);
      pipelines += plan.pipeline.stages > 1;
      remakes += !plan.rewrite.remade.empty();
      options.memory_limit = 0.85 * static_cast<double>(program.arena_bytes);
      const Graph again = step_graph(config, found.graph->micro_batches);
      const Curve& want =
          dropout ? train_in_parts(lower(again, plan_for(again, "1", {})), again, config) : one;
      const double d =
          distance(train_in_parts(std::move(program), *found.graph, config, &plan), want);
      EXPECT_LE(d, 1e-12);
      worst = std::max(worst, d);
    }
  }
  EXPECT_GT(pipelines, 0);
  EXPECT_GT(remakes, 0);
  fmt::print("{} pipelines, {} that compute again, the worst differs by {:.1e}\n", pipelines,
             remakes, worst);
}

// --- Orders ------------------------------------------------------------------------------------

// One pipeline of a small GPT, lowered.
struct Lowered {
  explicit Lowered(PipelineShape shape, size_t model = 1)
      : config(config_of(model)),
        graph(step_graph(config, shape.micro_batches)),
        cut(rewritten(graph, {{}, even_cuts(graph, shape.stages * shape.chunks)})),
        plan(pipeline_plan(cut.graph, shape.mesh, pipeline_of(shape, cut))),
        program(lower(cut.graph, plan)) {}

  static ModelConfig config_of(size_t model) {
    ModelConfig c = config_for(models()[model], 2);
    c.layers = 4;
    return c;
  }

  const ModelConfig config;
  const Graph graph;
  const RewrittenGraph cut;
  const Plan plan;
  Program program;
};

// Any order in which no stage waits for ever: units are drawn from those whose needs are done.
// Forwards of a chunk stay in the order of the micro-batches, which dropout counts.
void shuffle(Schedule& schedule, uint64_t seed) {
  const int32_t chunks = schedule.stages * schedule.chunks, m = schedule.micro_batches;
  const bool split = schedule.kind == ScheduleKind::kZeroBubble;
  std::vector<std::vector<int>> done(static_cast<size_t>(chunks),
                                     std::vector<int>(static_cast<size_t>(m), 0));
  const auto at = [&](int32_t c, int32_t i) -> int& {
    return done[static_cast<size_t>(c)][static_cast<size_t>(i)];
  };
  for (auto& order : schedule.order) order.clear();
  for (uint64_t draw = 0;; ++draw) {
    std::vector<Unit> ready;
    for (int32_t c = 0; c < chunks; ++c) {
      for (int32_t i = 0; i < m; ++i) {
        const bool turn = i == 0 || at(c, i - 1) >= 1;
        if (at(c, i) == 0 && turn && (c == 0 || at(c - 1, i) >= 1))
          ready.push_back({UnitKind::kForward, c, i});
        if (at(c, i) == 1 && (c + 1 == chunks || at(c + 1, i) >= 2))
          ready.push_back({UnitKind::kBackward, c, i});
        if (at(c, i) == 2 && split) ready.push_back({UnitKind::kWeightGradient, c, i});
      }
    }
    if (ready.empty()) return;
    const auto pick = static_cast<size_t>(chance(seed, fmt::format("unit {}", draw)) *
                                          static_cast<double>(ready.size()));
    const Unit u = ready[pick];
    ++at(u.chunk, u.micro_batch);
    schedule.order[static_cast<size_t>(u.chunk % schedule.stages)].push_back(u);
  }
}

TEST(PipelineOrders, AnyThatDoesNotWaitForEverTrainsTheSame) {
  double worst = 0;
  for (const PipelineShape& shape :
       {PipelineShape{k1F1B, 3, 1, 4, "1"}, {kInter, 2, 2, 4, "1"}, {kZero, 2, 1, 4, "dp=2"}}) {
    Lowered sound(shape);
    const Curve one = train_in_parts(sound.program, sound.cut.graph, sound.config);
    for (uint64_t seed = 0; seed < 12; ++seed) {
      SCOPED_TRACE(fmt::format("{}, seed {}", text_of(shape), seed));
      Program program = sound.program;
      shuffle(program.schedule, seed);
      plan_memory(program);
      check(program);
      const double d = distance(train_in_parts(program, sound.cut.graph, sound.config), one);
      EXPECT_LE(d, 1e-12);
      worst = std::max(worst, d);
    }
  }
  fmt::print("random orders: the worst differs by {:.1e}\n", worst);
}

TEST(PipelineOrders, OneThatWaitsForEverIsRefused) {
  Lowered p({k1F1B, 2, 1, 2, "1"}, 0);
  // Both stages wait for each other: the first for a backward before it has sent a forward.
  auto& order = p.program.schedule.order[0];
  std::reverse(order.begin(), order.end());
  plan_memory(p.program);
  try {
    check(p.program);
    FAIL() << "accepted";
  } catch (const InternalError& e) {
    EXPECT_NE(std::string(e.what()).find("waits for it for ever"), std::string::npos) << e.what();
  }
  // Run all the same, the ranks notice instead of hanging.
  try {
    train_in_parts(p.program, p.cut.graph, p.config, nullptr, {.seed = 42, .check = false});
    FAIL() << "it ran";
  } catch (const InternalError& e) {
    EXPECT_NE(std::string(e.what()).find("the ranks wait for each other for ever"),
              std::string::npos)
        << e.what();
    EXPECT_NE(std::string(e.what()).find("waiting for node"), std::string::npos) << e.what();
  }
}

// --- Memory ------------------------------------------------------------------------------------

// The earlier a stage, the more micro-batches it holds at once: a frame for each.
TEST(PipelineMemory, FramesAreAsManyAsMicroBatchesInFlight) {
  const Lowered p({k1F1B, 4, 1, 8, "1"}, 0);
  for (int32_t c = 0; c < 4; ++c) {
    EXPECT_EQ(slots_of(p.program, c), 4 - c);
    EXPECT_EQ(slots_of(p.program, c), p.program.schedule.in_flight(c));
    int32_t most = 1;
    for (const Buffer& b : p.program.buffers) {
      if (b.chunk == c) most = std::max(most, b.slots);
    }
    EXPECT_EQ(most, 4 - c);
  }
  ASSERT_EQ(p.program.memory.size(), 4u);
  // Between the ends, whose embedding and head are large, stages differ by their frames alone.
  EXPECT_GT(p.program.memory[1].arena_bytes, p.program.memory[2].arena_bytes);
  EXPECT_EQ(stage_peak_bytes(p.cut.graph, p.plan).size(), 4u);
  const std::vector<int64_t> live = stage_live_bytes(p.cut.graph, p.plan);
  for (size_t s = 0; s < 4; ++s) EXPECT_LE(live[s], p.program.memory[s].arena_bytes);
}

// More micro-batches need no more memory once the pipeline is full.
TEST(PipelineMemory, DoesNotGrowWithTheMicroBatches) {
  ModelConfig config = Lowered::config_of(0);
  std::vector<int64_t> bytes;
  for (const int micro_batches : {2, 4, 8}) {
    config.batch = 2 * micro_batches;
    const Graph graph = step_graph(config, micro_batches);
    const RewrittenGraph r = rewritten(graph, {{}, even_cuts(graph, 2)});
    const Pipeline pipeline = pipeline_of({k1F1B, 2, 1, micro_batches, "1"}, r);
    bytes.push_back(peak_bytes(r.graph, pipeline_plan(r.graph, "1", pipeline)));
  }
  EXPECT_EQ(bytes[0], bytes[1]);
  EXPECT_EQ(bytes[1], bytes[2]);
}

// --- Programs that do not compose --------------------------------------------------------------

std::string refusal(const Program& program) {
  try {
    check(program);
  } catch (const InternalError& e) {
    return e.what();
  }
  return "accepted";
}

Instr& first_of(Program& p, InstrKind kind) {
  return *std::find_if(p.instrs.begin(), p.instrs.end(),
                       [&](const Instr& i) { return i.kind == kind; });
}

struct Mistake {
  const char* label;
  void (*make)(Program&);
  const char* message;
};

const std::vector<Mistake>& mistakes() {
  static const std::vector<Mistake> table = {
      {"a receive without its send",
       [](Program& p) { first_of(p, InstrKind::kSend).kind = InstrKind::kCopy; }, "operands and"},
      {"a send left out",
       [](Program& p) {
         std::erase_if(p.instrs, [&, n = first_of(p, InstrKind::kSend).node](const Instr& i) {
           return i.kind == InstrKind::kSend && i.node == n;
         });
       },
       "nobody sends node"},
      {"a receive left out",
       [](Program& p) {
         const Instr receive = first_of(p, InstrKind::kReceive);
         std::erase_if(p.instrs, [&](const Instr& i) {
           return i.kind == InstrKind::kReceive && i.node == receive.node;
         });
       },
       "is read before it is written"},
      {"another value",
       [](Program& p) {
         Instr& send = first_of(p, InstrKind::kSend);
         for (const ProgramSource& source : p.sources) {
           const bool other = p.tensor(source.tensor).layout != p.tensor(send.in[0]).layout;
           if (source.chunk == send.chunk && source.kind == SourceKind::kParameter && other)
             send.in = {source.tensor};
         }
       },
       "is sent as"},
      {"the wrong chunk", [](Program& p) { first_of(p, InstrKind::kSend).peer = 0; },
       "receives from"},
      {"another chunk's tensor",
       [](Program& p) {
         for (Instr& i : p.instrs) {
           if (i.kind == InstrKind::kCompute && i.chunk == 1 && i.part == Part::kForward) {
             i.chunk = 0;
             return;
           }
         }
       },
       ""},
      {"a frame too few",
       [](Program& p) {
         for (Buffer& b : p.buffers) {
           if (b.slots > 1) --b.slots;
         }
       },
       "are live together and overlap"},
      {"frames too near each other",
       [](Program& p) {
         for (Buffer& b : p.buffers) {
           if (b.slots > 1) b.stride -= 64;
         }
       },
       "are live together and overlap"},
      {"an update among the units",
       [](Program& p) {
         for (Instr& i : p.instrs) {
           if (i.part == Part::kForward && i.chunk == 0) {
             i.part = Part::kUpdate;
             return;
           }
         }
       },
       "it stands behind the update"},
  };
  return table;
}

TEST(PipelineCheck, EveryMistakeIsRefused) {
  const Lowered sound({k1F1B, 2, 1, 4, "1"}, 0);
  ASSERT_EQ(refusal(sound.program), "accepted");
  for (const Mistake& m : mistakes()) {
    Program broken = sound.program;
    m.make(broken);
    const std::string message = refusal(broken);
    EXPECT_NE(message, "accepted") << m.label;
    EXPECT_NE(message.find(m.message), std::string::npos) << m.label << ": " << message;
  }
}

// --- States ------------------------------------------------------------------------------------

// What one pipeline has kept, another goes on from.
TEST(Pipelines, GoOnWithOtherStages) {
  const PipelineShape before{k1F1B, 2, 1, 4, "dp=2"};
  const Lowered first(before);
  const Curve whole = train_in_parts(first.program, first.cut.graph, first.config);
  for (const PipelineShape& after : {PipelineShape{k1F1B, 4, 1, 4, "1"},
                                     {kInter, 2, 2, 4, "1"},
                                     {kZero, 3, 1, 4, "1"},
                                     {kZero, 2, 1, 4, "tp=2"}}) {
    SCOPED_TRACE(text_of(after));
    const Lowered second(after);
    CpuRuntime a(first.program, {.seed = 42}), b(second.program, {.seed = 42});
    a.initialize();
    const int half = kPipelineSteps / 2;
    for (int step = 0; step < half; ++step) step_in_parts(a, first.graph, first.config, step);
    std::set<std::string> names;
    for (const ProgramSource& s : a.program().sources) {
      if (s.kind != SourceKind::kParameter && s.kind != SourceKind::kState) continue;
      EXPECT_TRUE(names.insert(s.name).second) << s.name;
      b.write_source(s.name, a.read_source(s.name));
    }
    for (const ProgramSource& s : b.program().sources) {
      if (s.kind == SourceKind::kParameter || s.kind == SourceKind::kState) {
        EXPECT_TRUE(names.contains(s.name)) << s.name;
      }
    }
    for (const ProgramSource& s : b.program().sources) {
      if (s.kind == SourceKind::kAccumulator) {
        const std::vector<std::byte> any(static_cast<size_t>(numel(b.source_type(s.name).shape) *
                                                             size_of(b.source_type(s.name).dtype)));
        b.write_source(s.name, any);
      }
    }
    for (int step = half; step < kPipelineSteps; ++step) {
      const StepResult r = step_in_parts(b, second.graph, second.config, step);
      const auto at = static_cast<size_t>(step);
      EXPECT_NEAR(r.value("loss"), whole.loss[at], 1e-12 * whole.loss[at]);
      EXPECT_NEAR(r.value("grad_norm"), whole.grad_norm[at], 1e-12 * whole.grad_norm[at]);
    }
  }
}

// A number that is not finite is found where it begins, not where it arrives; and changes nothing
// in any stage.
TEST(Pipelines, UnsoundStepsChangeNothing) {
  for (const PipelineShape& shape :
       {PipelineShape{k1F1B, 4, 1, 4, "1"}, {kZero, 2, 1, 4, "tp=2"}, {kInter, 2, 2, 4, "1"}}) {
    SCOPED_TRACE(text_of(shape));
    const Lowered p(shape, 0);
    CpuRuntime runtime(p.program, {.seed = 1, .compare_ranks = true});
    runtime.initialize();
    EXPECT_GT(step_in_parts(runtime, p.graph, p.config, 0).value("clip"), 0);
    const std::string name = "h.2.mlp.fc.weight";
    std::vector<std::byte> weight = runtime.read_source(name);
    const double infinite = INFINITY;
    std::memcpy(weight.data(), &infinite, sizeof infinite);
    runtime.write_source(name, weight);
    const auto kept = [&] {
      std::vector<std::vector<std::byte>> all;
      for (const ProgramSource& s : p.program.sources) {
        if (s.kind == SourceKind::kParameter || s.kind == SourceKind::kState)
          all.push_back(runtime.read_source(s.name));
      }
      return all;
    };
    const auto before = kept();
    runtime.watch(true);
    const StepResult bad = step_in_parts(runtime, p.graph, p.config, 1);
    EXPECT_EQ(bad.value("clip"), -1);
    EXPECT_EQ(kept(), before);
    EXPECT_NE(bad.first_nonfinite.find("matmul at h.2.mlp.fc gpt2.cc:"), std::string::npos)
        << bad.first_nonfinite;
  }
}

}  // namespace
}  // namespace cleave
