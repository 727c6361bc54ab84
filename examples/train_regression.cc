// A training loop of one's own, on data that are no tokens: a regression, trained on one device and
// on four through the library. The losses are the same up to rounding.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "executor/cpu_runtime.h"
#include "executor/lower.h"
#include "graph/philox.h"
#include "planner/planner.h"
#include "tracer/nn.h"
#include "tracer/optimizer.h"

using namespace cleave;  // NOLINT(build/namespaces)

namespace {

constexpr int64_t kBatch = 512, kFeatures = 64, kInner = 512;
constexpr int64_t kSteps = 60;

Tensor regression() {
  const Tensor x = data("x", {kBatch, kFeatures}, DType::kF32, {"batch", ""});
  const Tensor y = data("y", {kBatch, 1}, DType::kF32, {"batch", ""});
  const Linear up("up", kFeatures, kInner, true, 0.1), down("down", kInner, 1, true, 0.05);
  return mean(square(down(tanh(up(x))) - y));
}

// A batch depends on the step alone: every mesh sees the same.
void feed(CpuRuntime& runtime, int64_t step) {
  std::vector<float> x, y;
  for (int64_t row = 0; row < kBatch; ++row) {
    float sum = 0;
    for (int64_t i = 0; i < kFeatures; ++i) {
      const int64_t index = (step * kBatch + row) * kFeatures + i;
      const double u = uniform_at(/*seed=*/7, stream_of("x"), static_cast<uint64_t>(index));
      x.push_back(static_cast<float>(2 * u - 1));
      if (i < 3) sum += x.back();
    }
    y.push_back(std::sin(sum));
  }
  runtime.set_data("x", std::as_bytes(std::span<const float>(x)));
  runtime.set_data("y", std::as_bytes(std::span<const float>(y)));
}

std::vector<double> train(const Graph& graph, const std::string& devices, const std::string& mesh) {
  PlannerOptions options;
  options.mesh = parse_mesh(mesh);
  const PlanResult result = find_plan(graph, parse_cluster(devices), options);
  if (!result.plan) return {};
  fmt::print("{}: mesh {}\n", devices, result.plan->mesh.to_string());
  for (const PlannedCollectives& c : result.plan->collectives) {
    fmt::print("  {} x {} along {}, {}\n", c.count, name_of(c.kind),
               result.plan->mesh.axes[static_cast<size_t>(c.axis)].name, name_of(c.phase));
  }
  CpuRuntime runtime(lower(graph, *result.plan), {.seed = 1});
  runtime.initialize();
  std::vector<double> losses;
  for (int64_t step = 0; step < kSteps; ++step) {
    feed(runtime, step);
    losses.push_back(runtime.step().value("loss"));
  }
  return losses;
}

}  // namespace

int main() {
  OptimizerOptions optimizer;
  optimizer.lr = 0.02;
  optimizer.min_lr = 0.002;
  optimizer.warmup = 5;
  optimizer.total_steps = kSteps;
  const Graph graph = trace_training_step("regression", regression, optimizer);
  const std::vector<double> one = train(graph, "cpu:1", "1"),
                            four = train(graph, "cpu:4", "dp=2,tp=2");

  double largest = 0;
  for (size_t i = 0; i < one.size(); ++i) largest = std::max(largest, std::abs(one[i] - four[i]));
  for (size_t step : {0UL, 20UL, 59UL}) fmt::print("step {:3}: loss {:.2f}\n", step + 1, one[step]);
  fmt::print("one device and four differ by less than 1e-4: {}\n", largest < 1e-4);
  return largest < 1e-4 ? 0 : 1;
}
