// Pins: read, refused, matched against a graph, and kept by the search.
#include "planner/pins.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "graph/error.h"
#include "models/trace.h"
#include "planner/pin_preferences.h"
#include "planner/planner.h"

namespace cleave {
namespace {

Pins pins_of(const std::vector<std::string>& texts) { return parse_pins(texts, "--pin"); }

std::string mistake(const auto& run) {
  try {
    run();
  } catch (const Error& e) {
    return e.what();
  }
  return "none";
}

Graph gpt(int64_t layers = 3) {
  ModelConfig config = model_named("gpt2:tiny");
  config.layers = layers;
  config.batch = 8;
  return trace(config);
}

TEST(Pins, AreRead) {
  const Pins p = pins_of({"dp=2", "tp=4", "pp=4", "chunks=2", "schedule=interleaved", "micro=8",
                          "zero=1", "recompute=selective", "offload=off", "h.*.mlp=recompute",
                          "h.1=stage 2", "h.2=cut", "h.0.attn=keep", "wte.weight:tp=shard(0)",
                          "h.*.attn.qkv.weight:a1=shard(0.2)", "**.add:dp=replicate"});
  ASSERT_EQ(p.axes.size(), 2u);
  EXPECT_EQ(p.axes[0].role, AxisRole::kData);
  EXPECT_EQ(p.axes[0].size, 2);
  EXPECT_EQ(p.axes[1].role, AxisRole::kInner);
  EXPECT_EQ(p.stages, 4);
  EXPECT_EQ(p.chunks, 2);
  EXPECT_EQ(p.schedule, ScheduleKind::kInterleaved);
  EXPECT_EQ(p.micro_batches, 8);
  EXPECT_EQ(p.zero, 1);
  EXPECT_EQ(p.recompute, Recompute::kSelective);
  EXPECT_EQ(p.offload, false);
  ASSERT_EQ(p.nodes.size(), 4u);
  EXPECT_EQ(p.nodes[0].kind, NodePin::Kind::kRemake);
  EXPECT_EQ(p.nodes[1].kind, NodePin::Kind::kStage);
  EXPECT_EQ(p.nodes[1].stage, 2);
  EXPECT_EQ(p.nodes[2].kind, NodePin::Kind::kCut);
  EXPECT_EQ(p.nodes[3].kind, NodePin::Kind::kKeep);
  ASSERT_EQ(p.placements.size(), 3u);
  EXPECT_EQ(p.placements[0].dim, 0);
  EXPECT_EQ(p.placements[0].part, -1);
  EXPECT_EQ(p.placements[1].part, 2);
  EXPECT_EQ(p.placements[1].axis, "a1");
  EXPECT_EQ(p.placements[2].kind, Placement::Kind::kReplicate);
  EXPECT_EQ(p.texts.size(), 16u);
}

TEST(Pins, MistakesAreOneLineThatSaysWhat) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> rows = {
      {{"tp"}, "--pin 'tp': write KEY=VALUE"},
      {{"=4"}, "something must stand before"},
      {{"tp=0"}, "--pin 'tp=0': '0' is not a whole number from 1"},
      {{"tp=two"}, "'two' is not a whole number"},
      {{"pp=-1"}, "'-1' is not a whole number"},
      {{"zero=4"}, "'4' is not a whole number from 0 to 3"},
      {{"qp=4"}, "'qp' is nothing to pin; there are dp, tp, cp, ep, pp"},
      {{"schedule=gpipe"}, "write 1f1b, interleaved or zero-bubble"},
      {{"recompute=some"}, "write none, selective or full"},
      {{"offload=maybe"}, "write on or off"},
      {{"h.*.mlp=again"}, "'again' is no value; write recompute, keep, cut or 'stage N'"},
      {{"h.1=stage x"}, "stages are counted from 0"},
      {{"h.1=stage -1"}, "stages are counted from 0"},
      {{":tp=shard(0)"}, "a pattern must stand before the ':'"},
      {{"wte:xp=shard(0)"}, "'xp' is no axis"},
      {{"wte:any=shard(0)"}, "'any' is no axis"},
      {{"wte:tp=shard"}, "'shard' is no placement; write replicate, partial, or shard(D)"},
      {{"wte:tp=shard(x)"}, "'shard(x)' is no placement"},
      {{"wte:tp=shard(-1)"}, "is no placement"},
      {{"tp=2", "tp=4"}, "--pin 'tp=2' and 'tp=4' contradict each other"},
      {{"pp=2", "stages=4"}, "--pin 'pp=2' and 'stages=4' contradict each other"},
      {{"zero=3", "dp=1"}, "--pin zero=3: dp=1 leaves nothing over which states would be in parts"},
      {{"pp=1", "chunks=2"}, "a model on one stage is not cut"},
      {{"chunks=2", "schedule=1f1b"}, "only schedule=interleaved"},
      {{"pp=2", "h.1=stage 2"}, "there are 2 stages, counted from 0"},
  };
  for (const auto& row : rows) {
    const std::string what = mistake([&] { pins_of(row.first); });
    EXPECT_NE(what.find(row.second), std::string::npos) << row.first[0] << ": " << what;
    EXPECT_EQ(what.find('\n'), std::string::npos);
  }
}

TEST(Pins, Patterns) {
  EXPECT_TRUE(matches("h.*.mlp", "h.3.mlp"));
  EXPECT_FALSE(matches("h.*.mlp", "h.3.mlp.fc"));
  EXPECT_FALSE(matches("h.*", "h.3.mlp"));
  EXPECT_TRUE(matches("h.**", "h.3.mlp"));
  EXPECT_TRUE(matches("**.fc", "h.3.mlp.fc"));
  EXPECT_TRUE(matches("h.1*.mlp", "h.12.mlp"));
  EXPECT_FALSE(matches("h.1*.mlp", "h.2.mlp"));
  EXPECT_TRUE(matches("h.*.mlp", "h.3.mlp.fc", true));
  EXPECT_FALSE(matches("h.*.ml", "h.3.mlp.fc", true));
  EXPECT_TRUE(matches("**", "", true));
}

TEST(Pins, NameOpsOfTheForward) {
  const Graph g = gpt();
  const NodePins none = node_pins({}, g);
  EXPECT_TRUE(none.cuts.empty());
  EXPECT_EQ(std::count(none.remade.begin(), none.remade.end(), -1), std::ssize(g.nodes()));
  const NodePins p = node_pins(pins_of({"h.0.mlp=recompute", "h.2.mlp=recompute", "h.1.mlp=keep",
                                        "h.2=stage 1", "h.*=cut", "ln_f=cut"}),
                               g);
  size_t remade = 0, kept = 0, second = 0;
  for (size_t n = 0; n < g.nodes().size(); ++n) {
    const std::string name = pin_name(g, static_cast<NodeId>(n));
    const bool forward = g.nodes()[n].phase == Phase::kForward;
    const bool mlp = forward && name.find(".mlp.") != std::string::npos;
    const bool first = name.starts_with("h.1.");
    EXPECT_EQ(p.remade[n], mlp ? (first ? 0 : 1) : -1) << name;
    EXPECT_EQ(p.stage_of[n], forward && name.starts_with("h.2.") ? 1 : -1) << name;
    remade += p.remade[n] == 1, kept += p.remade[n] == 0, second += p.stage_of[n] == 1;
  }
  EXPECT_GT(remade, kept);
  EXPECT_GT(kept, 0u);
  EXPECT_GT(second, 0u);
  // A cut a layer, and one before the last norm: where each begins.
  ASSERT_EQ(p.cuts.size(), 4u);
  for (size_t c = 0; c < 4; ++c) {
    const std::string begins = c < 3 ? fmt::format("h.{}.", c) : "ln_f.";
    EXPECT_TRUE(pin_name(g, p.cuts[c]).starts_with(begins)) << pin_name(g, p.cuts[c]);
    EXPECT_FALSE(pin_name(g, p.cuts[c] - 1).starts_with(begins));
  }
  EXPECT_NE(mistake([&] {
              node_pins(pins_of({"h.7=cut"}), g);
            }).find("--pin 'h.7=cut': no op of the forward is called h.7"),
            std::string::npos);
}

TEST(Pins, ThatContradictEachOtherAreRefused) {
  const Graph g = gpt();
  const auto nodes = [&](const std::vector<std::string>& texts) {
    return mistake([&] { node_pins(pins_of(texts), g); });
  };
  EXPECT_EQ(nodes({"h.*.mlp=recompute", "h.1=keep"}),
            "--pin 'h.*.mlp=recompute' and 'h.1=keep' contradict each other: both are about "
            "h.1.mlp.fc.matmul");
  EXPECT_EQ(nodes({"h.0=stage 0", "h.*=stage 1"}).substr(0, 60),
            "--pin 'h.0=stage 0' and 'h.*=stage 1' contradict each other:");
  EXPECT_EQ(nodes({"h.*.mlp=recompute", "h.1.mlp.fc=recompute", "h.1=stage 1"}), "none");
  const auto values = [&](const std::vector<std::string>& texts) {
    return mistake([&] { value_pins(pins_of(texts), g); });
  };
  EXPECT_EQ(values({"wte.weight:tp=shard(0)", "wte.weight:tp=replicate"}),
            "--pin 'wte.weight:tp=shard(0)' and 'wte.weight:tp=replicate' contradict each other: "
            "both are about wte.weight");
  EXPECT_NE(values({"h.*.attn.qkv.weight:tp=shard(0.1)", "h.0.attn.qkv.weight:tp=shard(0.2)"}),
            "none");
  EXPECT_EQ(values({"h.*.attn.qkv.weight:tp=shard(0)", "h.0.attn.qkv.weight:tp=shard(0.1)",
                    "h.0.attn.qkv.weight:dp=replicate"}),
            "none");
  // An axis by its role and by its place, and a ZeRO stage.
  PlannerOptions options;
  options.mesh = parse_mesh("dp=2,tp=4");
  for (const std::vector<std::string>& texts :
       {std::vector<std::string>{"wte.weight:tp=shard(0)", "wte.weight:a1=replicate"},
        {"wte.weight:dp=replicate", "zero=3"}}) {
    options.pins = pins_of(texts);
    const PlanResult result = find_plan(g, parse_cluster("8xh100"), options);
    ASSERT_FALSE(result.plan.has_value());
    EXPECT_NE(result.candidates.at(0).why_not.find("contradict each other"), std::string::npos)
        << result.candidates.at(0).why_not;
  }
  // And the mesh.
  const auto mesh = [&](const std::string& asked, const std::vector<std::string>& texts) {
    return mistake(
        [&] { arrangements_of(parse_cluster("8xh100"), parse_mesh(asked), pins_of(texts), {}); });
  };
  EXPECT_EQ(mesh("dp=2,tp=4", {"tp=2"}),
            "--pin tp=2: --mesh dp=2,tp=4 says otherwise; give one of them");
  EXPECT_EQ(mesh("2x4", {"tp=4"}),
            "--pin tp=4 and --mesh 2x4, which gives no roles, both fix the mesh; give one of them");
  EXPECT_EQ(mesh("tp=8", {"zero=1"}),
            "--pin zero=1: --mesh tp=8 has no axis dp, over which states would be in parts");
  EXPECT_EQ(mesh("dp=2,tp=4", {"tp=4", "zero=1"}), "none");
  EXPECT_EQ(mesh("dp=1,tp=8", {"zero=1"}),
            "--pin zero=1: --mesh dp=1,tp=8 has one device on dp, over which states would be in "
            "parts");
  EXPECT_EQ(mesh("2x4", {"zero=0"}),
            "--pin zero=0: --mesh 2x4 does not say which axis is dp (write dp=N,tp=M), over which "
            "states would be in parts");
  EXPECT_EQ(mesh("tp=8", {"zero=0"}), "none");
}

TEST(Pins, ThatLeaveNoArrangementAreNamed) {
  const ArrangementLimits limits{
      .batch = 8, .pieces = 12, .micro_batches = {1, 2, 4, 8}, .stages = true};
  const std::vector<std::pair<std::vector<std::string>, std::string>> rows = {
      {{"tp=3"}, "tp=3: the 8 devices of 8xh100 cannot be shared out to 3"},
      {{"pp=2", "tp=8"}, "pp=2 and tp=8 together are 16 devices, and 8xh100 has 8"},
      {{"dp=2", "tp=2", "pp=1"},
       "pp=1, dp=2 and tp=2 together are 4 devices, and 8xh100 has 8; leave one of them out for "
       "the rest"},
      {{"zero=3", "tp=8"}, "zero=3: it needs an axis dp, and tp=8 leaves no devices for one"},
      {{"wte:cp=replicate", "tp=8"},
       "'wte:cp=replicate': it needs an axis cp, and tp=8 leaves no devices for one"},
      {{"schedule=1f1b", "pp=1"},
       "schedule=1f1b: it is of several pipeline stages, and pp=1 says one; pin pp too"},
      {{"schedule=1f1b", "tp=8"},
       "schedule=1f1b: it is of several pipeline stages, and the axes take all devices for one; "
       "pin pp too"},
      {{"schedule=interleaved", "pp=4", "micro=2"},
       "schedule=interleaved: the micro-batches (2) do not divide by the stages (4), as it needs; "
       "pin micro or pp"},
      {{"pp=64"}, "pp=64: a stage needs a device at least, and 8xh100 has 8"},
      {{"h.0=stage 8"},
       "'h.0=stage 8': it needs 9 stages, of a device each at least, and 8xh100 has 8"},
      {{"pp=8", "chunks=2"},
       "8 stages of 2 chunks are pinned, but the model can be cut into 12 pieces at most"}};
  for (const auto& [texts, expected] : rows) {
    ArrangementLimits some = limits;
    const Pins pins = pins_of(texts);
    if (pins.micro_batches) some.micro_batches = {*pins.micro_batches};
    EXPECT_EQ(mistake([&] { arrangements_of(parse_cluster("8xh100"), {}, pins, some); }), expected);
  }
}

TEST(Pins, NameValues) {
  const Graph g = gpt();
  const auto names = [&](const std::string& text) {
    const Pins pins = pins_of({text});
    std::set<std::string> found;
    for (const ValuePin& p : value_pins(pins, g)) {
      const Source* s = g.source_of(p.value);
      found.insert(s != nullptr ? s->name : pin_name(g, g.value(p.value).producer));
    }
    return found;
  };
  using Names = std::set<std::string>;
  EXPECT_EQ(names("wte.weight:tp=shard(0)"), Names{"wte.weight"});
  EXPECT_EQ(names("adam.m.wte.weight:dp=shard(0)"), Names{"adam.m.wte.weight"});
  // A scope's own parameters, those that have the dimension.
  EXPECT_EQ(names("h.1.attn.qkv:tp=shard(0)"), (Names{"h.1.attn.qkv.weight", "h.1.attn.qkv.bias"}));
  EXPECT_EQ(names("h.1.attn.proj:tp=shard(1)"), Names{"h.1.attn.proj.weight"});
  EXPECT_EQ(names("h.1.mlp.fc.matmul:tp=shard(2)"), Names{"h.1.mlp.fc.matmul"});
  EXPECT_EQ(names("h.*.mlp.fc.weight:tp=replicate").size(), 3u);
  const auto says = [&](const std::string& text) { return mistake([&] { names(text); }); };
  EXPECT_NE(says("wte.weight:tp=shard(2)").find("wte.weight has 2 dimensions, counted from 0"),
            std::string::npos);
  EXPECT_NE(says("h.0.ln_1:tp=shard(1)").find("no parameter of h.0.ln_1 has a dimension 1"),
            std::string::npos);
  EXPECT_NE(says("h.9.mlp.fc:tp=shard(0)").find("is called h.9.mlp.fc"), std::string::npos);
  EXPECT_NE(says("h.0.mlp:tp=shard(0)").find("no scope with parameters"), std::string::npos);
}

std::string meshes(const std::vector<std::string>& texts, int64_t devices = 8) {
  std::string all;
  for (const PinnedMesh& m : pinned_meshes(pins_of(texts), devices, 2)) {
    all += all.empty() ? "" : " ";
    for (size_t a = 0; a < m.sizes.size(); ++a) {
      all += fmt::format("{}{}{}", a > 0 ? "," : "", name_of(m.roles[a]), m.sizes[a]);
    }
  }
  return all;
}

TEST(Pins, ThatLeaveAPartOfTheBatchNoSequenceAreNamed) {
  const ArrangementLimits limits{.batch = 7, .pieces = 12, .micro_batches = {1, 7}, .stages = true};
  const auto with = [&](const std::vector<std::string>& texts) {
    return mistake([&] { arrangements_of(parse_cluster("8xh100"), {}, pins_of(texts), limits); });
  };
  EXPECT_EQ(with({"dp=8"}), "dp=8: the 7 sequences of a step cannot be cut into 8 equal parts");
  EXPECT_EQ(with({"dp=2", "ep=4"}),
            "dp=2 and ep=4: the 7 sequences of a step cannot be cut into 8 equal parts");
  EXPECT_EQ(with({"dp=1"}), "none");
}

// A stage that is pinned needs those before it: fewer are not searched in vain.
TEST(Pins, OfStagesLeavePipelinesThatHaveThem) {
  const ArrangementLimits limits{
      .batch = 8, .pieces = 12, .micro_batches = {1, 2, 4, 8}, .stages = true};
  const auto found = arrangements_of(parse_cluster("8xh100"), {}, pins_of({"h.1=stage 2"}), limits);
  ASSERT_FALSE(found.empty());
  for (const Arrangement& a : found) EXPECT_GE(a.stages, 3) << a.to_string();
}

TEST(Pins, OfExpertsNeedExperts) {
  PlannerOptions options;
  options.pins = pins_of({"ep=2"});
  const auto plan = [&](const Graph& g) {
    return mistake([&] { find_plan(g, parse_cluster("4xh100"), options); });
  };
  const std::string why =
      ": the layers of this model have no experts to share out; dp=N splits the batch";
  EXPECT_EQ(plan(gpt()), "--pin ep=2" + why);
  ModelConfig config = model_named("mixtral:tiny");
  config.batch = 8;
  EXPECT_EQ(plan(trace(config)), "none");
  options.pins = {};
  options.mesh = parse_mesh("dp=2,ep=2");
  EXPECT_EQ(plan(gpt()), "--mesh dp=2,ep=2" + why);
}

TEST(Pins, LeaveMeshes) {
  EXPECT_FALSE(pins_axes(pins_of({"micro=1", "pp=2"})));
  EXPECT_TRUE(pins_axes(pins_of({"zero=0", "pp=2"})));
  EXPECT_EQ(meshes({"zero=0"}), "tp8 dp2,tp4 dp4,tp2 dp8");
  EXPECT_TRUE(pins_axes(pins_of({"zero=1"})));
  EXPECT_TRUE(pins_axes(pins_of({"wte.weight:tp=shard(0)"})));
  EXPECT_EQ(meshes({"tp=2"}), "dp4,tp2");
  EXPECT_EQ(meshes({"tp=1"}), "dp8");
  EXPECT_EQ(meshes({"dp=8", "tp=1"}), "dp8");
  EXPECT_EQ(meshes({"dp=2"}), "dp2,tp4");
  EXPECT_EQ(meshes({"wte.weight:tp=shard(0)"}), "tp8 dp2,tp4 dp4,tp2");
  EXPECT_EQ(meshes({"tp=1"}, 1), "any1");
  EXPECT_EQ(meshes({"tp=3"}), "");
  EXPECT_EQ(meshes({"dp=2", "tp=2"}), "");
  EXPECT_EQ(meshes({"zero=1"}, 1), "");
}

Plan planned(const Graph& g, const std::vector<std::string>& texts,
             const char* cluster = "8xh100") {
  PlannerOptions options;
  options.pins = pins_of(texts);
  PlanResult result = find_plan(g, parse_cluster(cluster), options);
  if (!result.plan) {
    ADD_FAILURE() << texts[0] << ": " << result.candidates.at(0).why_not;
    return {};
  }
  EXPECT_EQ(result.plan->pins, texts);
  return std::move(*result.plan);
}

std::string placement(const Graph& g, const Plan& plan, const std::string& source) {
  return to_string(plan.layout(g.source_named(source)->value, 0), plan.mesh);
}

// How the products of the forward in this scope read their weight, and leave their result, on the
// last axis.
std::string product(const Graph& g, const Plan& plan, const std::string& scope) {
  for (size_t n = 0; n < g.nodes().size(); ++n) {
    const Node& node = g.nodes()[n];
    if (node.phase != Phase::kForward || pin_name(g, static_cast<NodeId>(n)) != scope + ".matmul") {
      continue;
    }
    const Layout in = plan.layout(node.inputs[1], plan.nodes[n].input_forms[1]);
    const Layout out = plan.layout(node.outputs[0], 0);
    return to_string(in.placements.back(), in) + " -> " + to_string(out.placements.back(), out);
  }
  return "no such product";
}

// The search leaves these out; who asks for them gets them.
TEST(Pins, OfPipelinesAreNotSecondGuessed) {
  const ArrangementLimits limits{
      .batch = 8, .pieces = 12, .micro_batches = {1, 2, 4, 8}, .stages = true};
  for (const std::vector<std::string>& pins :
       {std::vector<std::string>{"pp=2", "micro=1", "schedule=zero-bubble"},
        {"pp=4", "micro=2", "schedule=1f1b"},
        {"pp=2", "chunks=5", "micro=2", "schedule=interleaved"},
        {"pp=2", "dp=2", "micro=8", "schedule=1f1b"}}) {
    const auto found = arrangements_of(parse_cluster("cpu:4"), {}, pins_of(pins), limits);
    EXPECT_FALSE(found.empty()) << fmt::format("{}", fmt::join(pins, " "));
  }
  EXPECT_EQ(mistake([&] {
              arrangements_of(parse_cluster("cpu:4"), {}, pins_of({"pp=4", "chunks=4"}), limits);
            }),
            "4 stages of 4 chunks are pinned, but the model can be cut into 12 pieces at most");
}

TEST(Pins, AreKeptByTheSearch) {
  const Graph g = gpt(2);
  Plan plan = planned(g, {"tp=2", "h.1.mlp.fc.matmul:tp=shard(2)", "h.0.mlp.fc:tp=replicate"});
  EXPECT_EQ(plan.mesh.to_string(), "dp 4 x tp 2");
  EXPECT_NE(placement(g, plan, "h.0.mlp.fc.weight").find("tp=replicate"), std::string::npos);
  EXPECT_EQ(product(g, plan, "h.1.mlp.fc"), "shard(0) -> shard(2)");
  EXPECT_EQ(product(g, plan, "h.0.mlp.fc"), "replicate -> replicate");
  // The other way round than anyone would: what is contracted is split, on axes without roles.
  PlannerOptions options;
  options.mesh = parse_mesh("4x2");
  options.pins = pins_of({"h.*.mlp.fc:a1=shard(1)"});
  plan = std::move(*find_plan(g, parse_cluster("8xh100"), options).plan);
  for (const char* layer : {"h.0.mlp.fc", "h.1.mlp.fc"}) {
    EXPECT_EQ(product(g, plan, layer), "shard(1) -> partial(sum)");
    EXPECT_NE(placement(g, plan, fmt::format("{}.weight", layer)).find("=shard(1)"),
              std::string::npos);
  }
}

// Layers stand for each other while candidates are compared, but not for one that is pinned.
TEST(Pins, OfOneLayerAmongManyAreKept) {
  const Graph graph = gpt(8);
  const Cluster cluster = parse_cluster("4xh100");
  for (const int layer : {1, 3, 6}) {
    PlannerOptions options;
    options.space.recompute = true;
    options.mesh = parse_mesh("dp=2,tp=2");
    options.pins = pins_of({fmt::format("h.{}.attn.qkv.weight:tp=shard(1)", layer)});
    const PlanResult found = find_plan(graph, cluster, options);
    ASSERT_TRUE(found.plan) << layer;
    for (int other = 0; other < 8; ++other) {
      const std::string name = fmt::format("h.{}.attn.qkv.weight", other);
      const Layout l = found.plan->layout(found.graph->source_named(name)->value, 0);
      const Placement& p = l.placements[1];
      const bool rows = p.is_shard() && l.atom_dim[static_cast<size_t>(p.atom)] == 1;
      EXPECT_EQ(rows, other == layer) << name << ", pinned " << layer;
    }
  }
}

TEST(Pins, OfZeroAreKept) {
  const Graph g = gpt(2);
  // Whichever mesh comes out: nothing is in parts over what it calls data parallel.
  const Plan open = planned(g, {"zero=0"});
  EXPECT_EQ(open.zero, 0);
  for (const Source& s : g.sources()) {
    if (s.kind != SourceKind::kParameter && s.kind != SourceKind::kState) continue;
    for (size_t a = 0; a < open.mesh.axes.size(); ++a) {
      if (!open.mesh.axes[a].name.starts_with("dp")) continue;
      EXPECT_FALSE(open.values[static_cast<size_t>(s.value)][0].placements[a].is_shard()) << s.name;
    }
  }
  for (const std::string model : {"dp=8", "dp=4"}) {
    const Plan none = planned(g, {model, "zero=0"}), states = planned(g, {model, "zero=1"}),
               all = planned(g, {model, "zero=3"});
    EXPECT_EQ(none.zero, 0);
    EXPECT_EQ(states.zero, 1);
    EXPECT_EQ(all.zero, 3);
    for (const Source& s : g.sources()) {
      const auto on_dp = [&](const Plan& p) {
        return p.values[static_cast<size_t>(s.value)][0].placements[0].is_shard();
      };
      if (s.kind == SourceKind::kParameter) {
        EXPECT_FALSE(on_dp(none) || on_dp(states)) << s.name;
        EXPECT_TRUE(on_dp(all)) << s.name;
      }
      if (s.kind == SourceKind::kState) {
        EXPECT_FALSE(on_dp(none)) << s.name;
        EXPECT_TRUE(s.name == "step" || on_dp(states)) << s.name;
      }
    }
    // Nothing is free: what is pinned is no faster than what is chosen.
    const Plan chosen = planned(g, {model});
    for (const Plan* p : {&none, &states, &all}) {
      EXPECT_GE(p->certificate.cost, chosen.certificate.cost * (1 - 1e-9));
    }
  }
}

TEST(Pins, ThatNoMeshCanKeepSayWhy) {
  const Graph g = gpt(2);
  PlannerOptions options;
  options.mesh = parse_mesh("dp=8");
  options.pins = pins_of({"wte.weight:tp=shard(0)"});
  PlanResult result = find_plan(g, parse_cluster("8xh100"), options);
  EXPECT_FALSE(result.plan.has_value());
  EXPECT_EQ(result.candidates.at(0).why_not,
            "it has no axis tp, which 'wte.weight:tp=shard(0)' names");
  // 3 heads' worth of nothing: dimension 1 of size 128 cannot be in 8 parts of a partial.
  options.mesh = parse_mesh("tp=8");
  options.pins = pins_of({"h.0.attn.attention:tp=partial"});
  result = find_plan(g, parse_cluster("8xh100"), options);
  EXPECT_FALSE(result.plan.has_value());
  EXPECT_NE(result.candidates.at(0).why_not.find("h.0.attn.attention cannot be so on tp 8"),
            std::string::npos)
      << result.candidates.at(0).why_not;
}

}  // namespace
}  // namespace cleave
