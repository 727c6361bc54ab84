// Any plan trains like one device. Plans are drawn at random out of the whole space of every mesh
// of 2, 3, 4 and 8 devices, for two-layer models of every kind; a collective left out or done twice
// in the lowered program shows.
#include "tests/training_plans.h"

#include <gtest/gtest.h>

#include "tests/support/interpreter.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

constexpr int kDevices[] = {2, 3, 4, 8};
constexpr size_t kPlans = 18;  // different ones for each model and number of devices
constexpr size_t kModels = 9;
static_assert(kPlans * kModels * std::size(kDevices) >= 300);

class EveryPlan : public ::testing::TestWithParam<std::tuple<size_t, int>> {};

TEST_P(EveryPlan, TrainsLikeOneDevice) {
  const auto [model, devices] = GetParam();
  train_by_plans(model, devices, DType::kF64, kPlans, kF64);
}

TEST_P(EveryPlan, TrainsLikeOneDeviceInSinglePrecision) {
  const auto [model, devices] = GetParam();
  train_by_plans(model, devices, DType::kF32, 6, kF32, 500, true);
}

INSTANTIATE_TEST_SUITE_P(Models, EveryPlan,
                         ::testing::Combine(::testing::Range(size_t{0}, kModels),
                                            ::testing::ValuesIn(kDevices)),
                         [](const auto& info) {
                           return fmt::format("{}_{}", models()[std::get<0>(info.param)].label,
                                              std::get<1>(info.param));
                         });

// One device, in turn, does what the interpreter of the graph does.
TEST(OneDevice, TrainsAsTheGraphSays) {
  for (const Model& model : models()) {
    ModelConfig c = config_for(model, 2);
    c.dropout = 0;  // the interpreter draws by another seed
    const Graph graph = training_graph(c, DType::kF64);
    const Plan plan = plan_for(graph, "1", {});
    CpuRuntime runtime(lower(graph, plan), {.seed = 42});
    runtime.initialize();
    Interpreter interpreter(graph);
    const auto numbers = [](const auto& data) {
      return std::vector<double>(data.begin(), data.end());
    };
    for (const Source& s : graph.sources()) {
      if (s.kind == SourceKind::kData) continue;
      const auto bytes = runtime.read_source(s.name);
      if (graph.type(s.value).dtype == DType::kF64) {
        interpreter.set(s.name, numbers(std::span(reinterpret_cast<const double*>(bytes.data()),
                                                  bytes.size() / sizeof(double))));
      } else {
        interpreter.set(s.name, numbers(std::span(reinterpret_cast<const int32_t*>(bytes.data()),
                                                  bytes.size() / sizeof(int32_t))));
      }
    }
    for (int step = 0; step < 3; ++step) {
      const Batch batch = batch_of(c, step);
      interpreter.set("tokens", numbers(batch.tokens));
      interpreter.set("targets", numbers(batch.targets));
      interpreter.run();
      auto results = interpreter.results();
      feed(runtime, c, step);
      const StepResult r = runtime.step();
      for (const char* output : {"loss", "grad_norm", "lr"}) {
        const double expected = results.at(output)[0];
        EXPECT_NEAR(r.value(output), expected, 1e-12 * std::abs(expected)) << model.label << output;
      }
      for (const Source& s : graph.sources()) {
        if (s.kind != SourceKind::kData) interpreter.set(s.name, results.at(s.name));
      }
    }
  }
}

// Less memory than the fastest plan takes: shards of parameters and states, values gathered again.
TEST(SavingMemory, TrainsLikeOneDevice) {
  size_t squeezed = 0;
  for (size_t m = 0; m < kModels; ++m) {
    const ModelConfig c = config_for(models()[m], 4);
    const Graph graph = training_graph(c, DType::kF64, models()[m].optimizer);
    const Curve one = on_one_device(graph, c);
    for (const char* mesh : {"4", "dp=2,tp=2"}) {
      PlannerOptions options;
      options.mesh = parse_mesh(mesh);
      options.memory_limit = INFINITY;
      options.peak_bytes = stage_peak_bytes;
      options.live_bytes = stage_live_bytes;
      const Cluster cluster = parse_cluster("cpu:4");
      const auto widest = find_plan(graph, cluster, options);
      ASSERT_TRUE(widest.plan);
      for (const double share : {0.9, 0.8, 0.7, 0.6}) {
        options.memory_limit = share * static_cast<double>(widest.plan->predicted.peak_bytes);
        const auto found = find_plan(graph, cluster, options);
        if (!found.plan) continue;
        SCOPED_TRACE(
            fmt::format("{} on {} in {:.0f} bytes", models()[m].label, mesh, options.memory_limit));
        Program program = lower(graph, *found.plan);
        EXPECT_LE(static_cast<double>(program.arena_bytes), options.memory_limit);
        EXPECT_LE(distance(run(std::move(program), c, &*found.plan), one), kF64);
        ++squeezed;
      }
    }
  }
  EXPECT_GE(squeezed, 24u);
  fmt::print("{} plans in less memory\n", squeezed);
}

