// A user's model through the installed headers and libraries. With arguments: the command. Without:
// a few steps of training through the library, on one device and on two.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "cli/command.h"
#include "executor/cpu_runtime.h"
#include "executor/lower.h"
#include "models/trace.h"
#include "planner/planner.h"
#include "tracer/nn.h"

namespace {

cleave::Tensor bigrams(const cleave::ModelConfig& c, const cleave::Tensor& tokens,
                       const cleave::Tensor& targets) {
  const cleave::Embedding embed("embed", c.vocab, c.hidden);
  const cleave::Mlp mlp("mlp", c.hidden, c.ffn_width());
  const cleave::Linear head("head", c.hidden, c.vocab);
  const cleave::Tensor x = embed(tokens);  // [batch, sequence, hidden]
  return cleave::cross_entropy(head(x + mlp(x)), targets);
}

const cleave::ModelConfig kConfig = {.hidden = 32, .vocab = 256, .sequence = 16, .batch = 4};

std::vector<double> losses(const cleave::Graph& graph, const char* devices) {
  const auto found = cleave::find_plan(graph, cleave::parse_cluster(devices), {});
  cleave::CpuRuntime runtime(cleave::lower(graph, *found.plan), {.seed = 3});
  runtime.initialize();
  std::vector<int32_t> tokens(64), targets(64);
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<int32_t>(i * i % 251);
    targets[i] = (tokens[i] + 1) % 256;
  }
  std::vector<double> result;
  for (int step = 0; step < 8; ++step) {
    runtime.set_data("tokens", std::as_bytes(std::span<const int32_t>(tokens)));
    runtime.set_data("targets", std::as_bytes(std::span<const int32_t>(targets)));
    result.push_back(runtime.step().value("loss"));
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return cleave::run_command(argc, argv, {"bigrams", kConfig, bigrams});

  cleave::TraceOptions options;
  options.optimizer.lr = 0.02;
  options.optimizer.warmup = 0;
  const cleave::Graph graph = cleave::trace("bigrams", kConfig, bigrams, options);
  const std::vector<double> one = losses(graph, "cpu:1"), two = losses(graph, "cpu:2");
  double difference = 0;
  for (size_t i = 0; i < one.size(); ++i) {
    difference = std::max(difference, std::abs(one[i] - two[i]));
  }
  std::printf("loss %.4f -> %.4f, two devices differ by %.1e\n", one.front(), one.back(),
              difference);
  return one.back() < one.front() - 0.1 && difference < 1e-4 ? 0 : 1;
}
