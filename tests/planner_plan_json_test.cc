// A plan written as JSON and made again: the same choices, forms, collectives and costs; and what
// is refused.
#include "planner/plan_json.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "executor/lower.h"
#include "graph/error.h"
#include "models/trace.h"
#include "tests/support/random_graph.h"

namespace cleave {
namespace {

using Json = nlohmann::ordered_json;

Graph step_of(const char* model, int64_t layers = 2) {
  ModelConfig config = model_named(model);
  config.layers = layers;
  config.batch = 8;
  return trace(config);
}

PlannerOptions on_mesh(const std::string& mesh) {
  PlannerOptions options;
  if (!mesh.empty()) options.mesh = parse_mesh(mesh);
  return options;
}

Plan found(const Graph& graph, const char* cluster, const PlannerOptions& options) {
  PlanResult result = find_plan(graph, parse_cluster(cluster), options);
  if (!result.plan) throw std::runtime_error("no plan");
  return std::move(*result.plan);
}

// Through text, as a file goes.
Plan made_again(const Graph& graph, const Plan& plan, const PlannerOptions& options = {}) {
  return plan_from_json(Json::parse(plan_to_json(graph, plan).dump(2)), graph, options);
}

void expect_same_step(const Step& a, const Step& b) {
  EXPECT_EQ(a.kind, b.kind);
  EXPECT_EQ(a.axis, b.axis);
  EXPECT_EQ(a.to, b.to);
  EXPECT_EQ(a.bytes, b.bytes);
  EXPECT_EQ(a.seconds, b.seconds);
}

void expect_same_forms(const Plan& a, const Plan& b) {
  for (size_t n = 0; n < a.nodes.size(); ++n) {
    EXPECT_EQ(a.nodes[n].axes, b.nodes[n].axes) << "node " << n;
    EXPECT_EQ(a.nodes[n].input_forms, b.nodes[n].input_forms) << "node " << n;
    EXPECT_EQ(a.nodes[n].seconds, b.nodes[n].seconds);
    EXPECT_EQ(a.nodes[n].inner.size(), b.nodes[n].inner.size());
  }
  for (size_t v = 0; v < a.values.size(); ++v) {
    ASSERT_EQ(a.values[v].size(), b.values[v].size()) << "value " << v;
    for (size_t f = 0; f < a.values[v].size(); ++f) {
      const Form &x = a.values[v][f], &y = b.values[v][f];
      EXPECT_EQ(x.placements, y.placements);
      EXPECT_EQ(x.from, y.from);
      EXPECT_EQ(x.phase, y.phase);
      EXPECT_EQ(x.bundled, y.bundled);
      ASSERT_EQ(x.steps.size(), y.steps.size());
      for (size_t s = 0; s < x.steps.size(); ++s) expect_same_step(x.steps[s], y.steps[s]);
    }
  }
  EXPECT_EQ(a.final_form, b.final_form);
  EXPECT_EQ(a.output_form, b.output_form);
}

void expect_same_costs(const Plan& a, const Plan& b) {
  ASSERT_EQ(a.collectives.size(), b.collectives.size());
  for (size_t c = 0; c < a.collectives.size(); ++c) {
    const PlannedCollectives &x = a.collectives[c], &y = b.collectives[c];
    EXPECT_EQ(x.kind, y.kind);
    EXPECT_EQ(x.axis, y.axis);
    EXPECT_EQ(x.phase, y.phase);
    EXPECT_EQ(x.parameters, y.parameters);
    EXPECT_EQ(x.count, y.count);
    EXPECT_EQ(x.bytes, y.bytes);
    EXPECT_EQ(x.seconds, y.seconds);
  }
  const Prediction &p = a.predicted, &q = b.predicted;
  EXPECT_EQ(p.step_seconds, q.step_seconds);
  EXPECT_EQ(p.compute_seconds, q.compute_seconds);
  EXPECT_EQ(p.communication_seconds, q.communication_seconds);
  EXPECT_EQ(p.tokens_per_second, q.tokens_per_second);
  EXPECT_EQ(p.mfu_full, q.mfu_full);
  EXPECT_EQ(p.mfu_causal, q.mfu_causal);
  EXPECT_EQ(p.peak_bytes, q.peak_bytes);
  EXPECT_EQ(p.state_bytes, q.state_bytes);
  EXPECT_EQ(p.held_bytes, q.held_bytes);
  EXPECT_EQ(a.certificate.cost, b.certificate.cost);
  EXPECT_EQ(a.certificate.lower_bound, b.certificate.lower_bound);
}

void expect_same(const Plan& a, const Plan& b) {
  ASSERT_EQ(a.mesh.axes.size(), b.mesh.axes.size());
  for (size_t i = 0; i < a.mesh.axes.size(); ++i) {
    EXPECT_EQ(a.mesh.axes[i].name, b.mesh.axes[i].name);
    EXPECT_EQ(a.mesh.axes[i].size, b.mesh.axes[i].size);
  }
  EXPECT_EQ(a.roles, b.roles);
  EXPECT_EQ(a.cluster.spec, b.cluster.spec);
  EXPECT_EQ(a.choices, b.choices);
  EXPECT_EQ(a.held, b.held);
  EXPECT_EQ(a.zero, b.zero);
  EXPECT_EQ(a.kept, b.kept);
  EXPECT_EQ(a.regathered, b.regathered);
  EXPECT_EQ(a.costing.prices[0].low, b.costing.prices[0].low);
  EXPECT_EQ(a.costing.prices[0].high, b.costing.prices[0].high);
  EXPECT_EQ(a.costing.prices[0].split, b.costing.prices[0].split);
  expect_same_forms(a, b);
  expect_same_costs(a, b);
}

TEST(PlanJson, RoundTrip) {
  for (const char* model : {"gpt2:tiny", "llama:tiny", "bert:base", "mlp:tiny"}) {
    const Graph graph = step_of(model);
    for (const char* mesh : {"", "2x2", "dp=2,tp=2", "tp=4", "4"}) {
      SCOPED_TRACE(fmt::format("{} on {}", model, mesh));
      PlannerOptions options = on_mesh(mesh);
      options.live_bytes = stage_live_bytes;
      options.peak_bytes = stage_peak_bytes;
      const Plan plan = found(graph, "cpu:4", options);
      expect_same(plan, made_again(graph, plan, options));
    }
  }
}

TEST(PlanJson, SecondTimeIsTheSameText) {
  const Graph graph = step_of("llama:tiny");
  const Plan plan = found(graph, "2x2xh100", {});
  Json first = plan_to_json(graph, plan), second = plan_to_json(graph, made_again(graph, plan));
  first.erase("search");
  second.erase("search");
  EXPECT_EQ(first.dump(2), second.dump(2));
}

// A memory limit under which some layers keep what others gather again.
TEST(PlanJson, RoundTripOfAMixedPlan) {
  const Graph graph = step_of("gpt2:tiny", 6);
  PlannerOptions options = on_mesh("tp=4");
  options.memory_limit = std::numeric_limits<double>::infinity();
  const double most = static_cast<double>(found(graph, "cpu:4", options).predicted.held_bytes);
  int mixed = 0;
  for (double share = 0.98; share > 0.5; share -= 0.02) {
    options.memory_limit = share * most;
    PlanResult result = find_plan(graph, parse_cluster("cpu:4"), options);
    if (!result.plan) break;
    mixed += result.plan->costing.prices[0].split > 0;
    SCOPED_TRACE(fmt::format("limit {}, split {}", share, result.plan->costing.prices[0].split));
    expect_same(*result.plan, made_again(graph, *result.plan, options));
  }
  EXPECT_GT(mixed, 0) << "no limit made layers differ";
}

// Whatever is chosen in graphs of all kinds is chosen again, and costs the same.
TEST(PlanJson, RandomGraphs) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937 random(seed);
    testing::RandomGraphOptions options;
    options.ops = 3 + static_cast<int>(random() % 5);
    options.training = random() % 2 == 0;
    const Graph graph = testing::random_model_graph(random, options);
    const Plan plan = found(graph, random() % 2 == 0 ? "cpu:4" : "2x2xcpu", {});
    const Plan again = made_again(graph, plan);
    EXPECT_EQ(plan.choices, again.choices);
    EXPECT_EQ(plan.held, again.held);
    EXPECT_NEAR(plan.certificate.cost, again.certificate.cost, 1e-12 * plan.certificate.cost);
    EXPECT_EQ(plan.predicted.peak_bytes, again.predicted.peak_bytes);
  }
}

