// BERT (Devlin et al., 2018) trained on masked tokens.
#include <fmt/format.h>

#include "models/models.h"
#include "tracer/nn.h"

namespace cleave {

// As published, but without token types (there is one sentence) and without the prediction of the
// next sentence; GELU by tanh.
Tensor bert(const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
  const Embedding wte("wte", c.vocab, c.hidden);
  const Tensor wpe = parameter("wpe.weight", {c.sequence, c.hidden}, normal(kDeviation));
  const LayerNorm ln("ln", c.hidden, c.eps);
  Tensor x = ln(wte(tokens) + wpe);  // [batch, sequence, hidden]
  x = Dropout("dropout", c.dropout)(x);

  for (int64_t i = 0; i < c.layers; ++i) {
    const Scope layer(fmt::format("layers.{}", i));
    const SelfAttention attn("attn", c.hidden, c.heads, {.causal = false, .dropout = c.dropout});
    const LayerNorm attn_norm("attn_norm", c.hidden, c.eps);
    const Mlp mlp("mlp", c.hidden, c.ffn_width(), c.dropout);
    const LayerNorm mlp_norm("mlp_norm", c.hidden, c.eps);
    x = attn_norm(x + attn(x));
    x = mlp_norm(x + mlp(x));
  }

  const Scope scope("head");
  const Linear dense("dense", c.hidden, c.hidden);
  const LayerNorm norm("norm", c.hidden, c.eps);
  x = norm(gelu(dense(x)));
  const Tensor decoder =
      c.tied ? wte.weight : parameter("weight", {c.vocab, c.hidden}, normal(kDeviation));
  const Tensor logits = linear(x, decoder) + parameter("bias", {c.vocab}, constant(0));
  return cross_entropy(logits, targets, /*ignore=*/-100);
}

}  // namespace cleave
