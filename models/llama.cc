// Llama 3 (Grattafiori et al., 2024), without its scaling of the rotary frequencies; and with other
// numbers Llama (Touvron et al., 2023) and Qwen2.5 (Qwen Team, 2024).
#include <fmt/format.h>

#include <cmath>

#include "models/models.h"
#include "tracer/nn.h"

namespace cleave {

Tensor llama(const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
  // What ends in the residual stream starts smaller, the deeper the model.
  const double residual = kDeviation / std::sqrt(2.0 * static_cast<double>(c.layers));

  const Embedding embed("embed", c.vocab, c.hidden);
  Tensor x = embed(tokens);  // [batch, sequence, hidden]

  for (int64_t i = 0; i < c.layers; ++i) {
    const Scope layer(fmt::format("layers.{}", i));
    const RmsNorm attn_norm("attn_norm", c.hidden, c.eps);
    const GroupedAttention attn("attn", c.hidden, c.heads, c.num_kv_heads(),
                                {.causal = true,
                                 .dropout = c.dropout,
                                 .theta = c.theta,
                                 .deviation = residual,
                                 .qkv_bias = c.qkv_bias});
    const RmsNorm mlp_norm("mlp_norm", c.hidden, c.eps);
    const SwigluMlp mlp("mlp", c.hidden, c.ffn_width(), c.dropout, residual);
    x = x + attn(attn_norm(x));
    x = x + mlp(mlp_norm(x));
  }

  const RmsNorm norm("norm", c.hidden, c.eps);
  x = norm(x);
  const Tensor head =
      c.tied ? embed.weight : parameter("head.weight", {c.vocab, c.hidden}, normal(kDeviation));
  const Tensor logits = linear(x, head);  // [batch, sequence, vocab]
  return cross_entropy(logits, targets);
}

}  // namespace cleave
