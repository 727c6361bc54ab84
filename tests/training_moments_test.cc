// Training with the optimizer's moments in bf16: beside those in f32, on any mesh, with any number
// of threads, in as much memory as was predicted.
#include <gtest/gtest.h>

#include <cstring>

#include "graph/half.h"
#include "planner/planner.h"
#include "tests/training_pipeline.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT
using Kind = OptimizerOptions::Kind;

Graph graph_of(const ModelConfig& config, DType dtype, std::optional<DType> moments, Kind kind,
               double beta2 = 0.95) {
  TraceOptions options;
  options.dtype = dtype;
  options.optimizer = {.kind = kind,
                       .lr = kind == Kind::kSgd ? 0.02 : 3e-3,
                       .min_lr = 3e-4,
                       .warmup = 5,
                       .total_steps = 150,
                       .beta2 = beta2,
                       .moments = moments};
  return trace(config, options);
}

bool is_moment(const std::string& name) {
  return name.starts_with("adam.") || name.starts_with("sgd.");
}

struct Trained {
  std::vector<double> loss;
  std::map<std::string, std::vector<std::byte>> moments;
  int64_t bytes = 0;  // of the arenas, as allocated
};

Trained train(const Graph& graph, const Plan& plan, const ModelConfig& config, int steps,
              RunOptions options = {.seed = 42, .compare_ranks = true}) {
  CpuRuntime runtime(lower(graph, plan), options);
  runtime.initialize();
  Trained result;
  for (int step = 0; step < steps; ++step) {
    feed(runtime, config, step);
    result.loss.push_back(runtime.step().value("loss"));
  }
  for (const ProgramSource& s : runtime.program().sources) {
    if (is_moment(s.name)) result.moments[s.name] = runtime.read_source(s.name);
  }
  result.bytes = runtime.allocated_bytes();
  return result;
}

constexpr Kind kKinds[] = {Kind::kAdamW, Kind::kSgd};

// 150 steps of a small GPT. The mean of the losses of ten steps, which is less noise than each,
// stays within 0.1 % of that with wide moments; so it does with beta2 = 0.999, whose second moment
// would hardly move if it were rounded to the nearest (kernels_moments_test).
TEST(TrainingMoments, FollowTheCurveOfWideOnes) {
  const ModelConfig config = config_for(models()[0], 1);
  for (const auto& [kind, beta2] :
       {std::pair{Kind::kAdamW, 0.95}, {Kind::kAdamW, 0.999}, {Kind::kSgd, 0.0}}) {
    const auto losses = [&, k = kind, b = beta2](std::optional<DType> moments) {
      const Graph graph = graph_of(config, DType::kF32, moments, k, b);
      return train(graph, plan_for(graph, "1", {}), config, 150).loss;
    };
    const std::vector<double> wide = losses({}), half = losses(DType::kBF16);
    ASSERT_LT(wide.back(), wide.front() - 0.4);
    EXPECT_NE(half, wide);
    double worst = 0;
    for (size_t i = 0; i + 10 <= wide.size(); i += 10) {
      double a = 0, b = 0;
      for (size_t j = i; j < i + 10; ++j) a += half[j], b += wide[j];
      worst = std::max(worst, std::abs(a / b - 1));
    }
    EXPECT_LT(worst, 1e-3);
    fmt::print("{}, beta2 {}: ten steps' losses differ by {:.2e} at most, from {:.3f} to {:.3f}\n",
               kind == Kind::kSgd ? "SGD" : "AdamW", beta2, worst, wide.front(), wide.back());
  }
}

// To the bit; but for those of which double holds no digit: the gradients of some biases are zero
// but for rounding.
void expect_equal_moments(const Trained& a, const Trained& b, const char* mesh) {
  ASSERT_EQ(a.moments.size(), b.moments.size());
  int64_t compared = 0, noise = 0;
  for (const auto& [name, bytes] : a.moments) {
    const auto& others = b.moments.at(name);
    ASSERT_EQ(bytes.size(), others.size());
    for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
      uint16_t x = 0, y = 0;
      std::memcpy(&x, &bytes[i], 2);
      std::memcpy(&y, &others[i], 2);
      ++compared;
      if (x == y) continue;
      const double largest = std::max(std::abs(bf16_number(x)), std::abs(bf16_number(y)));
      ++noise;
      EXPECT_LT(largest, 1e-15) << mesh << ": element " << i / 2 << " of " << name;
    }
  }
  EXPECT_LT(noise, compared / 50);
}

