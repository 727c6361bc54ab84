// Context parallelism: the sequence split over devices, the keys and values of attention gathered
// or passed round a ring; trained like one device.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/training_plans.h"

namespace cleave {
namespace {

using testing::config_for;
using testing::models;

enum class Form { kGathered, kRing };

bool uses(const std::vector<AxisOption>& choice, AxisOption::Kind kind) {
  return std::any_of(choice.begin(), choice.end(),
                     [&](const AxisOption& o) { return o.kind == kind; });
}

// A plan in which every attention along the sequence is of this form.
Plan plan_for(const Graph& graph, const std::string& mesh, Form form,
              std::optional<uint64_t> seed = {}) {
  PlannerOptions options;
  options.mesh = parse_mesh(mesh);
  options.space.max_axes = options.mesh.sizes.size();
  const Preferences random = seed ? testing::random_preferences(graph, *seed) : Preferences{};
  options.preferences.choice = [&, random](NodeId leader, const std::vector<AxisOption>& choice) {
    double cost = random.choice ? random.choice(leader, choice) : 0;
    if (graph.node(leader).op->merge == nullptr) return cost;
    const bool ring = uses(choice, AxisOption::Kind::kRing);
    if (ring != (form == Form::kRing)) cost += 1e3;
    return cost;
  };
  if (seed) options.preferences.held = random.held;
  int64_t devices = 1;
  for (int64_t size : options.mesh.sizes) devices *= size;
  auto found = find_plan(graph, parse_cluster(fmt::format("cpu:{}", devices)), options);
  if (!found.plan) throw InternalError("no plan");
  return std::move(*found.plan);
}

int64_t count(const Plan& plan, StepKind kind, Phase phase) {
  int64_t n = 0;
  for (const PlannedCollectives& c : plan.collectives) {
    if (c.kind == kind && c.phase == phase) n += c.count;
  }
  return n;
}

class Context : public ::testing::TestWithParam<size_t> {};

TEST_P(Context, TrainsLikeOneDevice) {
  double worst = 0;
  int plans = 0;
  for (int devices : {2, 4}) {
    const ModelConfig config = config_for(models()[GetParam()], devices);
    const Graph graph = testing::training_graph(config, DType::kF64);
    const testing::Curve one = testing::on_one_device(graph, config);
    std::vector<std::string> meshes = {fmt::format("cp={}", devices)};
    if (devices == 4) meshes.insert(meshes.end(), {"dp=2,cp=2", "cp=2,tp=2", "2x2"});
    for (const std::string& mesh : meshes) {
      for (Form form : {Form::kGathered, Form::kRing}) {
        if (form == Form::kRing && mesh == "2x2") continue;  // rings are for axes of that role
        for (int s = 0; s < 2; ++s) {
          SCOPED_TRACE(fmt::format("{} {} {}", mesh, form == Form::kRing ? "ring" : "gathered", s));
          std::optional<uint64_t> seed;
          if (s > 0) seed = 17 * GetParam() + static_cast<uint64_t>(devices);
          const Plan plan = plan_for(graph, mesh, form, seed);
          const bool ring = form == Form::kRing;
          EXPECT_EQ(count(plan, StepKind::kShift, Phase::kForward) > 0, ring);
          if (ring && mesh[0] == 'c' && devices == 4 && mesh == "cp=4") {
            // Two layers: keys and values together 3 times; their gradients 4 times besides.
            EXPECT_EQ(count(plan, StepKind::kShift, Phase::kForward), 2 * 3);
            EXPECT_EQ(count(plan, StepKind::kShift, Phase::kBackward), 2 * (3 + 4));
          }
          const double d = testing::distance(testing::run(lower(graph, plan), config, &plan), one);
          EXPECT_LE(d, testing::kF64);
          worst = std::max(worst, d);
          ++plans;
        }
      }
    }
  }
  fmt::print("{} plans, the worst differs by {:.1e}\n", plans, worst);
}

INSTANTIATE_TEST_SUITE_P(Models, Context, ::testing::Range<size_t>(0, 5),
                         [](const auto& i) { return std::string(models()[i.param].label); });

}  // namespace
}  // namespace cleave
