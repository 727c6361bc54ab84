// Mixtral (Jiang et al., 2024): Llama's layers with eight experts in place of the MLP.
#include <fmt/format.h>

#include <cmath>

#include "models/experts.h"
#include "models/models.h"

namespace cleave {

Tensor mixtral(const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
  // What ends in the residual stream starts smaller, the deeper the model.
  const double residual = kDeviation / std::sqrt(2.0 * static_cast<double>(c.layers));
  const MoeOptions experts = experts_of(c, RouterOptions::Scores::kSoftmax, residual);
  RouterLosses router_losses(c);

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
    x = x + attn(attn_norm(x));
    if (i < c.dense_layers) {
      const SwigluMlp mlp("mlp", c.hidden, c.ffn_width(), c.dropout, residual);
      x = x + mlp(mlp_norm(x));
    } else {
      const MoeMlp mlp("mlp", c.hidden, c.expert_width(), experts);
      const MoeMlp::Result result = mlp(mlp_norm(x));
      x = x + result.y;
      router_losses.add(result.routing);
    }
  }

  const RmsNorm norm("norm", c.hidden, c.eps);
  x = norm(x);
  const Tensor head =
      c.tied ? embed.weight : parameter("head.weight", {c.vocab, c.hidden}, normal(kDeviation));
  const Tensor logits = linear(x, head);  // [batch, sequence, vocab]
  return router_losses.added_to(cross_entropy(logits, targets));
}

}  // namespace cleave
