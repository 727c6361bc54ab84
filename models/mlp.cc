// A residual MLP on each token by itself.
#include <fmt/format.h>

#include "models/models.h"
#include "tracer/nn.h"

namespace cleave {

Tensor mlp(const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
  const Embedding embed("embed", c.vocab, c.hidden);
  Tensor x = embed(tokens);  // [batch, sequence, hidden]
  for (int64_t i = 0; i < c.layers; ++i) {
    const Scope layer(fmt::format("layers.{}", i));
    const LayerNorm norm("norm", c.hidden, c.eps);
    const Mlp mlp("mlp", c.hidden, c.ffn_width(), c.dropout);
    x = x + mlp(norm(x));
  }
  const LayerNorm norm("norm", c.hidden, c.eps);
  const Linear head("head", c.hidden, c.vocab, /*with_bias=*/false);
  return cross_entropy(head(norm(x)), targets);
}

}  // namespace cleave
