// Routers and experts out of the ops of kernels/top_k.cc, slots.cc, dispatch.cc and
// grouped_matmul.cc, and ordinary ones.
#include "tracer/moe.h"

#include <algorithm>
#include <cmath>

#include "graph/error.h"
#include "kernels/ops.h"
#include "tracer/state.h"

namespace cleave {

TopK top_k(const Tensor& x, int64_t k, Loc loc) {
  Tracer& tracer = common_tracer(one(x), "top_k", loc);
  if (x.rank() < 1 || k < 1 || k > x.size(-1)) {
    tracer.state().refuse(loc, "top_k", one(x), fmt::format("there are no {} to choose", k));
  }
  const std::vector<Tensor> chosen = tracer.apply(ops::top_k, one(x), {}, {{"K", k}}, loc);
  return {chosen[0], chosen[1]};
}

Tensor histogram(const Tensor& numbers, int64_t classes, DType dtype, Loc loc) {
  Tracer& tracer = common_tracer(one(numbers), "histogram", loc);
  if (numbers.dtype() != DType::kI32 || numbers.rank() != 3) {
    tracer.state().refuse(loc, "histogram", one(numbers), "it needs i32 numbers [b, s, k]");
  }
  return tracer.apply1(ops::histogram, {numbers}, "bsk->be|e:indexed",
                       {{"e", classes}, {"dtype", std::string(name_of(dtype))}}, loc);
}

// --- The router ----------------------------------------------------------------------------------

namespace {

Linear gate_of(std::string_view router, int64_t hidden, int64_t experts, Loc loc) {
  const Scope scope(router);
  return Linear("gate", hidden, experts, /*with_bias=*/false, kDeviation, loc);
}

Tensor over_their_sum(const Tensor& x, Loc loc) {
  return Operand(x, loc) / Operand(sum(x, {-1}, /*keepdim=*/true, loc), loc);
}

}  // namespace

Router::Router(std::string_view layer_name, int64_t hidden, int64_t experts, RouterOptions opts,
               Loc loc)
    : name(layer_name), options(opts), gate(gate_of(name, hidden, experts, loc)) {}

Routing Router::operator()(const Tensor& x, Loc loc) const {
  const LocationScope line(loc);
  const Scope scope(name);
  Routing routing;
  const Tensor logits = gate(x);  // [b, s, experts]
  routing.logits = is_half(logits.dtype()) ? logits.to(DType::kF32) : logits;
  const bool softmaxed = options.scores == RouterOptions::Scores::kSoftmax;
  const Tensor scores = softmaxed ? softmax(routing.logits) : sigmoid(routing.logits);
  routing.scores = softmaxed ? scores : over_their_sum(scores, loc);
  const TopK chosen = top_k(scores, options.top_k);
  routing.experts = chosen.indices;
  routing.weights = options.normalised ? over_their_sum(chosen.values, loc) : chosen.values;
  if (options.scale != 1) routing.weights = routing.weights * options.scale;
  routing.weights = routing.weights.to(x.dtype());
  return routing;
}

Tensor balance_loss(const Routing& routing, Loc loc) {
  const LocationScope line(loc);
  const int64_t experts = routing.scores.size(-1);
  const double choices =
      static_cast<double>(routing.experts.size(1)) * static_cast<double>(routing.experts.size(2));
  const Tensor load = histogram(routing.experts, experts, routing.scores.dtype());  // [b, experts]
  const Tensor wanted = mean(routing.scores, {1});                                  // [b, experts]
  return mean(sum(load * wanted, {-1})) * (static_cast<double>(experts) / choices);
}

Tensor router_z_loss(const Routing& routing, Loc loc) {
  const LocationScope line(loc);
  return mean(square(logsumexp(routing.logits, {-1})));
}

// --- The experts ---------------------------------------------------------------------------------

namespace {

Router router_of(std::string_view layer, int64_t hidden, const MoeOptions& options, Loc loc) {
  const Scope scope(layer);
  return Router("router", hidden, options.experts, options.router, loc);
}

Tensor expert_weight(std::string_view layer, std::string_view name, Shape shape, double deviation,
                     Loc loc) {
  const Scope outer(layer);
  const Scope scope("experts");
  return parameter(name, std::move(shape), normal(deviation), loc);
}

}  // namespace

int64_t expert_capacity(int64_t tokens, int64_t top_k, int64_t experts, double factor) {
  const double share = factor * static_cast<double>(tokens) * static_cast<double>(top_k) /
                       static_cast<double>(experts);
  // A token has an expert only once, so that no expert has more than all tokens. Rounded up, but
  // not for the rounding of the factor.
  const double most = static_cast<double>(tokens);
  return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(std::min(share, most) - 1e-6)));
}

