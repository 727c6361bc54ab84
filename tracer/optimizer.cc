// The update of every parameter as nodes of the graph.
#include "tracer/optimizer.h"

#include <fmt/format.h>

#include <array>
#include <utility>
#include <vector>

#include "graph/error.h"
#include "kernels/ops.h"
#include "tracer/autodiff.h"
#include "tracer/state.h"

namespace cleave {

namespace {

constexpr Init kZero = {Init::Kind::kConstant, 0};

// "ab,ab,,->ab": `count` operands with these dimensions, then scalars; `results` like the first.
// With `indexed`, the kernel is told where along them a shard lies.
std::string update_factors(const std::string& dims, int count, int scalars, int results,
                           bool indexed = false) {
  std::string text = dims;
  for (int i = 1; i < count; ++i) text += "," + dims;
  text.append(static_cast<size_t>(scalars), ',');
  text += "->" + dims;
  for (int i = 1; i < results; ++i) text += "," + dims;
  for (size_t i = 0; indexed && i < dims.size(); ++i) {
    text += fmt::format("{}{}:indexed", i == 0 ? '|' : ',', dims[i]);
  }
  return text;
}

// While it lives, nodes carry the line that made a parameter, in the scope of its layer.
class AtParameter {
 public:
  explicit AtParameter(Tracer& tracer, const Tensor& parameter)
      : state_(tracer.state()),
        cursor_(state_.graph.cursor),
        scope_(state_.scope),
        located_(state_.located) {
    const std::string& name = tracer.name_of(parameter);
    const size_t dot = name.rfind('.');
    state_.scope = name.substr(0, dot == std::string::npos ? 0 : dot);
    state_.graph.cursor.loc = tracer.made_at(parameter);
    state_.located = true;
  }
  ~AtParameter() {
    state_.graph.cursor = cursor_;
    state_.scope = scope_;
    state_.located = located_;
  }
  AtParameter(const AtParameter&) = delete;
  AtParameter& operator=(const AtParameter&) = delete;

  void follow(NodeId node) { state_.graph.cursor.follows = node; }

 private:
  Tracer::State& state_;
  Cursor cursor_;
  std::string scope_;
  bool located_;
};

// The update phase of one step.
class Update {
 public:
  Update(Tracer& tracer, const OptimizerOptions& options, Loc loc)
      : tracer_(tracer), options_(options), loc_(loc) {}

  void run(const std::vector<Tensor>& parameters, const std::vector<Tensor>& grads,
           const Tensor& loss) {
    std::vector<Tensor> judged = {total_squares(parameters, grads), loss};
    if (options_.limits) {
      for (const char* name : {"loss_limit", "norm_limit"}) {
        judged.push_back(data(name, {}, tracer_.parameter_dtype(), {}, loc_));
      }
    }
    const std::vector<Tensor> judgement =
        tracer_.apply(ops::clip_coefficient, judged, options_.limits ? ",,,->," : "",
                      {{"max_norm", options_.max_norm}}, loc_);
    norm = judgement[0], clip = judgement[1];
    step_ = tracer_.step();
    tracer_.apply_in_place(ops::count_update, std::array{step_, clip}, "", {}, std::array{step_},
                           loc_);
    lr = learning_rate();
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (options_.kind == OptimizerOptions::Kind::kAdamW) {
        adamw(parameters[i], grads[i], squares_[i]);
      } else {
        sgd(parameters[i], grads[i], squares_[i]);
      }
    }
  }

  Tensor norm, lr, clip;  // scalars, in the parameters' type

 private:
  // The sum of squares of all gradients, each squared by a node of its own.
  Tensor total_squares(const std::vector<Tensor>& parameters, const std::vector<Tensor>& grads) {
    std::vector<Tensor> squares;
    for (size_t i = 0; i < grads.size(); ++i) {
      const AtParameter at(tracer_, parameters[i]);
      const std::string factors = letters_for(grads[i].shape().size()) + "->";
      squares.push_back(tracer_.apply1(ops::sum_squares, {grads[i]}, factors, {}, loc_));
      squares_.push_back(static_cast<NodeId>(tracer_.graph().nodes().size() - 1));
    }
    if (squares.size() == 1) return squares[0];
    return tracer_.apply(ops::add_n, squares,
                         update_factors("", static_cast<int>(squares.size()), 0, 1), {}, loc_)[0];
  }

  Tensor learning_rate() {
    const bool cosine = options_.schedule == OptimizerOptions::Schedule::kCosine;
    return tracer_.apply1(ops::learning_rate, {step_}, "",
                          {{"base", options_.lr},
                           {"min", options_.min_lr},
                           {"warmup", options_.warmup},
                           {"total", options_.total_steps},
                           {"kind", std::string(cosine ? "cosine" : "constant")},
                           {"dtype", std::string(name_of(tracer_.parameter_dtype()))}},
                          loc_);
  }

  // Both overwrite the parameter and its moments. They follow the split of the node that squared
  // the gradient: it walks over the same numbers, by the same letters.
  void adamw(const Tensor& p, const Tensor& grad, NodeId squares) {
    const Tensor m = moment("adam.m.", p), v = moment("adam.v.", p);
    AtParameter at(tracer_, p);
    at.follow(squares);
    Attrs attrs = {{"beta1", options_.beta1},
                   {"beta2", options_.beta2},
                   {"eps", options_.eps},
                   {"weight_decay", decay_of(p)}};
    if (rounds()) attrs.set("name", "adam." + tracer_.name_of(p));
    tracer_.apply_in_place(ops::adamw, std::array{p, grad, m, v, lr, clip, step_},
                           update_factors(letters_for(p.shape().size()), 4, 3, 3, rounds()),
                           std::move(attrs), std::array{p, m, v}, loc_);
  }

