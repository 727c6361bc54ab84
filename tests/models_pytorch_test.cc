// Ten training steps of a small GPT-2, Llama, Qwen2.5, Mixtral and DeepSeek against PyTorch's, from
// the same weights and data: tests/pytorch/make_reference.py wrote the numbers.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "models/trace.h"
#include "tests/support/interpreter.h"

namespace cleave {
namespace {

nlohmann::json reference(const std::string& name) {
  std::ifstream file(CLEAVE_SOURCE_DIR "/tests/pytorch/" + name + "_reference.json");
  return nlohmann::json::parse(file);
}

ModelConfig config_of(const std::string& name, const nlohmann::json& reference) {
  ModelConfig config = model_named(name + ":tiny");
  for (const auto& [key, value] : reference["config"].items()) {
    set_value(config, key + "=" + value.dump());
  }
  return config;
}

OptimizerOptions optimizer_of(const nlohmann::json& o) {
  OptimizerOptions options;
  options.lr = o["lr"];
  options.min_lr = o["min_lr"];
  options.warmup = o["warmup"];
  options.total_steps = o["total_steps"];
  options.beta1 = o["beta1"];
  options.beta2 = o["beta2"];
  options.eps = o["eps"];
  options.weight_decay = o["weight_decay"];
  options.max_norm = o["max_norm"];
  return options;
}

// `count` tokens from number `first` on, by the script's formula.
std::vector<double> tokens_from(int64_t first, int64_t count, int64_t vocab) {
  std::vector<double> tokens;
  for (int64_t i = first; i < first + count; ++i) {
    tokens.push_back(static_cast<double>((i % 97) * (i % 97) % vocab));
  }
  return tokens;
}

struct Curve {
  std::vector<double> losses, grad_norms;
};

Curve train(const Graph& graph, const ModelConfig& config, uint64_t seed, size_t steps) {
  Interpreter interpreter(graph, seed);
  Curve curve;
  for (size_t step = 0; step < steps; ++step) {
    const int64_t count = config.batch * config.sequence;
    const int64_t first = static_cast<int64_t>(step) * count;
    interpreter.set("tokens", tokens_from(first, count, config.vocab));
    interpreter.set("targets", tokens_from(first + 1, count, config.vocab));
    interpreter.run();
    const auto results = interpreter.results();
    curve.losses.push_back(results.at("loss")[0]);
    curve.grad_norms.push_back(results.at("grad_norm")[0]);
    for (const Source& s : graph.sources()) {
      if (s.kind != SourceKind::kData) interpreter.set(s.name, results.at(s.name));
    }
  }
  return curve;
}

double worst_difference(const std::vector<double>& ours, const std::vector<double>& theirs) {
  double worst = 0;
  for (size_t i = 0; i < theirs.size(); ++i) {
    worst = std::max(worst, std::abs(ours.at(i) / theirs[i] - 1));
  }
  return worst;
}

class PyTorch : public testing::TestWithParam<std::string> {
 protected:
  struct Difference {
    double losses, grad_norms;  // relative, the worst of all steps
  };
  Difference compare(DType dtype) const {
    const nlohmann::json ref = reference(GetParam());
    const ModelConfig config = config_of(GetParam(), ref);
    const Graph graph = trace(config, {dtype, /*training=*/true, optimizer_of(ref["optimizer"])});
    int64_t parameters = 0;
    for (const Source& s : graph.sources()) {
      if (s.kind == SourceKind::kParameter) parameters += numel(graph.type(s.value).shape);
    }
    const nlohmann::json& theirs = ref[std::string(name_of(dtype))];
    EXPECT_EQ(parameters, theirs["parameters"].get<int64_t>());
    const std::vector<double> losses = theirs["losses"], norms = theirs["grad_norms"];
    EXPECT_EQ(losses.size(), 10u);
    const Curve ours = train(graph, config, ref["seed"], losses.size());
    const Difference d = {worst_difference(ours.losses, losses),
                          worst_difference(ours.grad_norms, norms)};
    std::printf("%s %s: losses differ by %.1e, gradient norms by %.1e\n", GetParam().c_str(),
                std::string(name_of(dtype)).c_str(), d.losses, d.grad_norms);
    return d;
  }
};

TEST_P(PyTorch, LossesAgreeInF64) {
  const Difference d = compare(DType::kF64);
  EXPECT_LT(d.losses, 1e-12);
  EXPECT_LT(d.grad_norms, 1e-10);
}

// In f32 the two add in different orders, and ten steps of training amplify that.
TEST_P(PyTorch, LossesAgreeInF32) {
  const Difference d = compare(DType::kF32);
  EXPECT_LT(d.losses, 1e-5);
  EXPECT_LT(d.grad_norms, 1e-4);
}

INSTANTIATE_TEST_SUITE_P(Models, PyTorch,
                         testing::Values("gpt2", "llama", "qwen2.5", "mixtral", "deepseek"),
                         [](const auto& info) {
                           return info.param.substr(0, info.param.find('.'));
                         });

}  // namespace
}  // namespace cleave