// --- Planted mistakes
// ------------------------------------------------------------------------------

// Whether the instruction sums what an op, split along a factor that it reduces, has left partial.
// (Other partial sums may be whole on the first rank and zero elsewhere; to leave their sum out can
// be harmless.)
bool sums(const Program& program, const Instr& instr) {
  if (instr.kind != InstrKind::kAllReduce && instr.kind != InstrKind::kReduceScatter) return false;
  if (instr.reduction != Reduction::kSum) return false;
  const auto axis = static_cast<size_t>(instr.axis);
  return std::any_of(program.instrs.begin(), program.instrs.end(), [&](const Instr& made) {
    return made.kind == InstrKind::kCompute && made.splits[axis].letter != 0 &&
           std::find(made.out.begin(), made.out.end(), instr.in[0]) != made.out.end();
  });
}

// Each rank goes on with its own part of the sum.
Program without(Program program, size_t index) {
  Instr& instr = program.instrs[index];
  instr.kind = instr.kind == InstrKind::kAllReduce ? InstrKind::kCopy : InstrKind::kSlice;
  return program;
}

// The sum of an all-reduce is summed again.
Program doubled(Program program, size_t index) {
  Instr again = program.instrs[index];
  again.in = again.out;
  program.instrs.insert(program.instrs.begin() + static_cast<int64_t>(index) + 1, std::move(again));
  return program;
}

// The same number of sums from every part of the step.
std::vector<size_t> sample_of_sums(const Program& program, size_t count) {
  std::vector<size_t> all, chosen;
  for (size_t i = 0; i < program.instrs.size(); ++i) {
    if (sums(program, program.instrs[i])) all.push_back(i);
  }
  for (size_t k = 0; k < std::min(count, all.size()); ++k) {
    chosen.push_back(all[k * all.size() / std::min(count, all.size())]);
  }
  return chosen;
}

TEST(PlantedMistake, ASumLeftOutOrDoneTwiceIsRefusedAndWouldShow) {
  struct Case {
    size_t model;
    int devices;
    const char* mesh;
    std::optional<uint64_t> seed;
  };
  const Case cases[] = {{0, 2, "dp=2", {}}, {2, 4, "tp=2,dp=2", {}}, {0, 4, "2x2", 1},
                        {3, 2, "2", 7},     {4, 4, "4", 3},          {1, 3, "3", 5}};
  size_t planted = 0;
  for (const Case& k : cases) {
    const ModelConfig c = config_for(models()[k.model], k.devices);
    const Graph graph = training_graph(c, DType::kF64);
    const Curve one = on_one_device(graph, c);
    const Program sound = lower(graph, plan_for(graph, k.mesh, k.seed));
    ASSERT_LE(distance(run(sound, c), one), kF64);
    for (size_t index : sample_of_sums(sound, 6)) {
      for (const bool twice : {false, true}) {
        if (twice && sound.instrs[index].kind != InstrKind::kAllReduce) continue;
        const Program broken = twice ? doubled(sound, index) : without(sound, index);
        EXPECT_THROW(check(broken), InternalError);
        const Curve curve = run(broken, c, nullptr, {.seed = 42, .check = false});
        EXPECT_GT(distance(curve, one), 1e-6)
            << models()[k.model].label << " on " << k.mesh << ", instruction " << index << " "
            << sound.instrs[index].where << (twice ? " done twice" : " left out");
        ++planted;
      }
    }
  }
  fmt::print("{} mistakes planted\n", planted);
}

}  // namespace
}  // namespace cleave
