// GPT-2 (Radford et al., 2019); Megatron's GPT and GPT-3 (here with dense attention in all layers)
// differ in their sizes.
#include <fmt/format.h>

#include <cmath>

#include "models/models.h"
#include "tracer/nn.h"

namespace cleave {

Tensor gpt2(const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
  // What ends in the residual stream starts smaller, the deeper the model.
  const double residual = kDeviation / std::sqrt(2.0 * static_cast<double>(c.layers));

  const Embedding wte("wte", c.vocab, c.hidden);
  const Tensor wpe = parameter("wpe.weight", {c.sequence, c.hidden}, normal(kDeviation));
  Tensor x = wte(tokens) + wpe;  // [batch, sequence, hidden]
  x = Dropout("dropout", c.dropout)(x);

  for (int64_t i = 0; i < c.layers; ++i) {
    const Scope layer(fmt::format("h.{}", i));
    const LayerNorm ln_1("ln_1", c.hidden, c.eps);
    const SelfAttention attn("attn", c.hidden, c.heads,
                             {.causal = true, .dropout = c.dropout, .deviation = residual});
    const LayerNorm ln_2("ln_2", c.hidden, c.eps);
    const Mlp mlp("mlp", c.hidden, c.ffn_width(), c.dropout, residual);
    x = x + attn(ln_1(x));
    x = x + mlp(ln_2(x));
  }

  const LayerNorm ln_f("ln_f", c.hidden, c.eps);
  x = ln_f(x);
  const Tensor head =
      c.tied ? wte.weight : parameter("head.weight", {c.vocab, c.hidden}, normal(kDeviation));
  const Tensor logits = linear(x, head);  // [batch, sequence, vocab]
  return cross_entropy(logits, targets);
}

}  // namespace cleave
