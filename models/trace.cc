// The table of families, each a loss as a function of tokens and targets.
#include "models/trace.h"

#include "graph/error.h"
#include "models/models.h"

namespace cleave {

namespace {

struct Family {
  std::string_view name;
  Tensor (*loss)(const ModelConfig&, const Tensor& tokens, const Tensor& targets);
  Objective objective = Objective::kNextToken;
};

constexpr Family kFamilies[] = {
    {"gpt2", gpt2},         {"megatron", gpt2}, {"gpt3", gpt2},
    {"llama", llama},       {"qwen2.5", llama}, {"mixtral", mixtral},
    {"deepseek", deepseek}, {"mlp", mlp},       {"bert", bert, Objective::kMaskedTokens},
};

const Family& family_of(const ModelConfig& config) {
  for (const Family& family : kFamilies) {
    if (family.name == config.family) return family;
  }
  fail("there is no model family '{}'", config.family);
}

}  // namespace

Graph trace(const std::string& name, const ModelConfig& config, const LossFunction& model,
            const TraceOptions& options) {
  const auto loss = [&] {
    const Shape shape = {config.batch, config.sequence};
    const std::vector<std::string> roles = {"batch", "sequence"};
    const Tensor tokens = data("tokens", shape, DType::kI32, roles);
    const Tensor targets = data("targets", shape, DType::kI32, roles);
    return model(config, tokens, targets);
  };
  const TracerOptions compute = {.compute = options.dtype, .dropout = options.training};
  if (options.training) return trace_training_step(name, loss, options.optimizer, compute);
  Tracer tracer(name, compute);
  tracer.output("loss", loss());
  return without_dead_nodes(tracer.finish());
}

Graph trace(const ModelConfig& config, const TraceOptions& options) {
  check(config);
  return trace(config.name(), config, family_of(config).loss, options);
}

Objective objective_of(const ModelConfig& config) { return family_of(config).objective; }

}  // namespace cleave
