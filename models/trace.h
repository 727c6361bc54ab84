// From a built-in model's configuration to its graph.
#pragma once

#include <functional>
#include <string>

#include "graph/graph.h"
#include "models/config.h"
#include "tracer/optimizer.h"
#include "tracer/tensor.h"

namespace cleave {

struct TraceOptions {
  DType dtype = DType::kF32;  // of the computation; one of 16 bits keeps the parameters in f32
  bool training = true;  // backward and update too; else the loss only, and dropout drops nothing
  OptimizerOptions optimizer;
};

// The graph of one step. Data: "tokens" and "targets", i32 [batch, sequence] with the roles
// "batch" and "sequence". Outputs: "loss", and when training "grad_norm" and "lr". No weight is
// allocated. Throws Error when the configuration makes no sense.
Graph trace(const ModelConfig& config, const TraceOptions& options = {});

// A model: the mean loss from tokens and targets.
using LossFunction =
    std::function<Tensor(const ModelConfig&, const Tensor& tokens, const Tensor& targets)>;
// The same for any model. `config` gives the batch and the sequence; the rest is the model's.
Graph trace(const std::string& name, const ModelConfig& config, const LossFunction& model,
            const TraceOptions& options = {});

// What a family learns, which decides what its targets are.
enum class Objective : uint8_t {
  kNextToken,     // targets[i] = tokens[i + 1]
  kMaskedTokens,  // targets are the masked tokens; -100 elsewhere
};
Objective objective_of(const ModelConfig& config);

}  // namespace cleave
