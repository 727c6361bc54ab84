// A run that goes on from a checkpoint is the run that was never stopped: to the bit on the same
// mesh, to rounding on any other. And a spike's update is left out.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "checkpoint/checkpoint.h"
#include "executor/run_state.h"
#include "executor/spike_guard.h"
#include "executor/trainer.h"
#include "tests/training_pipeline.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

constexpr int64_t kRun = 12;

class Resuming : public ::testing::Test {
 protected:
  Resuming() {
    folder_ = std::filesystem::temp_directory_path() /
              ("cleave_resume_" + std::to_string(::getpid()) + "_" +
               ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
    std::ofstream file(path("data"));
    for (int i = 0; i < 5000; ++i) file << static_cast<char>(i * 7 % 40 + i * i % 7 + 1);
  }
  ~Resuming() override { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  struct Run {
    std::string mesh = "1";
    int64_t batch = 8, micro_batches = 1;
    int64_t steps = kRun, every = 0;
    std::string out = {};   // of the checkpoints; empty: none
    std::string from = {};  // a checkpoint to go on from
    DType dtype = DType::kF32;
    std::optional<DType> moments = {};
    int64_t stop_after = -1;  // steps
    double spikes = 8;
    bool by_three = false;  // sizes that 3 divides, and 4 too
    // A pipeline; one stage: none. The mesh is of each stage.
    PipelineShape pipeline = {.stages = 1};
  };

  TrainResult train(const Model& model, const Run& run) {
    ModelConfig config = config_for(model, 4);
    config.batch = run.batch;
    if (run.by_three) {
      config.hidden = 48;
      config.heads = 12;
      config.kv_heads = 0;
      config.ffn = 96;
      config.vocab = 96;
      config.sequence = 12;
    }
    TraceOptions trace_options;
    trace_options.dtype = run.dtype;
    trace_options.optimizer = {.kind = model.optimizer,
                               .lr = 3e-3,
                               .min_lr = 3e-4,
                               .warmup = 3,
                               .total_steps = kRun,
                               .moments = run.moments,
                               .micro_batches = run.micro_batches,
                               .limits = true};
    Graph graph = trace(config, trace_options);
    Plan plan;
    if (run.pipeline.stages == 1) {
      plan = plan_for(graph, run.mesh, {});
    } else {
      const int chunks = run.pipeline.stages * run.pipeline.chunks;
      const RewrittenGraph cut = rewritten(graph, {{}, even_cuts(graph, chunks)});
      plan = pipeline_plan(cut.graph, run.mesh, pipeline_of(run.pipeline, cut));
      graph = cut.graph;
    }
    TrainOptions options;
    options.steps = run.steps;
    options.seed = 5;
    options.vocab = config.vocab;
    options.spike_deviations = run.spikes;
    if (objective_of(config) == Objective::kMaskedTokens) options.targets = Targets::kMaskedTokens;
    options.checkpoints = {.folder = run.out, .every = run.every, .keep = 0};
    std::optional<Checkpoint> from;
    if (!run.from.empty()) from.emplace(open_checkpoint(run.from));
    options.resume = from ? &*from : nullptr;
    int64_t asked = 0;
    options.stop = [&] { return asked++ == run.stop_after; };
    Telemetry telemetry({.out_dir = {},
                         .progress = Progress::kOff,
                         .lines = [this](const std::string& l) { log_ += l + "\n"; }});
    return cleave::train(graph, plan, TokenData({path("data")}, config.sequence), options,
                         telemetry);
  }

  // Every tensor of a checkpoint, by name.
  static std::map<std::string, std::vector<std::byte>> tensors_of(const std::string& folder) {
    const Checkpoint c = open_checkpoint(folder);
    std::map<std::string, std::vector<std::byte>> all;
    for (const ManifestTensor& t : c.tensors()) {
      const auto bytes = c.bytes(t);
      all[t.name].assign(bytes.begin(), bytes.end());
    }
    return all;
  }

  std::filesystem::path folder_;
  std::string log_;
};

std::vector<double> losses(const TrainResult& r) {
  std::vector<double> result;
  for (const StepRecord& s : r.steps) result.push_back(s.loss);
  return result;
}

TEST_F(Resuming, IsTheSameToTheBitOnTheSameMesh) {
  for (const size_t m : {1, 3, 4, 5}) {  // with dropout, masked tokens, SGD
    for (const char* mesh : {"1", "dp=2,tp=2"}) {
      SCOPED_TRACE(fmt::format("{} on {}", models()[m].label, mesh));
      const int64_t micro_batches = m == 3 ? 2 : 1;
      const std::string whole = path(fmt::format("whole_{}_{}", m, mesh)), half = whole + "_half";
      const TrainResult one =
          train(models()[m], {.mesh = mesh, .micro_batches = micro_batches, .out = whole});
      train(models()[m],
            {.mesh = mesh, .micro_batches = micro_batches, .out = half, .stop_after = 5});
      EXPECT_TRUE(open_checkpoint(half).step() == 5);
      const TrainResult rest = train(
          models()[m], {.mesh = mesh, .micro_batches = micro_batches, .out = half, .from = half});
      std::vector<double> tail = losses(one);
      tail.erase(tail.begin(), tail.begin() + 5);
      EXPECT_EQ(losses(rest), tail);
      EXPECT_EQ(tensors_of(half), tensors_of(whole));
      EXPECT_EQ(open_checkpoint(half).run_json(), open_checkpoint(whole).run_json());
    }
  }
}

// Moments in bf16 are saved and read as such; what the rest of the run rounds goes by the steps'
// numbers, not by what was drawn before.
TEST_F(Resuming, MomentsIn16BitsAreTheSameToTheBit) {
  for (const size_t m : {1, 5}) {  // with dropout, SGD
    for (const char* mesh : {"1", "dp=2,tp=2"}) {
      SCOPED_TRACE(fmt::format("{} on {}", models()[m].label, mesh));
      const std::string whole = path(fmt::format("whole_{}_{}", m, mesh)), half = whole + "_half";
      const Run run = {.mesh = mesh, .out = whole, .moments = DType::kBF16};
      const std::vector<double> one = losses(train(models()[m], run));
      Run first = run, second = run;
      first.out = second.out = second.from = half;
      first.stop_after = 5;
      train(models()[m], first);
      const Checkpoint saved = open_checkpoint(half);
      EXPECT_EQ(saved.step(), 5);
      int halves = 0;
      for (const ManifestTensor& t : saved.tensors()) {
        const bool moment = t.name.starts_with("adam.") || t.name.starts_with("sgd.");
        EXPECT_EQ(t.type.dtype == DType::kBF16, moment) << t.name;
        halves += moment;
      }
      EXPECT_GT(halves, 10);
      const std::vector<double> rest = losses(train(models()[m], second));
      EXPECT_EQ(rest, std::vector<double>(one.begin() + 5, one.end()));
      EXPECT_EQ(tensors_of(half), tensors_of(whole));
    }
  }
  // A run with moments in f32 does not go on with these, nor the other way round.
  const std::string out = path("types");
  train(models()[0], {.steps = 2, .out = out, .moments = DType::kBF16});
  try {
    train(models()[0], {.from = out});
    FAIL() << "moments of another type were taken";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("adam.m."), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("bf16"), std::string::npos) << e.what();
  }
}

TEST_F(Resuming, IsTheSameToRoundingOnAnyOther) {
  const Model& model = models()[1];
  for (const DType dtype : {DType::kF64, DType::kF32}) {
    const std::string out = path(fmt::format("run_{}", name_of(dtype)));
    const std::vector<double> one =
        losses(train(model, {.mesh = "4", .every = 4, .out = out, .dtype = dtype}));
    for (const char* mesh : {"1", "2", "dp=2", "tp=2", "dp=4", "dp=2,tp=2", "8"}) {
      const std::vector<double> rest =
          losses(train(model, {.mesh = mesh, .from = out + "/step-00000004", .dtype = dtype}));
      ASSERT_EQ(rest.size(), one.size() - 4);
      for (size_t i = 0; i < rest.size(); ++i) {
        EXPECT_NEAR(rest[i], one[i + 4], (dtype == DType::kF64 ? kF64 : kF32) * one[i + 4]) << mesh;
      }
    }
  }
}

// With pipelines and without; tied weights, which two stages read, and dropout.
TEST_F(Resuming, OnOtherStages) {
  const Model& model = models()[1];
  const PipelineShape two{ScheduleKind::kOneForwardOneBackward, 2};
  const std::string out = path("run");
  const std::vector<double> one = losses(train(model, {.mesh = "dp=2",
                                                       .batch = 2,
                                                       .micro_batches = 4,
                                                       .every = 4,
                                                       .out = out,
                                                       .dtype = DType::kF64,
                                                       .pipeline = two}));
  for (const PipelineShape& pipeline :
       {PipelineShape{.stages = 1}, two, PipelineShape{ScheduleKind::kInterleaved, 2, 2},
        PipelineShape{ScheduleKind::kZeroBubble, 4}}) {
    const std::vector<double> rest = losses(train(model, {.mesh = "1",
                                                          .batch = 2,
                                                          .micro_batches = 4,
                                                          .from = out + "/step-00000004",
                                                          .dtype = DType::kF64,
                                                          .pipeline = pipeline}));
    ASSERT_EQ(rest.size(), one.size() - 4);
    for (size_t i = 0; i < rest.size(); ++i) EXPECT_NEAR(rest[i], one[i + 4], kF64 * one[i + 4]);
  }
  // The checkpoint has every tensor once, and no accumulator.
  for (const auto& [name, bytes] : tensors_of(out)) {
    EXPECT_EQ(name.find('@'), std::string::npos) << name;
    EXPECT_EQ(name.find("accumulated"), std::string::npos) << name;
  }
}

TEST_F(Resuming, OnTwoOrThreeOrOneOfFourDevices) {
  const Model& model = models()[0];
  const std::string out = path("run");
  const std::vector<double> one =
      losses(train(model, {.mesh = "4", .batch = 12, .every = 4, .out = out, .by_three = true}));
  double worst = 0;
  for (const char* mesh : {"2", "3", "dp=3", "tp=3", "1"}) {
    const std::vector<double> rest = losses(train(
        model, {.mesh = mesh, .batch = 12, .from = out + "/step-00000004", .by_three = true}));
    ASSERT_EQ(rest.size(), one.size() - 4);
    for (size_t i = 0; i < rest.size(); ++i) {
      EXPECT_NEAR(rest[i], one[i + 4], kF32 * one[i + 4]) << mesh;
      worst = std::max(worst, std::abs(rest[i] / one[i + 4] - 1));
    }
  }
  fmt::print("the largest difference is {:.1e}\n", worst);
}

// The cursor counts sequences: other micro-batches of the same step take the same ones.
TEST_F(Resuming, TakesOtherMicroBatches) {
  const Model& model = models()[0];
  const std::string out = path("run");
  const std::vector<double> one =
      losses(train(model, {.every = 4, .out = out, .dtype = DType::kF64}));
  for (const int64_t micro_batches : {2, 4}) {
    const std::vector<double> rest = losses(train(model, {.mesh = "2",
                                                          .batch = 8 / micro_batches,
                                                          .micro_batches = micro_batches,
                                                          .from = out + "/step-00000004",
                                                          .dtype = DType::kF64}));
    for (size_t i = 0; i < rest.size(); ++i) EXPECT_NEAR(rest[i], one[i + 4], kF64 * one[i + 4]);
  }
}

TEST_F(Resuming, LeavesAnotherFutureAside) {
  const Model& model = models()[0];
  const std::string out = path("run");
  train(model, {.every = 3, .out = out});
  train(model, {.steps = 7, .out = out, .from = out + "/step-00000003"});
  EXPECT_EQ(open_checkpoint(out).step(), 7);
  EXPECT_NE(log_.find("a later checkpoint is set aside"), std::string::npos) << log_;
}

TEST_F(Resuming, RefusesWhatIsNotItsOwn) {
  const std::string out = path("run");
  train(models()[0], {.steps = 2, .out = out});
  const auto error_of = [&](const Model& model, DType dtype) -> std::string {
    try {
      train(model, {.from = out, .dtype = dtype});
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  const std::string other = error_of(models()[2], DType::kF32);
  EXPECT_NE(other.find(out), std::string::npos) << other;
  EXPECT_NE(error_of(models()[0], DType::kF64).find("f64"), std::string::npos);
}

// With limits so low that many steps are above: those and no others are left out.
TEST_F(Resuming, LeavesSpikesOut) {
  const TrainResult r = train(models()[0], {.mesh = "2", .steps = 60, .spikes = 0.3});
  std::vector<double> losses, norms;
  const auto limit = [](const std::vector<double>& x) {
    double sum = 0, squares = 0;
    for (double v : x) sum += v;
    const double n = static_cast<double>(x.size()), mean = sum / n;
    for (double v : x) squares += (v - mean) * (v - mean);
    return mean + 0.3 * std::sqrt(squares / n);
  };
  size_t skipped = 0;
  for (const StepRecord& s : r.steps) {
    const bool judged = losses.size() >= SpikeGuard::kLeast;
    const std::string why = !judged                      ? ""
                            : s.loss > limit(losses)     ? "loss spike"
                            : s.grad_norm > limit(norms) ? "gradient spike"
                                                         : "";
    EXPECT_EQ(s.skipped, why) << s.step;
    skipped += !s.skipped.empty();
    if (s.skipped.empty()) losses.push_back(s.loss), norms.push_back(s.grad_norm);
  }
  EXPECT_GT(skipped, 0u);
  EXPECT_LT(skipped, 28u);
}

TEST(RunStates, RoundTrip) {
  RunState s{.step = 3,
             .samples = 17,
             .seed = 1234567890123456789ull,
             .data = "x",
             .losses = {0.1, 1e-300, 5},
             .norms = {2, 3, 1.0 / 3},
             .job = R"({"model": {"name": "a"}})"};
  const std::string text = to_json_text(s);
  const RunState again = run_state_from(text);
  EXPECT_EQ(again.step, s.step);
  EXPECT_EQ(again.samples, s.samples);
  EXPECT_EQ(again.seed, s.seed);
  EXPECT_EQ(again.data, s.data);
  EXPECT_EQ(again.losses, s.losses);
  EXPECT_EQ(again.norms, s.norms);
  EXPECT_NE(text.find("\"model\""), std::string::npos);
  for (const char* bad : {"", "[]", "{}", "{\"cleave_run\": 2}", "nonsense"}) {
    EXPECT_THROW(run_state_from(bad), Error) << bad;
  }
}

TEST(SpikeGuards, KnowWhatIsUsual) {
  SpikeGuard guard(4);
  for (int i = 0; i < 31; ++i) guard.add(2 + 0.1 * (i % 2), 1);
  EXPECT_EQ(guard.limits().loss, INFINITY);  // too few yet
  for (int i = 0; i < 200; ++i) guard.add(2 + 0.1 * (i % 2), 1);
  EXPECT_EQ(guard.losses().size(), SpikeGuard::kWindow);
  EXPECT_NEAR(guard.limits().loss, 2.05 + 4 * 0.05, 1e-12);
  EXPECT_NEAR(guard.limits().norm, 1, 1e-12);
  SpikeGuard off(0);
  for (int i = 0; i < 100; ++i) off.add(1, 1);
  EXPECT_EQ(off.limits().loss, INFINITY);
}

}  // namespace
}  // namespace cleave