// In double, where the gradients of two meshes differ by some 1e-16, the moments are the same to
// the bit: each element has the random numbers of its place in the whole parameter.
TEST(TrainingMoments, AreTheSameOnAnyMesh) {
  const ModelConfig config = config_for(models()[0], 4);
  for (const Kind kind : kKinds) {
    const Graph graph = graph_of(config, DType::kF64, DType::kBF16, kind);
    const Trained one = train(graph, plan_for(graph, "1", {}), config, 8);
    ASSERT_GT(one.moments.size(), 10u);
    std::set<uint64_t> seen;
    for (const char* mesh : {"4", "dp=4", "tp=4", "dp=2,tp=2", "2x2"}) {
      for (const std::optional<uint64_t> seed : {std::optional<uint64_t>{}, {3}}) {
        const Plan plan = plan_for(graph, mesh, seed);
        seen.insert(fingerprint(plan));
        const Trained many = train(graph, plan, config, 8);
        expect_equal_moments(many, one, mesh);
        for (size_t i = 0; i < one.loss.size(); ++i) {
          EXPECT_NEAR(many.loss[i], one.loss[i], kF64 * one.loss[i]) << mesh;
        }
      }
    }
    EXPECT_GT(seen.size(), 5u);
  }
}

TEST(TrainingMoments, AreTheSameWithAnyNumberOfThreads) {
  const ModelConfig config = config_for(models()[3], 1);
  for (const Kind kind : kKinds) {
    const Graph graph = graph_of(config, DType::kF32, DType::kBF16, kind);
    const Plan plan = plan_for(graph, "1", {});
    const Trained one = train(graph, plan, config, 5, {.seed = 42, .threads = 1});
    const Trained three = train(graph, plan, config, 5, {.seed = 42, .threads = 3});
    EXPECT_EQ(three.loss, one.loss);
    EXPECT_EQ(three.moments, one.moments);
  }
}

// What a plan promises is what is allocated, and less than with wide moments by half of those.
TEST(TrainingMoments, TakeThePredictedMemory) {
  const ModelConfig config = config_for(models()[0], 4);
  for (const char* mesh : {"1", "dp=4", "dp=2,tp=2"}) {
    int64_t peaks[2];
    int64_t of_moments[2] = {0, 0};
    for (const bool half : {false, true}) {
      const Graph graph = graph_of(config, DType::kF32,
                                   half ? std::optional(DType::kBF16) : std::nullopt, Kind::kAdamW);
      PlannerOptions options;
      options.mesh = parse_mesh(mesh);
      options.peak_bytes = stage_peak_bytes;
      const int64_t devices = std::string(mesh) == "1" ? 1 : 4;
      auto found = find_plan(graph, parse_cluster(fmt::format("cpu:{}", devices)), options);
      ASSERT_TRUE(found.plan.has_value());
      const Plan& plan = *found.plan;
      const Trained trained = train(graph, plan, config, 1);
      EXPECT_EQ(trained.bytes, plan.predicted.peak_bytes) << mesh;
      peaks[half] = plan.predicted.peak_bytes;
      const Program program = lower(graph, plan);
      for (const ProgramSource& s : program.sources) {
        if (!is_moment(s.name)) continue;
        const ProgramTensor& t = program.tensor(s.tensor);
        of_moments[half] += numel(t.geometry.shape) * size_of(t.dtype);
        EXPECT_EQ(t.dtype, half ? DType::kBF16 : DType::kF32) << s.name;
      }
    }
    if (std::string(mesh) == "1") {
      EXPECT_EQ(of_moments[1] * 2, of_moments[0]);
      // Small tensors are rounded up to where the next one may begin.
      const auto saved = static_cast<double>(peaks[0] - peaks[1]);
      EXPECT_NEAR(saved, static_cast<double>(of_moments[1]), 0.02 * saved);
    }
    EXPECT_LT(peaks[1], peaks[0]);
  }
}

// The planner knows nothing of it but types: what is split how, and folded, is the same.
TEST(TrainingMoments, ArePlannedLikeWideOnes) {
  ModelConfig config = model_named("gpt2:355m");
  config.batch = 16;
  const auto plan_of = [&](std::optional<DType> moments) {
    TraceOptions options;
    options.dtype = DType::kBF16;
    options.optimizer.moments = moments;
    PlannerOptions planner;
    planner.mesh = parse_mesh("dp=2,tp=4");
    auto found = find_plan(trace(config, options), parse_cluster("8xh100"), planner);
    if (!found.plan) throw InternalError("no plan");
    return std::move(*found.plan);
  };
  const Plan wide = plan_of({}), half = plan_of(DType::kBF16);
  ASSERT_EQ(half.collectives.size(), wide.collectives.size());
  for (size_t i = 0; i < half.collectives.size(); ++i) {
    EXPECT_EQ(half.collectives[i].count, wide.collectives[i].count);
    EXPECT_EQ(half.collectives[i].bytes, wide.collectives[i].bytes);
  }
  EXPECT_LT(half.predicted.compute_seconds, wide.predicted.compute_seconds);
  // Parameters in f32 and two moments: 12 bytes of each, or 8.
  EXPECT_NEAR(static_cast<double>(half.predicted.state_bytes) /
                  static_cast<double>(wide.predicted.state_bytes),
              8.0 / 12, 0.01);
  EXPECT_LT(half.predicted.peak_bytes, wide.predicted.peak_bytes);
}

}  // namespace
}  // namespace cleave
