// Layers made of the functions of tracer/tensor.h and tracer/functional.h.
#include "tracer/nn.h"

namespace cleave {

namespace {

// A layer of a layer: its parameters' names start with the outer layer's name.
template <class Layer, class... Args>
Layer within(std::string_view outer, std::string_view name, Args&&... args) {
  const Scope scope(outer);
  return Layer(name, std::forward<Args>(args)...);
}

Tensor scoped_parameter(std::string_view layer, std::string_view name, Shape shape, Init init,
                        Loc loc) {
  const Scope scope(layer);
  return parameter(name, std::move(shape), init, loc);
}

}  // namespace

Linear::Linear(std::string_view layer_name, int64_t in, int64_t out, bool with_bias,
               double deviation, Loc loc)
    : name(layer_name),
      weight(scoped_parameter(name, "weight", {out, in}, normal(deviation), loc)) {
  if (with_bias) bias = scoped_parameter(name, "bias", {out}, constant(0), loc);
}

Tensor Linear::operator()(const Tensor& x, Loc loc) const {
  const LocationScope line(loc);
  const Scope scope(name);
  const Tensor y = linear(x, weight);
  return bias.defined() ? y + bias : y;
}

Embedding::Embedding(std::string_view layer_name, int64_t rows, int64_t width, double deviation,
                     Loc loc)
    : name(layer_name),
      weight(scoped_parameter(name, "weight", {rows, width}, normal(deviation), loc)) {}

Tensor Embedding::operator()(const Tensor& ids, Loc loc) const {
  const LocationScope line(loc);
  const Scope scope(name);
  return embedding(weight, ids);
}

LayerNorm::LayerNorm(std::string_view layer_name, int64_t width, double epsilon, Loc loc)
    : name(layer_name),
      eps(epsilon),
      weight(scoped_parameter(name, "weight", {width}, constant(1), loc)),
      bias(scoped_parameter(name, "bias", {width}, constant(0), loc)) {}

Tensor LayerNorm::operator()(const Tensor& x, Loc loc) const {
  const LocationScope line(loc);
  const Scope scope(name);
  return layer_norm(x, weight, bias, eps);
}

RmsNorm::RmsNorm(std::string_view layer_name, int64_t width, double epsilon, Loc loc)
    : name(layer_name),
      eps(epsilon),
      weight(scoped_parameter(name, "weight", {width}, constant(1), loc)) {}

Tensor RmsNorm::operator()(const Tensor& x, Loc loc) const {
  const LocationScope line(loc);
  const Scope scope(name);
  return rms_norm(x, weight, eps);
}

Tensor Dropout::operator()(const Tensor& x, Loc loc) const {
  const LocationScope line(loc);
  const Scope scope(name);
  return dropout(x, p);
}

SelfAttention::SelfAttention(std::string_view layer_name, int64_t hidden, int64_t num_heads,
                             SelfAttentionOptions opts, Loc loc)
    : name(layer_name),
      heads(num_heads),
      options(opts),
      qkv(within<Linear>(name, "qkv", hidden, 3 * hidden, true, kDeviation, loc)),
      proj(within<Linear>(name, "proj", hidden, hidden, true, opts.deviation, loc)) {}

Tensor SelfAttention::operator()(const Tensor& x, Loc loc) const {
  const LocationScope line(loc);
  const Scope scope(name);
  const int64_t batch = x.size(0), sequence = x.size(1);
  const std::vector<Tensor> parts =
      qkv(x).reshape({batch, sequence, 3, heads, -1}).unbind(2);  // each [b, s, h, e]
  const bool rotate = options.theta > 0;
  const Tensor q = rotate ? rotary(parts[0], options.theta) : parts[0];
  const Tensor k = rotate ? rotary(parts[1], options.theta) : parts[1];
  const Tensor mixed =
      attention(q, k, parts[2], {.causal = options.causal, .scale = {}, .dropout = 0});
  return Dropout("dropout", options.dropout)(proj(mixed.flatten(2)));  // [b, s, hidden]
}

GroupedAttention::GroupedAttention(std::string_view layer_name, int64_t hidden, int64_t heads,
                                   int64_t kv_heads, SelfAttentionOptions opts, Loc loc)
    : name(layer_name),
      head_size(hidden / heads),
      options(opts),
      q(within<Linear>(name, "q", hidden, heads * head_size, opts.qkv_bias, kDeviation, loc)),
      k(within<Linear>(name, "k", hidden, kv_heads * head_size, opts.qkv_bias, kDeviation, loc)),
      v(within<Linear>(name, "v", hidden, kv_heads * head_size, opts.qkv_bias, kDeviation, loc)),
      proj(within<Linear>(name, "proj", heads * head_size, hidden, false, opts.deviation, loc)) {}

Tensor GroupedAttention::operator()(const Tensor& x, Loc loc) const {
  const LocationScope line(loc);
  const Scope scope(name);
  const Shape split = {x.size(0), x.size(1), -1, head_size};
  Tensor queries = q(x).reshape(split);       // [b, s, h, e]
  Tensor keys = k(x).reshape(split);          // [b, s, g, e]
  const Tensor values = v(x).reshape(split);  // [b, s, g, e]
  if (options.theta > 0) {
    queries = rotary(queries, options.theta);
    keys = rotary(keys, options.theta);
  }
  const Tensor mixed =
      attention(queries, keys, values, {.causal = options.causal, .scale = {}, .dropout = 0});
  return Dropout("dropout", options.dropout)(proj(mixed.flatten(2)));  // [b, s, hidden]
}

LatentAttention::LatentAttention(std::string_view layer_name, int64_t hidden, int64_t num_heads,
                                 LatentSizes latent, double eps, SelfAttentionOptions opts, Loc loc)
    : name(layer_name),
      heads(num_heads),
      sizes(latent),
      options(opts),
      q_down(within<Linear>(name, "q_down", hidden, sizes.q_rank, false, kDeviation, loc)),
      q_norm(within<RmsNorm>(name, "q_norm", sizes.q_rank, eps, loc)),
      q_up(within<Linear>(name, "q_up", sizes.q_rank, heads * (sizes.head + sizes.rotary), false,
                          kDeviation, loc)),
      kv_down(within<Linear>(name, "kv_down", hidden, sizes.kv_rank + sizes.rotary, false,
                             kDeviation, loc)),
      kv_norm(within<RmsNorm>(name, "kv_norm", sizes.kv_rank, eps, loc)),
      kv_up(within<Linear>(name, "kv_up", sizes.kv_rank, heads * (sizes.head + sizes.value), false,
                           kDeviation, loc)),
      proj(within<Linear>(name, "proj", heads * sizes.value, hidden, false, opts.deviation, loc)) {}

Tensor LatentAttention::operator()(const Tensor& x, Loc loc) const {
  const LocationScope line(loc);
  const Scope scope(name);
  const int64_t b = x.size(0), s = x.size(1);
  const Tensor q = rotary(q_up(q_norm(q_down(x))).reshape({b, s, heads, sizes.head + sizes.rotary}),
                          options.theta, sizes.head);
  const std::vector<Tensor> down = kv_down(x).split({sizes.kv_rank, sizes.rotary}, 2);
  const Tensor turned = rotary(down[1].reshape({b, s, 1, sizes.rotary}), options.theta);
  const std::vector<Tensor> up = kv_up(kv_norm(down[0]))
                                     .reshape({b, s, heads, sizes.head + sizes.value})
                                     .split({sizes.head, sizes.value}, 3);
  const Tensor k = cat({up[0], turned.expand({b, s, heads, sizes.rotary})}, 3);
  const Tensor mixed =
      attention(q, k, up[1], {.causal = options.causal, .scale = {}, .dropout = 0});
  return Dropout("dropout", options.dropout)(proj(mixed.flatten(2)));  // [b, s, hidden]
}

Mlp::Mlp(std::string_view layer_name, int64_t hidden, int64_t ffn, double dropout_rate,
         double deviation, Loc loc)
    : name(layer_name),
      dropout(dropout_rate),
      fc(within<Linear>(name, "fc", hidden, ffn, true, kDeviation, loc)),
      proj(within<Linear>(name, "proj", ffn, hidden, true, deviation, loc)) {}

Tensor Mlp::operator()(const Tensor& x, Loc loc) const {
  const LocationScope line(loc);
  const Scope scope(name);
  return Dropout("dropout", dropout)(proj(gelu(fc(x))));
}

SwigluMlp::SwigluMlp(std::string_view layer_name, int64_t hidden, int64_t ffn, double dropout_rate,
                     double deviation, Loc loc)
    : name(layer_name),
      dropout(dropout_rate),
      gate(within<Linear>(name, "gate", hidden, ffn, false, kDeviation, loc)),
      up(within<Linear>(name, "up", hidden, ffn, false, kDeviation, loc)),
      proj(within<Linear>(name, "proj", ffn, hidden, false, deviation, loc)) {}

Tensor SwigluMlp::operator()(const Tensor& x, Loc loc) const {
  const LocationScope line(loc);
  const Scope scope(name);
  const Tensor gated = gate(x);  // in this order with every compiler
  return Dropout("dropout", dropout)(proj(swiglu(gated, up(x))));
}

}  // namespace cleave
