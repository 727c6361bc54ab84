// What tables say devices send: rows add up to what a device of the busiest stage sends in a step,
// and to what the plan counts, with pipelines and without.
#include <fmt/ranges.h>

#include <map>
#include <set>

#include "cli/format.h"
#include "cli/plan_file.h"
#include "cli/plan_parts.h"
#include "cli/split_rows.h"
#include "cli/syncs.h"
#include "planner/bundles.h"
#include "planner/meetings.h"
#include "tests/cli_answers.h"

namespace cleave {
namespace {

using testing::cleave_run;
using testing::Outcome;

const std::vector<std::string>& lines() {
  static const std::vector<std::string> all = {
      "gpt2:tiny --cluster cpu:4 --batch 16",
      "gpt2:tiny --cluster cpu:4 --batch 16 --pin pp=2 dp=2",
      "gpt2:tiny --cluster cpu:4 --batch 16 --pin pp=4 schedule=1f1b",
      "gpt2:tiny --cluster cpu:4 --batch 16 --pin dp=4 micro=4",
      "gpt2:124m --set layers=4 --cluster 8xh100 --mesh dp=2,tp=4",
      "gpt2:124m --set layers=4 --cluster 8xh100 --batch 32 --pin pp=2 tp=4 micro=8",
      "gpt2:124m --set layers=4 --cluster 8xh100 --batch 32 --pin pp=2 dp=4 zero=3 micro=4",
      "gpt2:124m --set layers=4 --cluster 8xh100 --batch 32 --pin pp=2 tp=2 dp=2 "
      "schedule=interleaved chunks=2 micro=4",
      "llama:8b --set layers=4 --cluster 8xh100 --pin zero=3",
      "llama:8b --set layers=4 --cluster 2x8xh100 --batch 64 --pin pp=2 tp=4 dp=2 recompute=full",
      "llama:8b --set layers=5 --cluster 8xh100 --batch 64 --pin pp=4 tp=2 schedule=zero-bubble",
      "llama:8b --set layers=4 --cluster 8xh100 --pin cp=2",
      "mixtral:tiny --cluster cpu:4 --batch 16",
      "mixtral:tiny --cluster cpu:4 --batch 16 --pin pp=2",
  };
  return all;
}

LoadedPlan loaded(const std::string& path) {
  const std::string text = read_file(path);
  return load_plan(path, text, spec_in_plan_file(path, text), nullptr);
}

// The plans, made once.
const std::vector<LoadedPlan>& plans() {
  static const std::vector<LoadedPlan> all = [] {
    const std::string path =
        (std::filesystem::temp_directory_path() / fmt::format("cleave_sent_{}.json", ::getpid()))
            .string();
    std::vector<LoadedPlan> made;
    for (const std::string& line : lines()) {
      const Outcome o = cleave_run("plan " + line + " -o " + path);
      EXPECT_EQ(o.status, 0) << line << ": " << o.err;
      made.push_back(loaded(path));
    }
    std::filesystem::remove(path);
    return made;
  }();
  return all;
}

// Calls the test with each of the plans.
template <class Test>
void for_each_plan(const Test& test) {
  for (size_t i = 0; i < lines().size(); ++i) {
    SCOPED_TRACE(lines()[i]);
    test(plans()[i].model.graph, plans()[i].plan);
  }
}

void expect_close(double a, double b, const std::string& what) {
  EXPECT_NEAR(a, b, 1e-9 * std::max(std::abs(a), std::abs(b))) << what;
}

TEST(Sent, MeetingsAddUpToWhatThePlanCountsOnEveryStage) {
  for_each_plan([](const Graph& graph, const Plan& plan) {
    struct Sum {
      int64_t count = 0;
      double bytes = 0, seconds = 0;
    };
    std::map<std::string, Sum> met, counted;
    const auto key = [&](int32_t stage, StepKind kind, int32_t axis, Phase phase, bool weights) {
      return fmt::format("stage {}: {} over {}, {}, {}", stage, name_of(kind), axis, name_of(phase),
                         weights ? "weights" : "activations");
    };
    for (const Meeting& m : meetings(graph, plan)) {
      Sum& s = met[key(m.stage, m.step->kind, m.step->axis, m.phase, m.weights)];
      s.count += m.bundled ? 0 : m.times;
      s.bytes += m.bytes, s.seconds += m.seconds;
    }
    const std::vector<int32_t> stages = stages_of_values(graph, plan);
    for (bool made_by_update : {false, true}) {
      for (const Bundle& b : bundles(graph, plan, made_by_update)) {
        const Step& step = step_of(plan, b[0]);
        if (!is_collective(step.kind)) continue;
        const auto& forms = plan.values[static_cast<size_t>(b[0].value)];
        ++met[key(stages[static_cast<size_t>(b[0].value)], step.kind, step.axis,
                  forms[static_cast<size_t>(b[0].form)].phase, true)]
              .count;
      }
    }
    for (const PlannedCollectives& c : plan.collectives) {
      Sum& s = counted[key(c.stage, c.kind, c.axis, c.phase, c.parameters)];
      s.count += c.count, s.bytes += c.bytes, s.seconds += c.seconds;
    }
    for (const auto& [what, sum] : counted) {
      EXPECT_EQ(met[what].count, sum.count) << what;
      expect_close(met[what].bytes, sum.bytes, what);
      expect_close(met[what].seconds, sum.seconds, what);
    }
    EXPECT_EQ(met.size(), counted.size());
  });
}

TEST(Sent, RowsOfThePlansTableAddUpToWhatADeviceSends) {
  int64_t elsewhere = 0;
  for_each_plan([&](const Graph& graph, const Plan& plan) {
    const int32_t stage = busiest_stage(graph, plan).stage;
    std::map<std::pair<int32_t, bool>, double> rows, sent;  // by axis, of weights
    for (const SplitRow& r : split_rows(graph, plan)) {
      for (const After& a : r.after) {
        rows[{r.axis, r.kind == SplitRow::Kind::kWeights}] += a.bytes;
      }
      elsewhere += r.after.empty() && r.meets_elsewhere;
      EXPECT_TRUE(plan.pipeline.stages > 1 || !r.meets_elsewhere) << r.what;
    }
    for (const PlannedCollectives& c : plan.collectives) {
      if (c.stage == stage) sent[{c.axis, c.parameters}] += c.bytes;
    }
    for (const auto& [key, bytes] : sent) {
      expect_close(rows[key], bytes, fmt::format("axis {} {}", key.first, key.second));
    }
    EXPECT_EQ(rows.size(), sent.size());
  });
  EXPECT_GT(elsewhere, 0);
}

TEST(Sent, SynchronizationsAddUpToWhatADeviceSends) {
  for_each_plan([](const Graph& graph, const Plan& plan) {
    const StageTime stage = busiest_stage(graph, plan);
    std::map<std::string, StageTime::Sent> sums;
    for (const Sync& s : syncs_of(graph, plan)) {
      StageTime::Sent& sent = sums[plan.mesh.axes[static_cast<size_t>(s.axis)].name];
      sent.bytes += s.bytes, sent.seconds += s.seconds;
      EXPECT_EQ(s.stage, stage.stage);
      EXPECT_LE(s.places, s.count + (s.bundled ? s.places : 0)) << s.name;
    }
    EXPECT_EQ(sums.size(), stage.axes.size());
    for (const auto& [axis, sent] : stage.axes) {
      expect_close(sums[axis].bytes, sent.bytes, axis);
      expect_close(sums[axis].seconds, sent.seconds, axis);
    }
  });
}

// Of an op that the busiest stage lacks: what it sends where it is.
TEST(Sent, AnOpOfAnotherStageIsShownThere) {
  for_each_plan([](const Graph& graph, const Plan& plan) {
    std::map<int32_t, std::map<NodeId, double>> inside;  // by stage, node
    for (const Meeting& m : meetings(graph, plan)) {
      if (m.node != kNoNode) inside[m.stage][m.node] += m.bytes;
    }
    for (const auto& [stage, nodes] : inside) {
      const NodeId node = nodes.begin()->first;
      const std::vector<Sync> syncs = syncs_of(graph, plan, {node});
      ASSERT_FALSE(syncs.empty());
      double bytes = 0;
      for (const Sync& s : syncs) {
        bytes += s.bytes;
        EXPECT_EQ(s.stage, stage);
      }
      EXPECT_GE(bytes, nodes.begin()->second);
    }
  });
}

// A part of the model is said once in a row, with as many layers as the model has.
TEST(Sent, LayersOfARowAddUp) {
  for_each_plan([](const Graph& graph, const Plan& plan) {
    std::map<std::string, std::set<std::string>> layers;  // by part
    for (size_t n = 0; n < graph.nodes().size(); ++n) {
      const LayerName in = layer_name(graph.scopes()[static_cast<size_t>(graph.nodes()[n].scope)]);
      if (in.number >= 0) layers[in.inside].insert(fmt::format("{}.{}", in.layers, in.number));
    }
    const std::vector<SplitRow> rows = split_rows(graph, plan);
    for (const SplitRow& r : rows) {
      if (r.kind == SplitRow::Kind::kWeights) continue;
      for (const auto& [part, in] : layers) {
        if (part.empty()) continue;
        const size_t first = r.where.find(part + " ×");
        if (first == std::string::npos) continue;
        EXPECT_EQ(r.where.find(part + " ×", first + 1), std::string::npos) << r.where;
      }
      // The row with nearly all of the work has every layer.
      if (r.flops_share < 0.9) continue;
      EXPECT_NE(r.where.find(fmt::format(" ×{}", layers.begin()->second.size())), std::string::npos)
          << r.where;
    }
  });
}

// Gradients that each micro-batch adds to their accumulators in parts are no activations.
TEST(Sent, GradientsOfPipelinesAreWeights) {
  const Outcome o = cleave_run("plan gpt2:tiny --cluster cpu:4 --batch 16 --pin pp=2 dp=2 --json");
  ASSERT_EQ(o.status, 0) << o.err;
  double gradients = 0;
  std::set<int> stages;
  const nlohmann::json plan = nlohmann::json::parse(o.out);
  for (const auto& c : plan["collectives"]) {
    stages.insert(c["stage"].get<int>());
    if (c["kind"] != "reduce-scatter" || c["phase"] != "backward") continue;
    EXPECT_EQ(c["where"], "backward, parameters and gradients");
    gradients += c["bytes"].get<double>();
  }
  EXPECT_GT(gradients, 1e6);
  EXPECT_EQ(stages, (std::set<int>{0, 1}));
}

}  // namespace
}  // namespace cleave
