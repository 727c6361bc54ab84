// The fused ops of neural networks as functions of tensors.
#pragma once

#include <optional>

#include "tracer/tensor.h"

namespace cleave {

// Rows of table [v, d] at ids [...] (i32): [..., d].
Tensor embedding(const Tensor& table, const Tensor& ids, Loc loc = Loc::current());

// Over the last dimension; gamma, beta [d].
Tensor layer_norm(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps = 1e-5,
                  Loc loc = Loc::current());
Tensor rms_norm(const Tensor& x, const Tensor& gamma, double eps = 1e-6, Loc loc = Loc::current());

// x [b, s, h, e]: turns pairs (i, i + e/2) by the position along s (Llama's convention). The first
// `start` numbers of a head stay as they are, and do not count in e.
Tensor rotary(const Tensor& x, double theta = 10000, int64_t start = 0, Loc loc = Loc::current());

struct AttentionOptions {
  bool causal = true;
  std::optional<double> scale;  // 1/sqrt(e) when absent
  double dropout = 0;
};
// q [b, s, h, e], k and v [b, t, g, e] with h a multiple of g (grouped queries): [b, s, h, e].
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, AttentionOptions options = {},
                 Loc loc = Loc::current());

// Zeroes each number with probability p and scales the rest by 1/(1-p); p == 0 gives x itself. The
// numbers dropped depend on the seed, the step, the scope and the index in the whole tensor.
Tensor dropout(const Tensor& x, double p, Loc loc = Loc::current());

// silu(gate) * up.
Tensor swiglu(const Tensor& gate, const Tensor& up, Loc loc = Loc::current());

// The mean loss (scalar) of logits [..., v] for targets [...] (i32). With `ignore`, targets equal
// to it are left out, of the mean too.
Tensor cross_entropy(const Tensor& logits, const Tensor& targets,
                     std::optional<int64_t> ignore = std::nullopt, Loc loc = Loc::current());

}  // namespace cleave