// --- What is refused -----------------------------------------------------------------------------

// The message of the one-line Error.
std::string refusal(const Json& json, const Graph& graph) {
  try {
    plan_from_json(json, graph, {});
  } catch (const Error& e) {
    const std::string what = e.what();
    EXPECT_EQ(what.find('\n'), std::string::npos) << what;
    EXPECT_LT(what.size(), 300u) << what;
    return what;
  }
  return "accepted";
}

class PlanJsonRefuses : public ::testing::Test {
 protected:
  const Graph graph = step_of("mlp:tiny");
  const Json json = plan_to_json(graph, found(graph, "cpu:4", on_mesh("2x2")));

  void expect(const Json& changed, const std::string& part) const {
    EXPECT_NE(refusal(changed, graph).find(part), std::string::npos)
        << "'" << refusal(changed, graph) << "' should say '" << part << "'";
  }
};

TEST_F(PlanJsonRefuses, AnotherGraph) {
  EXPECT_EQ(refusal(json, graph), "accepted");
  EXPECT_NE(refusal(json, step_of("mlp:tiny", 3)).find("another graph"), std::string::npos);
  ModelConfig larger = model_named("mlp:tiny");
  larger.layers = 2;
  larger.batch = 16;
  EXPECT_NE(graph_hash(trace(larger)), graph_hash(graph));
  EXPECT_EQ(graph_hash(step_of("mlp:tiny")), graph_hash(graph));
}

