// The built-in models: plain functions from tokens to a loss, one file a family.
#pragma once

#include "models/config.h"
#include "tracer/tensor.h"

namespace cleave {

// tokens and targets: i32 [batch, sequence]. The result: the mean loss, a scalar.

// GPT-2, and with other sizes Megatron's GPT and GPT-3: learned positions, norms before.
Tensor gpt2(const ModelConfig& config, const Tensor& tokens, const Tensor& targets);

// Llama: rotary positions, RMS norms, SwiGLU, grouped queries; and Qwen2.5, whose queries, keys and
// values have biases.
Tensor llama(const ModelConfig& config, const Tensor& tokens, const Tensor& targets);

// Mixtral: as Llama, with an MLP of each token's best experts in every layer.
Tensor mixtral(const ModelConfig& config, const Tensor& tokens, const Tensor& targets);

// DeepSeek-V3: latent attention, and many small experts after a few dense layers.
Tensor deepseek(const ModelConfig& config, const Tensor& tokens, const Tensor& targets);

// BERT trained on masked tokens only: norms after, attention both ways. Targets are -100 where a
// token is not masked.
Tensor bert(const ModelConfig& config, const Tensor& tokens, const Tensor& targets);

// Residual blocks of an MLP on each token by itself: the smallest thing that learns bigrams.
Tensor mlp(const ModelConfig& config, const Tensor& tokens, const Tensor& targets);

}  // namespace cleave