MoeMlp::MoeMlp(std::string_view layer_name, int64_t hidden, int64_t ffn, MoeOptions opts, Loc loc)
    : name(layer_name),
      options(opts),
      router(router_of(name, hidden, options, loc)),
      gate(expert_weight(name, "gate", {options.experts, ffn, hidden}, kDeviation, loc)),
      up(expert_weight(name, "up", {options.experts, ffn, hidden}, kDeviation, loc)),
      proj(expert_weight(name, "proj", {options.experts, hidden, ffn}, options.deviation, loc)) {
  if (options.shared_width == 0) return;
  const Scope scope(name);
  shared.emplace("shared", hidden, options.shared_width, 0.0, options.deviation, loc);
}

MoeMlp::Result MoeMlp::operator()(const Tensor& x, Loc loc) const {
  const LocationScope line(loc);
  const Scope scope(name);
  if (x.rank() != 3) {
    x.tracer().state().refuse(loc, "MoeMlp", one(x), "it needs x [b, s, hidden]");
  }
  Result result;
  result.routing = router(x);
  const bool limited = options.capacity_factor > 0;
  {
    const Scope experts("experts");
    result.y = limited ? with_capacity(x, result.routing, loc) : dropless(x, result.routing, loc);
  }
  if (shared) result.y = result.y + (*shared)(x);
  result.y = Dropout("dropout", options.dropout)(result.y);
  return result;
}

// Every expert has a buffer of `capacity` rows for each sequence, in which zeros are left over.
Tensor MoeMlp::with_capacity(const Tensor& x, const Routing& routing, Loc loc) const {
  Tracer& tracer = x.tracer();
  const int64_t capacity =
      expert_capacity(x.size(1), options.router.top_k, options.experts, options.capacity_factor);
  const Tensor slots = tracer.apply1(ops::capacity_slots, {routing.experts}, "bSK->bSK",
                                     {{"experts", options.experts}, {"capacity", capacity}}, loc);
  const Tensor rows = tracer.apply1(ops::dispatch, {x, slots}, "bsd,bsK->ebCd|e:indexed,C:indexed",
                                    {{"e", options.experts}, {"C", capacity}}, loc);
  const Tensor gated = contract(rows, gate, "ebCd,efd->ebCf");
  const Tensor inner = tracer.apply1(ops::swiglu, {gated, contract(rows, up, "ebCd,efd->ebCf")},
                                     "ebCf,ebCf->ebCf", {}, loc);
  const Tensor results = contract(inner, proj, "ebCf,edf->ebCd");
  return tracer.apply1(ops::combine, {results, slots, routing.weights},
                       "ebCd,bsK,bsK->bsd|e:indexed,C:indexed", {}, loc);
}

// A row for each choice of each token, sorted by expert.
Tensor MoeMlp::dropless(const Tensor& x, const Routing& routing, Loc loc) const {
  Tracer& tracer = x.tracer();
  const int64_t choices = x.size(1) * options.router.top_k;
  const std::vector<Tensor> sorted =
      tracer.apply(ops::sorted_slots, one(routing.experts), "bSK->bSK,bR",
                   {{"experts", options.experts}, {"R", choices}}, loc);
  const Tensor &slots = sorted[0], &experts = sorted[1];
  const Tensor rows =
      tracer.apply1(ops::dispatch, {x, slots}, "bsd,bsK->brd|r:indexed", {{"r", choices}}, loc);
  const Attrs count = {{"experts", options.experts}};
  const auto product = [&](const Tensor& in, const Tensor& weights, std::string_view factors) {
    return tracer.apply1(ops::grouped_matmul, {in, weights, experts}, factors, count, loc);
  };
  const Tensor gated = product(rows, gate, "brd,efd,br->brf|e:indexed");
  const Tensor inner = swiglu(gated, product(rows, up, "brd,efd,br->brf|e:indexed"));
  const Tensor results = product(inner, proj, "brf,edf,br->brd|e:indexed");
  return tracer.apply1(ops::combine, {results, slots, routing.weights},
                       "brd,bsK,bsK->bsd|r:indexed", {}, loc);
}

}  // namespace cleave
