// Mixtures of experts: a router that gives every token its experts, and the experts. Each sequence
// of a batch is a group by itself, so that no token depends on another sequence, nor on a later
// token of its own.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tracer/nn.h"

namespace cleave {

// The k largest of the last dimension, the largest first, and their indices (i32): [..., k]. Of
// equal numbers the one with the lower index. Gradients go through the values.
struct TopK {
  Tensor values, indices;
};
TopK top_k(const Tensor& x, int64_t k, Loc loc = Loc::current());

// How often each of `classes` numbers occurs in every group of i32 numbers [b, s, k]: [b, classes]
// in a floating type. No gradient.
Tensor histogram(const Tensor& numbers, int64_t classes, DType dtype, Loc loc = Loc::current());

struct RouterOptions {
  enum class Scores { kSoftmax, kSigmoid };
  int64_t top_k = 1;
  Scores scores = Scores::kSoftmax;
  bool normalised = true;  // the weights of a token's experts add up to `scale`
  double scale = 1;        // of the weights
};

// Where the tokens go, and what the router thought of it. Scores of a bf16 router are f32.
struct Routing {
  Tensor experts;  // i32 [b, s, top_k], the most wanted first
  Tensor weights;  // [b, s, top_k], in the type of x
  Tensor scores;   // [b, s, experts], before the choice; of a token they add up to 1
  Tensor logits;   // [b, s, experts]
};

// x [b, s, hidden]; the gate is a linear layer without bias.
struct Router {
  Router(std::string_view name, int64_t hidden, int64_t experts, RouterOptions options = {},
         Loc loc = Loc::current());
  Routing operator()(const Tensor& x, Loc loc = Loc::current()) const;

  std::string name;
  RouterOptions options;
  Linear gate;
};

// Scalars to add to the loss. 1 when every expert has its share of a sequence's tokens, more when
// not: experts * sum over experts of (share of the choices) * (mean score), as in Switch (Fedus et
// al., 2021, eq. 4) but for each sequence, and the mean over them.
Tensor balance_loss(const Routing& routing, Loc loc = Loc::current());
// Mean square of the logits' log-sum-exp (Zoph et al., 2022, eq. 5).
Tensor router_z_loss(const Routing& routing, Loc loc = Loc::current());

struct MoeOptions {
  int64_t experts = 1;
  RouterOptions router;
  // An expert takes at most factor * tokens * top_k / experts tokens of a sequence, rounded up; of
  // the others it is left out, later tokens first. 0: no limit ("dropless").
  double capacity_factor = 0;
  int64_t shared_width = 0;  // of an expert that every token goes to; 0: none
  double dropout = 0;
  double deviation = kDeviation;  // of the projection that ends in the residual stream
};

// How many tokens of a sequence one expert takes, for a capacity factor above 0.
int64_t expert_capacity(int64_t tokens, int64_t top_k, int64_t experts, double factor);

// Experts proj(silu(gate(x)) * up(x)) of width `ffn`, x [b, s, hidden] -> the same: each token's
// experts, times their weights, and the shared expert.
struct MoeMlp {
  struct Result {
    Tensor y;
    Routing routing;
  };
  MoeMlp(std::string_view name, int64_t hidden, int64_t ffn, MoeOptions options,
         Loc loc = Loc::current());
  Result operator()(const Tensor& x, Loc loc = Loc::current()) const;

  std::string name;
  MoeOptions options;
  Router router;
  Tensor gate, up;  // [experts, ffn, hidden]
  Tensor proj;      // [experts, hidden, ffn]
  std::optional<SwigluMlp> shared;

 private:
  Tensor with_capacity(const Tensor& x, const Routing& routing, Loc loc) const;
  Tensor dropless(const Tensor& x, const Routing& routing, Loc loc) const;
};

}  // namespace cleave
