// Each function checks its operands, writes the factor string, and adds one node.
#include "tracer/functional.h"

#include <cmath>

#include "graph/error.h"
#include "kernels/ops.h"
#include "tracer/state.h"

namespace cleave {

namespace {

// Refuses a floating operand of another element type than the first.
Tracer& checked(std::span<const Tensor> operands, std::string_view op, Loc loc) {
  Tracer& tracer = common_tracer(operands, op, loc);
  for (const Tensor& t : operands) {
    if (is_float(t.dtype()) && t.dtype() != operands[0].dtype()) {
      tracer.state().refuse(loc, op, operands, "the element types differ: use to()");
    }
  }
  return tracer;
}

void need_ids(const Tensor& ids, std::span<const Tensor> operands, std::string_view op, Loc loc) {
  if (ids.dtype() == DType::kI32) return;
  ids.tracer().state().refuse(loc, op, operands, "the last operand holds i32 numbers of classes");
}

void check_rate(double p, std::string_view op, std::span<const Tensor> operands, Loc loc) {
  if (p >= 0 && p < 1) return;
  operands[0].tracer().state().refuse(loc, op, operands,
                                      fmt::format("the dropout rate {} is not in [0, 1)", p));
}

// The stream of random numbers of the scope's next dropout.
std::string dropout_name(Tracer& tracer) {
  const int number = tracer.state().dropouts[tracer.scope()]++;
  return fmt::format("{}{}dropout{}", tracer.scope(), tracer.scope().empty() ? "" : ".",
                     number == 0 ? "" : fmt::format(".{}", number));
}

}  // namespace

Tensor embedding(const Tensor& table, const Tensor& ids, Loc loc) {
  const Tensor operands[] = {table, ids};
  Tracer& tracer = checked(operands, "embedding", loc);
  need_ids(ids, operands, "embedding", loc);
  return tracer.apply(ops::embedding, operands, {}, {}, loc)[0];
}

Tensor layer_norm(const Tensor& x, const Tensor& gamma, const Tensor& beta, double eps, Loc loc) {
  const Tensor operands[] = {x, gamma, beta};
  return checked(operands, "layer_norm", loc)
      .apply(ops::layer_norm, operands, {}, {{"eps", eps}}, loc)[0];
}

Tensor rms_norm(const Tensor& x, const Tensor& gamma, double eps, Loc loc) {
  const Tensor operands[] = {x, gamma};
  return checked(operands, "rms_norm", loc)
      .apply(ops::rms_norm, operands, {}, {{"eps", eps}}, loc)[0];
}

Tensor rotary(const Tensor& x, double theta, int64_t start, Loc loc) {
  Tracer& tracer = checked(one(x), "rotary", loc);
  if (x.rank() != 4 || start < 0 || x.size(-1) - start < 2 || (x.size(-1) - start) % 2 != 0) {
    tracer.state().refuse(loc, "rotary", one(x), "it needs [b, s, h, e] with an even e");
  }
  Attrs attrs = {{"theta", theta}, {"inverse", int64_t{0}}};
  if (start > 0) attrs.set("start", start);
  return tracer.apply1(ops::rotary, {x}, "bshE->bshE|s:indexed", std::move(attrs), loc);
}

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, AttentionOptions options,
                 Loc loc) {
  std::vector<Tensor> operands = {q, k, v};
  Tracer& tracer = checked(operands, "attention", loc);
  const auto refuse = [&](const std::string& why) {
    tracer.state().refuse(loc, "attention", operands, why);
  };
  if (q.rank() != 4 || k.rank() != 4 || v.rank() != 4) {
    refuse("it needs q [b, s, h, e], k [b, t, g, e] and v [b, t, g, f]");
  }
  const int64_t heads = q.size(2), groups = k.size(2);
  if (heads % groups != 0) refuse("q's heads are no multiple of k's");
  if (options.causal && q.size(1) != k.size(1)) {
    refuse("causal attention needs as many queries as keys");
  }
  check_rate(options.dropout, "attention", operands, loc);
  const double scale = options.scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3))));
  Attrs attrs{{"r", heads / groups}, {"causal", int64_t{options.causal}}, {"scale", scale}};
  std::string_view factors = "bs(gr)E,bTgE,bTgV->bs(gr)V,bs(gr)|s:indexed,T:indexed";
  if (options.dropout > 0 && tracer.state().options.dropout) {
    // Which weights are dropped depends on their place in all of [b, g, r, s, T].
    factors =
        "bs(gr)E,bTgE,bTgV,->bs(gr)V,bs(gr)"
        "|b:indexed,s:indexed,g:indexed,r:indexed,T:indexed";
    operands.push_back(tracer.pass());
    attrs.set("dropout", options.dropout);
    attrs.set("name", dropout_name(tracer));
  }
  return tracer.apply(ops::attention, operands, factors, std::move(attrs), loc)[0];
}

Tensor dropout(const Tensor& x, double p, Loc loc) {
  Tracer& tracer = checked(one(x), "dropout", loc);
  check_rate(p, "dropout", one(x), loc);
  if (p == 0 || !tracer.state().options.dropout) return x;
  const std::string letters = letters_for(x.shape().size());
  std::string notes;
  for (char c : letters) notes += fmt::format("{}{}:indexed", notes.empty() ? "|" : ",", c);
  return tracer.apply1(ops::dropout, {x, tracer.pass()}, letters + ",->" + letters + notes,
                       {{"p", p}, {"name", dropout_name(tracer)}}, loc);
}

Tensor swiglu(const Tensor& gate, const Tensor& up, Loc loc) {
  const Tensor operands[] = {gate, up};
  return checked(operands, "swiglu", loc).apply(ops::swiglu, operands, {}, {}, loc)[0];
}

Tensor cross_entropy(const Tensor& logits, const Tensor& targets, std::optional<int64_t> ignore,
                     Loc loc) {
  const Tensor operands[] = {logits, targets};
  Tracer& tracer = checked(operands, "cross_entropy", loc);
  need_ids(targets, operands, "cross_entropy", loc);
  Attrs attrs;
  if (ignore) attrs.set("ignore", *ignore);
  const Tensor losses = tracer.apply(ops::cross_entropy, operands, {}, attrs, loc)[0];
  if (!ignore) return mean(losses, {}, false, loc);
  const Attrs counted{{"value", *ignore}, {"dtype", std::string(name_of(losses.dtype()))}};
  const Tensor count =
      sum(tracer.apply1(ops::not_equal, {targets}, {}, counted, loc), {}, false, loc);
  return Operand(sum(losses, {}, false, loc), loc) / Operand(count, loc);
}

}  // namespace cleave
