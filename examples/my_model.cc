// A model of one's own, as a function of tensors, with the whole command around it:
//
//   my_model regions
//   my_model plan --cluster 8xh100 --batch 64
//   my_model train --data FILE --devices cpu:4 --set layers=2
#include <fmt/format.h>

#include "cli/command.h"
#include "tracer/nn.h"

using namespace cleave;  // NOLINT(build/namespaces)

namespace {

// A transformer whose attention and MLP read the same norm, side by side, with squared ReLU and
// soft-capped logits. It says nothing about devices.
Tensor parallel_blocks(const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
  const Embedding embed("embed", c.vocab, c.hidden);
  Tensor x = embed(tokens);  // [batch, sequence, hidden]
  for (int64_t i = 0; i < c.layers; ++i) {
    const Scope block(fmt::format("blocks.{}", i));
    const RmsNorm norm("norm", c.hidden);
    const SelfAttention attention("attention", c.hidden, c.heads, {.theta = c.theta});
    const Linear up("up", c.hidden, c.ffn_width()), down("down", c.ffn_width(), c.hidden);
    const Tensor n = norm(x);
    x = x + attention(n) + down(square(relu(up(n))));
  }
  const RmsNorm last("last", c.hidden);
  const Tensor logits = 30.0 * tanh(linear(last(x), embed.weight) / 30.0);  // [.., .., vocab]
  return cross_entropy(logits, targets);
}

}  // namespace

int main(int argc, char** argv) {
  return run_command(argc, argv,
                     {"parallel", {.layers = 4, .hidden = 128, .heads = 4}, parallel_blocks});
}
