// Layers: small structs that hold parameters and are called like functions.
//
//   Linear fc("fc", 768, 3072);
//   Tensor y = gelu(fc(x));
//
// A layer creates its parameters in its constructor, under the current scope ("h.0.mlp.fc.weight"),
// and is called under that same scope. The ops inside carry the line that called the layer.
#pragma once

#include <string>
#include <string_view>

#include "tracer/functional.h"
#include "tracer/tensor.h"

namespace cleave {

inline constexpr double kDeviation = 0.02;  // of initial weights, as in GPT-2

inline Init normal(double deviation) { return {Init::Kind::kNormal, deviation}; }
inline Init constant(double value) { return {Init::Kind::kConstant, value}; }

// x [..., in] -> [..., out]: x times the weight [out, in] transposed, plus a bias [out].
struct Linear {
  Linear(std::string_view name, int64_t in, int64_t out, bool with_bias = true,
         double deviation = kDeviation, Loc loc = Loc::current());
  Tensor operator()(const Tensor& x, Loc loc = Loc::current()) const;

  std::string name;
  Tensor weight;
  Tensor bias;  // undefined without one
};

// ids [...] (i32) -> rows of the weight [rows, width]: [..., width].
struct Embedding {
  Embedding(std::string_view name, int64_t rows, int64_t width, double deviation = kDeviation,
            Loc loc = Loc::current());
  Tensor operator()(const Tensor& ids, Loc loc = Loc::current()) const;

  std::string name;
  Tensor weight;
};

// Over the last dimension: mean 0 and variance 1, then times the weight, plus the bias.
struct LayerNorm {
  LayerNorm(std::string_view name, int64_t width, double eps = 1e-5, Loc loc = Loc::current());
  Tensor operator()(const Tensor& x, Loc loc = Loc::current()) const;

  std::string name;
  double eps;
  Tensor weight, bias;
};

// Over the last dimension: mean square 1, then times the weight.
struct RmsNorm {
  RmsNorm(std::string_view name, int64_t width, double eps = 1e-5, Loc loc = Loc::current());
  Tensor operator()(const Tensor& x, Loc loc = Loc::current()) const;

  std::string name;
  double eps;
  Tensor weight;
};

struct Dropout {
  explicit Dropout(std::string_view layer_name, double rate) : name(layer_name), p(rate) {}
  Tensor operator()(const Tensor& x, Loc loc = Loc::current()) const;

  std::string name;
  double p;
};

struct SelfAttentionOptions {
  bool causal = true;
  double dropout = 0;             // of the result
  double theta = 0;               // base of rotary positions; 0: none
  double deviation = kDeviation;  // of the projection that ends in the residual stream
  bool qkv_bias = false;          // of a GroupedAttention's queries, keys and values
};

// Multi-head self-attention, x [b, s, hidden] -> the same. One weight [3 * hidden, hidden], laid
// out (3, heads, head size), gives the queries, keys and values.
struct SelfAttention {
  SelfAttention(std::string_view name, int64_t hidden, int64_t heads,
                SelfAttentionOptions options = {}, Loc loc = Loc::current());
  Tensor operator()(const Tensor& x, Loc loc = Loc::current()) const;

  std::string name;
  int64_t heads;
  SelfAttentionOptions options;
  Linear qkv, proj;
};

// Self-attention whose queries, in `heads` heads, share `kv_heads` heads of keys and values.
// Separate weights, of which none or the first three have biases.
struct GroupedAttention {
  GroupedAttention(std::string_view name, int64_t hidden, int64_t heads, int64_t kv_heads,
                   SelfAttentionOptions options = {}, Loc loc = Loc::current());
  Tensor operator()(const Tensor& x, Loc loc = Loc::current()) const;

  std::string name;
  int64_t head_size;
  SelfAttentionOptions options;
  Linear q, k, v, proj;
};

// The sizes of latent attention: ranks of the queries and of what keys and values are made from;
// a head's numbers without and with a position, and of its values.
struct LatentSizes {
  int64_t q_rank = 1, kv_rank = 1;
  int64_t head = 1, rotary = 2, value = 1;
};

// Multi-head latent attention (DeepSeek-AI, 2024), x [b, s, hidden] -> the same: queries, keys and
// values in `heads` heads are made from normalised vectors of low rank. A head's query and key have
// `head` numbers of their own and `rotary` that turn with the position; those of the key are the
// same for all heads. `options.theta` must be above 0.
struct LatentAttention {
  LatentAttention(std::string_view name, int64_t hidden, int64_t heads, LatentSizes sizes,
                  double eps, SelfAttentionOptions options, Loc loc = Loc::current());
  Tensor operator()(const Tensor& x, Loc loc = Loc::current()) const;

  std::string name;
  int64_t heads;
  LatentSizes sizes;
  SelfAttentionOptions options;
  Linear q_down;  // [q_rank, hidden]
  RmsNorm q_norm;
  Linear q_up;     // [heads * (head + rotary), q_rank]
  Linear kv_down;  // [kv_rank + rotary, hidden]: of keys and values, and the turning part of a key
  RmsNorm kv_norm;
  Linear kv_up;  // [heads * (head + value), kv_rank]
  Linear proj;   // [hidden, heads * value]
};

// proj(gelu(fc(x))), x [..., hidden] -> the same.
struct Mlp {
  Mlp(std::string_view name, int64_t hidden, int64_t ffn, double dropout = 0,
      double deviation = kDeviation, Loc loc = Loc::current());
  Tensor operator()(const Tensor& x, Loc loc = Loc::current()) const;

  std::string name;
  double dropout;
  Linear fc, proj;
};

// proj(silu(gate(x)) * up(x)), without biases.
struct SwigluMlp {
  SwigluMlp(std::string_view name, int64_t hidden, int64_t ffn, double dropout = 0,
            double deviation = kDeviation, Loc loc = Loc::current());
  Tensor operator()(const Tensor& x, Loc loc = Loc::current()) const;

  std::string name;
  double dropout;
  Linear gate, up, proj;
};

}  // namespace cleave