TEST_F(PlanJsonRefuses, WhatIsNotAPlan) {
  expect(Json::array(), "not a plan");
  expect(Json("text"), "not a plan");
  expect(Json::object(), "not a plan");
  expect(Json{{"format", 7}}, "not a plan");
  expect(Json{{"format", "cleave-graph"}}, "not a plan");
}

TEST_F(PlanJsonRefuses, OtherVersions) {
  for (int version : {0, 2, -1}) {
    Json j = json;
    j["version"] = version;
    expect(j, fmt::format("version {}", version));
  }
}

TEST_F(PlanJsonRefuses, MissingAndMistypedFields) {
  for (const char* name : {"version", "graph", "cluster", "mesh", "choices"}) {
    Json j = json;
    j.erase(name);
    expect(j, name);
    for (const Json& wrong : {Json(), Json("x"), Json::array({1}), Json(2)}) {
      j[name] = wrong;
      EXPECT_NE(refusal(j, graph), "accepted") << name << " = " << wrong.dump();
    }
  }
  for (const char* name : {"roles", "costing", "nodes", "held"}) {
    Json j = json;
    j["choices"].erase(name);
    EXPECT_NE(refusal(j, graph), "accepted") << name;
    for (const Json& wrong : {Json(), Json("x"), Json(7), Json(true), Json::array({Json("a")}),
                              Json::array({Json::array({"x", 1})})}) {
      j["choices"][name] = wrong;
      EXPECT_NE(refusal(j, graph), "accepted") << name << " = " << wrong.dump();
    }
  }
  Json j = json;
  j["graph"].erase("hash");
  expect(j, "hash");
}

TEST_F(PlanJsonRefuses, MeshesThatDoNotFit) {
  const auto with_mesh = [&](const Json& mesh) {
    Json j = json;
    j["mesh"] = mesh;
    return j;
  };
  expect(with_mesh({{"dp", 4}}), "roles");
  expect(with_mesh({{"dp", 2}, {"tp", 4}}), "8 devices");
  expect(with_mesh({{"dp", 2}, {"tp", "2"}}), "tp");
  expect(with_mesh({{"dp", -2}, {"tp", -2}}), "dp");
  expect(with_mesh({{"dp", 2}, {"tp", 2.5}}), "tp");
  expect(with_mesh({{"dp", int64_t{1} << 62}, {"tp", 8}}), "devices");
  Json j = json;
  j["cluster"] = "4xabacus";
  expect(j, "unknown cluster");
}

TEST_F(PlanJsonRefuses, ChoicesThatTheGraphDoesNotHave) {
  Json j = json;
  j["choices"]["nodes"][0][1] = "z9 -";
  expect(j, "choices");
  j = json;
  j["choices"]["nodes"].erase(j["choices"]["nodes"].begin());
  expect(j, "choices");
  j = json;
  j["choices"]["held"][0][1] = "s77 r";
  expect(j, "choices");
  for (const Json& price : {Json::array({1, 2}), Json::array({-1.0, -1.0, 0}),
                            Json::array({0.0, 0.0, 0.5}), Json::array({0.0, 0.0, -3})}) {
    j = json;
    j["choices"]["costing"][0]["price"] = price;
    EXPECT_NE(refusal(j, graph), "accepted") << price.dump();
  }
  j = json;
  j["choices"]["costing"].push_back(j["choices"]["costing"][0]);
  expect(j, "chunks");
  for (const Json& nodes : {Json::array({1'000'000}), Json::array({-1}), Json("all")}) {
    for (const char* list : {"remade", "cuts"}) {
      j = json;
      j["rewrite"][list] = nodes;
      EXPECT_THROW(rewrite_in_plan(j, graph), Error) << list << " = " << nodes.dump();
    }
  }
  j = json;
  j["pipeline"]["stages"] = 2;
  EXPECT_THROW(rewrite_in_plan(j, graph), Error);
  j = json;
  j["choices"]["roles"] = {"any", "pp"};
  expect(j, "pp");
}

}  // namespace
}  // namespace cleave
