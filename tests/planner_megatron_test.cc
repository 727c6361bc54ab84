// Megatron's splits of transformers, found by a planner that knows no transformer.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>

#include "executor/lower.h"
#include "kernels/ops.h"
#include "models/trace.h"
#include "planner/planner.h"

namespace cleave {
namespace {

struct Planned {
  Graph graph;
  Plan plan;
};

Planned plan_model(const std::string& model, int64_t layers, double memory, int64_t batch = 8) {
  ModelConfig config = model_named(model);
  config.batch = batch;
  config.layers = layers;
  TraceOptions options;
  options.dtype = DType::kBF16;
  Planned p{trace(config, options), {}};
  PlannerOptions planner;
  planner.mesh = parse_mesh("tp=8");
  planner.memory_limit = memory;
  planner.live_bytes = stage_live_bytes;
  PlanResult result = find_plan(p.graph, parse_cluster("8xh100"), planner);
  EXPECT_TRUE(result.plan.has_value()) << model;
  if (result.plan) p.plan = std::move(*result.plan);
  return p;
}

// What one op is split by on the only axis: "n1" (letter, atom), "-", and "*" when written out.
std::string split_of(const Planned& p, NodeId n) {
  const MemberSplit::OnAxis& on = p.plan.nodes[static_cast<size_t>(n)].axes[0];
  if (on.factor < 0) return on.partial ? "partial" : "-";
  const char letter = p.graph.node(n).signature->factors()[static_cast<size_t>(on.factor)].letter;
  return fmt::format("{}{}{}", letter, on.atom, on.expanded ? "*" : "");
}

// The splits of all forward nodes with this op whose scope ends in `scope`, without repetition.
std::string splits(const Planned& p, const std::string& op, const std::string& scope) {
  std::string found;
  for (size_t n = 0; n < p.graph.nodes().size(); ++n) {
    const Node& node = p.graph.nodes()[n];
    const std::string& s = p.graph.scopes()[static_cast<size_t>(node.scope)];
    if (node.phase != Phase::kForward || node.op->name != op || !s.ends_with(scope)) continue;
    const std::string split = split_of(p, static_cast<NodeId>(n));
    if (found.find(split) == std::string::npos) found += (found.empty() ? "" : " ") + split;
  }
  return found;
}

struct Traffic {
  double bytes = 0;
  int64_t count = 0;
};

// Collectives of one phase that move activations.
Traffic traffic(const Planned& p, Phase phase) {
  Traffic t;
  for (const PlannedCollectives& c : p.plan.collectives) {
    if (c.parameters || c.phase != phase) continue;
    t.bytes += c.bytes;
    t.count += c.count;
  }
  return t;
}

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

// One more layer costs this much: what a layer moves, whatever the model's ends do.
void expect_layer_traffic(const std::string& model, double bsh, double factor, double memory,
                          int64_t batch = 8) {
  const Planned four = plan_model(model, 4, memory, batch),
                three = plan_model(model, 3, memory, batch);
  const Traffic f4 = traffic(four, Phase::kForward), f3 = traffic(three, Phase::kForward);
  const Traffic b4 = traffic(four, Phase::kBackward), b3 = traffic(three, Phase::kBackward);
  // Reduce-scatter and all-gather: two pairs forward, two backward.
  EXPECT_EQ(f4.count - f3.count, 4) << model;
  EXPECT_EQ(b4.count - b3.count, factor > 8 ? 6 : 4) << model;
  const double bytes = f4.bytes - f3.bytes + b4.bytes - b3.bytes;
  EXPECT_NEAR(bytes / 2, factor * bsh * 7 / 8, 1e-6 * bytes) << model << ": elements a rank, bf16";
}

TEST(Megatron, Gpt) {
  const Planned p = plan_model("gpt2:355m", 24, 0);
  EXPECT_EQ(p.plan.mesh.axes[0].name, "tp");
  // QKV by columns: the heads inside (3, heads, head size).
  EXPECT_EQ(splits(p, "matmul", ".attn.qkv"), "n1");
  EXPECT_EQ(splits(p, "attention", ".attn"), "g0");
  EXPECT_EQ(splits(p, "matmul", ".attn.proj"), "k0");
  EXPECT_EQ(splits(p, "matmul", ".mlp.fc"), "n0");
  EXPECT_EQ(splits(p, "gelu", ".mlp"), "u0");
  EXPECT_EQ(splits(p, "matmul", ".mlp.proj"), "k0");
  // Between them the sequence: norms and the residual stream.
  EXPECT_EQ(splits(p, "layer_norm", ".ln_1"), "s0");
  EXPECT_EQ(splits(p, "layer_norm", ".ln_2"), "s0");
  // The ends by vocabulary; the loss is never gathered.
  EXPECT_EQ(splits(p, "embedding", "wte"), "v0");
  EXPECT_EQ(splits(p, "cross_entropy", ""), "V0*");
  EXPECT_NEAR(p.plan.certificate.gap(), 0, 1e-9);
  expect_layer_traffic("gpt2:355m", 8.0 * 1024 * 1024, 8, kNoLimit);
}

TEST(Megatron, Bert) {
  const Planned p = plan_model("bert:large", 24, 0);
  EXPECT_EQ(splits(p, "attention", ".attn"), "g0");
  EXPECT_EQ(splits(p, "embedding", ""), "v0");
  EXPECT_EQ(splits(p, "cross_entropy", ""), "V0*");
  // Small messages are not taken apart: starting two costs more than the norm's work that is saved.
  const int64_t batch = 32;
  const double bs = static_cast<double>(model_named("bert:large").sequence * batch);
  expect_layer_traffic("bert:large", bs * 1024, 8, kNoLimit, batch);
}

TEST(Megatron, LlamaWithGroupedHeads) {
  const Planned p = plan_model("llama:8b", 32, 0);
  EXPECT_EQ(splits(p, "attention", ""), "g0");
  EXPECT_EQ(splits(p, "rms_norm", ""), "s0");
  EXPECT_EQ(splits(p, "embedding", ""), "v0");
  EXPECT_EQ(splits(p, "cross_entropy", ""), "V0*");
  // Memory decides how many layers keep what they gathered; the plan says how many gather again.
  EXPECT_GT(p.plan.regathered, 0);
  EXPECT_LE(static_cast<double>(p.plan.predicted.peak_bytes), p.plan.cluster.device.memory);
  const double bsh = 8.0 * static_cast<double>(model_named("llama:8b").sequence) * 4096;
  expect_layer_traffic("llama:8b", bsh, 8, kNoLimit);
}

// No op, layer or model is named in the planner.
TEST(Megatron, PlannerNamesNoOp) {
  std::vector<std::string> words;
  for (const OpDef* op : ops::all()) words.emplace_back(op->name);
  for (const std::string& m : model_names()) words.push_back(m.substr(0, m.find(':')));
  for (const char* word : {"qkv", "mlp", "attn", "transformer", "wte"}) words.emplace_back(word);
  int files = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(CLEAVE_SOURCE_DIR) / "planner")) {
    std::ifstream file(entry.path());
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    ++files;
    for (const std::string& word : words) {
      EXPECT_EQ(text.find('"' + word + '"'), std::string::npos)
          << entry.path() << " names " << word;
      EXPECT_EQ(text.find("ops::" + word), std::string::npos) << entry.path() << " names " << word;
    }
  }
  EXPECT_GT(files, 20);
}

// Trained GPT-3 on 128 devices: planned within the second that a user waits gladly.
TEST(Megatron, Gpt3) {
  ModelConfig config = model_named("gpt3:175b");
  config.batch = 16;
  TraceOptions options;
  options.dtype = DType::kBF16;
  const Graph graph = trace(config, options);
  PlannerOptions planner;
  planner.mesh = parse_mesh("dp=16,tp=8");
  planner.live_bytes = stage_live_bytes;
  const PlanResult result = find_plan(graph, parse_cluster("16x8xh100"), planner);
  ASSERT_TRUE(result.plan.has_value());
  EXPECT_LE(static_cast<double>(result.plan->predicted.peak_bytes),
            result.plan->cluster.device.memory);
  EXPECT_LT(result.plan->search_seconds, 10) << "about 0.5 s on a quiet machine";
}

}  // namespace
}  // namespace cleave
