// The built-in models: their sizes are the published ones, and their graphs are complete, small and
// quickly made.
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <set>

#include "models/trace.h"
#include "tests/support/sanitized.h"

namespace cleave {
namespace {

ModelConfig with(std::string_view name, std::initializer_list<std::string_view> settings) {
  ModelConfig config = model_named(name);
  for (const std::string_view s : settings) set_value(config, s);
  return config;
}

int64_t parameters_of(const Graph& graph) {
  int64_t count = 0;
  for (const Source& s : graph.sources()) {
    if (s.kind == SourceKind::kParameter) count += numel(graph.type(s.value).shape);
  }
  return count;
}

int64_t parameters_of(const ModelConfig& config) {
  return parameters_of(trace(config, {.dtype = DType::kF32, .training = false, .optimizer = {}}));
}

double flops_of(const Graph& graph) {
  double flops = 0;
  for (const Node& node : graph.nodes()) {
    const std::vector<TensorType> in = graph.input_types(node);
    flops += node.op->flops(Graph::call(node, in));
  }
  return flops;
}

// Without the padding of the vocabulary.
TEST(Models, ParameterCountsAreThePublishedOnes) {
  EXPECT_EQ(parameters_of(with("gpt2:124m", {"vocab=50257"})), 124'439'808);
  EXPECT_EQ(parameters_of(with("gpt2:355m", {"vocab=50257"})), 354'823'168);
  EXPECT_EQ(parameters_of(with("gpt2:774m", {"vocab=50257"})), 774'030'080);
  EXPECT_EQ(parameters_of(with("gpt2:1558m", {"vocab=50257"})), 1'557'611'200);
  EXPECT_EQ(parameters_of(model_named("llama:1b")), 1'235'814'400);
  EXPECT_EQ(parameters_of(model_named("llama:3b")), 3'212'749'824);
  EXPECT_EQ(parameters_of(model_named("llama:7b")), 6'738'415'616);
  EXPECT_EQ(parameters_of(model_named("llama:8b")), 8'030'261'248);
  EXPECT_EQ(parameters_of(model_named("llama:70b")), 70'553'706'496);
  EXPECT_EQ(parameters_of(model_named("llama:405b")), 405'853'388'800);
  EXPECT_EQ(parameters_of(model_named("qwen2.5:0.5b")), 494'032'768);
  EXPECT_EQ(parameters_of(model_named("qwen2.5:1.5b")), 1'543'714'304);
  EXPECT_EQ(parameters_of(model_named("qwen2.5:3b")), 3'085'938'688);
  EXPECT_EQ(parameters_of(model_named("qwen2.5:7b")), 7'615'616'512);
  // BertForMaskedLM has two token types more.
  EXPECT_EQ(parameters_of(with("bert:base", {"vocab=30522"})), 109'514'298 - 2 * 768);
  EXPECT_EQ(parameters_of(with("bert:large", {"vocab=30522"})), 335'174'458 - 2 * 1024);
  EXPECT_EQ(parameters_of(model_named("mixtral:8x7b")), 46'702'792'704);
  // Without the routing biases (58 x 256) and the module for a second token.
  EXPECT_EQ(parameters_of(model_named("deepseek:671b")), 671'026'404'352);
  // Given in billions only.
  EXPECT_NEAR(parameters_of(model_named("megatron:1.2b")) / 1e9, 1.2, 0.05);
  EXPECT_NEAR(parameters_of(model_named("megatron:2.5b")) / 1e9, 2.5, 0.05);
  EXPECT_NEAR(parameters_of(model_named("megatron:4.2b")) / 1e9, 4.2, 0.05);
  EXPECT_NEAR(parameters_of(model_named("megatron:8.3b")) / 1e9, 8.3, 0.05);
  EXPECT_NEAR(parameters_of(model_named("gpt3:175b")) / 1e9, 175, 1);
}

// Whether a line is in a file of models/: "gpt2.cc:26".
bool in_models(const std::string& place) {
  const std::string file = place.substr(0, place.find(':'));
  return std::filesystem::exists(std::filesystem::path(CLEAVE_SOURCE_DIR) / "models" / file);
}

class EveryModel : public testing::TestWithParam<std::string> {};

TEST_P(EveryModel, TracesACompleteTrainingStep) {
  ModelConfig config = model_named(GetParam());
  config.layers = 3;
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16}) {
    const Graph graph = trace(config, {.dtype = dtype, .training = true, .optimizer = {}});

    std::set<std::string> outputs;
    for (const Output& o : graph.outputs()) {
      outputs.insert(o.name);
      EXPECT_EQ(graph.type(o.value).shape, Shape{}) << o.name;
    }
    EXPECT_EQ(outputs, (std::set<std::string>{"loss", "grad_norm", "lr", "clip"}));

    const DType stored = dtype == DType::kF64 ? DType::kF64 : DType::kF32;
    std::map<SourceKind, int> count;
    for (const Source& s : graph.sources()) {
      ++count[s.kind];
      if (s.kind == SourceKind::kData) {
        EXPECT_EQ(s.roles, (std::vector<std::string>{"batch", "sequence"}));
        continue;
      }
      EXPECT_NE(s.final, s.value) << s.name << " is not updated";
      EXPECT_EQ(graph.value(s.final).storage, graph.value(s.value).storage) << s.name;
      EXPECT_EQ(graph.type(s.value).dtype, s.name == "step" ? DType::kI32 : stored) << s.name;
    }
    EXPECT_EQ(count[SourceKind::kData], 2);
    EXPECT_EQ(count[SourceKind::kState], 2 * count[SourceKind::kParameter] + 1);

    for (const Node& node : graph.nodes()) {
      const std::string place = graph.place(node.loc);
      EXPECT_TRUE(in_models(place)) << node.op->name << " at " << place;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, EveryModel, testing::ValuesIn(model_names()),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) {
                             if (!isalnum(static_cast<unsigned char>(c))) c = '_';
                           }
                           return name;
                         });

// The line is the model's, not the layer library's; the scope tells the layer.
TEST(Models, NodesPointIntoTheModel) {
  const Graph graph = trace(model_named("gpt2:tiny"));
  std::set<std::string> files;
  std::set<std::string> scopes;
  for (const Node& node : graph.nodes()) {
    const std::string place = graph.place(node.loc);
    if (node.phase != Phase::kUpdate) files.insert(place.substr(0, place.find(':')));
    scopes.insert(graph.scopes()[static_cast<size_t>(node.scope)]);
  }
  EXPECT_EQ(files, std::set<std::string>{"gpt2.cc"});
  EXPECT_TRUE(scopes.contains("h.2.attn.qkv"));
  EXPECT_TRUE(scopes.contains("h.3.mlp.proj"));
}

// Every layer is traced alike: as many nodes again for each layer more.
TEST(Models, GraphsGrowLinearly) {
  for (const std::string name : {"gpt2:124m", "llama:8b", "qwen2.5:7b", "mixtral:8x7b",
                                 "deepseek:671b", "bert:base", "mlp:tiny"}) {
    const bool experts = name == "mixtral:8x7b" || name == "deepseek:671b";
    std::vector<size_t> sizes;
    for (const char* layers : {"layers=2", "layers=3", "layers=5"}) {
      ModelConfig config = with(name, {layers});
      config.dense_layers = 1;  // of experts
      sizes.push_back(trace(config).nodes().size());
    }
    const size_t layer = sizes[1] - sizes[0];
    EXPECT_EQ(sizes[2], sizes[1] + 2 * layer) << name;
    EXPECT_LT(layer, experts ? 250u : 110u) << name;
  }
}

// Forward and backward cost 6 flops a token for each weight that a matmul reads, and attention
// 3.5 times its forward, 4 * s * s * width a sequence and layer, of which causal skips a half.
// `width`: of all heads, the mean of keys' and values'.
double expected_flops(const ModelConfig& c, int64_t matmul_weights, bool causal, int64_t width) {
  const double tokens = static_cast<double>(c.batch * c.sequence);
  const double attention = 4.0 * static_cast<double>(c.sequence * width * c.layers) * 3.5;
  return tokens * (6.0 * static_cast<double>(matmul_weights) + attention * (causal ? 0.5 : 1));
}

TEST(Models, FlopsFollowTheFormula) {
  const auto check = [](const ModelConfig& c, int64_t not_in_matmuls, bool causal) {
    const Graph graph = trace(c);
    const bool latent = c.family == "deepseek";
    const int64_t width =
        latent ? c.heads * (c.head_width + c.rotary_width + c.value_width) / 2 : c.hidden;
    const double expected = expected_flops(c, parameters_of(graph) - not_in_matmuls, causal, width);
    EXPECT_NEAR(flops_of(graph) / expected, 1, 0.03) << c.name();
  };
  const ModelConfig gpt = model_named("gpt2:124m");
  check(gpt, gpt.sequence * gpt.hidden, true);
  const ModelConfig llama = model_named("llama:8b");
  check(llama, llama.vocab * llama.hidden, true);
  const ModelConfig qwen = model_named("qwen2.5:7b");
  check(qwen, qwen.vocab * qwen.hidden, true);
  const ModelConfig bert = model_named("bert:base");
  check(bert, bert.sequence * bert.hidden, false);
  // Of the routed experts, top_k work for a token: with as many slots, or rows, as there are
  // choices.
  for (const char* name : {"mixtral:8x7b", "deepseek:671b"}) {
    for (const char* capacity : {"capacity_factor=1", "capacity_factor=0"}) {
      const ModelConfig c = with(name, {capacity});
      const int64_t idle = (c.layers - c.dense_layers) * (c.experts - c.top_k);
      check(c, c.vocab * c.hidden + idle * 3 * c.hidden * c.expert_width(), true);
    }
  }
}

TEST(Models, ALargeStepIsTracedAtOnce) {
#ifdef CLEAVE_SANITIZED
  GTEST_SKIP() << "times mean nothing under a sanitizer";
#endif
  const auto start = std::chrono::steady_clock::now();
  const Graph graph =
      trace(model_named("gpt3:175b"), {.dtype = DType::kBF16, .training = true, .optimizer = {}});
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 1.5);  // 0.3 on an idle core
  EXPECT_GT(graph.nodes().size(), 96u * 40);
  RecordProperty("seconds", std::to_string(seconds.count()));
  RecordProperty("nodes", static_cast<int>(graph.nodes().size()));
}

}  // namespace
}  // namespace cleave