  void sgd(const Tensor& p, const Tensor& grad, NodeId squares) {
    const Tensor momentum = moment("sgd.momentum.", p);
    AtParameter at(tracer_, p);
    at.follow(squares);
    Attrs attrs = {{"momentum", options_.momentum}, {"weight_decay", decay_of(p)}};
    std::vector<Tensor> operands = {p, grad, momentum, lr, clip};
    if (rounds()) {
      attrs.set("name", "sgd." + tracer_.name_of(p));
      operands.push_back(step_);
    }
    tracer_.apply_in_place(
        ops::sgd, operands,
        update_factors(letters_for(p.shape().size()), 3, rounds() ? 3 : 2, 2, rounds()),
        std::move(attrs), std::array{p, momentum}, loc_);
  }

  // Norms and biases do not decay.
  double decay_of(const Tensor& p) const { return p.rank() >= 2 ? options_.weight_decay : 0.0; }

  Tensor moment(const char* prefix, const Tensor& p) {
    return state(prefix + tracer_.name_of(p), p.shape(), moment_dtype(), kZero, loc_);
  }
  DType moment_dtype() const { return options_.moments.value_or(tracer_.parameter_dtype()); }
  // Whether the update stores moments in fewer bits than it computes them in.
  bool rounds() const { return moment_dtype() != tracer_.parameter_dtype(); }

  Tracer& tracer_;
  const OptimizerOptions& options_;
  Loc loc_;
  std::vector<NodeId> squares_;  // the node that squares each parameter's gradient
  Tensor step_;
};

void check(const OptimizerOptions& o, DType parameters) {
  if (o.moments && *o.moments != DType::kBF16 && *o.moments != parameters) {
    fail("moments in {} beside parameters in {}: write bf16, or leave it out", name_of(*o.moments),
         name_of(parameters));
  }
  if (o.lr < 0 || o.min_lr < 0) {
    fail("lr={} and min_lr={} must not be negative", o.lr, o.min_lr);
  }
  if (o.warmup < 0) fail("warmup={} must not be negative", o.warmup);
  if (o.schedule == OptimizerOptions::Schedule::kCosine && o.total_steps <= o.warmup) {
    fail("total_steps={} must be more than warmup={}", o.total_steps, o.warmup);
  }
  if (o.beta1 < 0 || o.beta1 >= 1 || o.beta2 < 0 || o.beta2 >= 1) {
    fail("beta1={} and beta2={} must be at least 0 and below 1", o.beta1, o.beta2);
  }
  if (o.micro_batches < 1) fail("micro_batches={} must be at least 1", o.micro_batches);
  if (o.max_norm < 0) fail("max_norm={} must not be negative", o.max_norm);
}

}  // namespace

namespace {

// Adds what one micro-batch contributes to an accumulator's tensor.
void accumulate(const Tensor& sum, const Tensor& part, Loc loc) {
  sum.tracer().apply_in_place(ops::add, std::array{sum, part}, "", {}, std::array{sum}, loc);
}

Tensor accumulator_of(const std::string& name, const Tensor& like, Loc loc) {
  return accumulator("accumulated." + name, like.shape(), like.dtype(), loc);
}

}  // namespace

void optimize(const Tensor& model_loss, const OptimizerOptions& options, Loc loc) {
  Tracer& tracer = model_loss.tracer();
  check(options, tracer.parameter_dtype());
  const std::vector<Tensor> parameters = tracer.parameters();
  if (parameters.empty()) fail("there are no parameters to train");
  Tensor part = model_loss, loss = model_loss;
  std::vector<Tensor> grads(parameters.size());
  if (options.micro_batches > 1) {
    tracer.graph().micro_batches = options.micro_batches;
    part = model_loss * (1 / static_cast<double>(options.micro_batches));
    loss = accumulator_of("loss", part, loc);
    accumulate(loss, part, loc);
  }
  // Before the phases change: in the backward and the update, tensors are read as they are stored.
  tracer.output("loss", loss);
  gradients(
      part, parameters,
      [&](size_t i, const Tensor& gradient) {
        grads[i] = gradient;
        if (options.micro_batches == 1) return;
        grads[i] = accumulator_of(tracer.name_of(parameters[i]), gradient, loc);
        const AtParameter at(tracer, parameters[i]);
        accumulate(grads[i], gradient, loc);
      },
      loc);
  tracer.set_phase(Phase::kBackward);
  tracer.count_pass(loc);

  tracer.set_phase(Phase::kUpdate);
  Update update(tracer, options, loc);
  update.run(parameters, grads, loss);
  tracer.output("grad_norm", update.norm);
  tracer.output("lr", update.lr);
  tracer.output("clip", update.clip);
}

Graph trace_training_step(std::string name, const std::function<Tensor()>& model_loss,
                          const OptimizerOptions& options, TracerOptions tracer_options, Loc loc) {
  Tracer tracer(std::move(name), tracer_options);
  optimize(model_loss(), options, loc);
  return without_dead_nodes(tracer.finish());
}

}  // namespace cleave
