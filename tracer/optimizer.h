// The optimizer as part of the graph: a training step runs from the tokens to the new weights.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "tracer/tensor.h"

namespace cleave {

struct OptimizerOptions {
  enum class Kind : uint8_t { kAdamW, kSgd };
  enum class Schedule : uint8_t { kCosine, kConstant };
  Kind kind = Kind::kAdamW;
  Schedule schedule = Schedule::kCosine;
  double lr = 6e-4;      // reached after the warm-up
  double min_lr = 6e-5;  // reached at total_steps, then kept; kCosine only
  int64_t warmup = 100;  // steps of linear growth from 0 to lr
  int64_t total_steps = 10000;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;  // kAdamW
  double momentum = 0.9;                         // kSgd
  // The type that moments are stored in: bf16, which is rounded stochastically, or the parameters'
  // own, as when left out. They are computed in the parameters' type in any case.
  std::optional<DType> moments = {};
  double weight_decay = 0.1;  // of parameters with two dimensions or more
  double max_norm = 1.0;  // the gradient, all parameters together, is cut to this norm; 0: never
  // Forward and backward passes, each on a batch of its own, before one update with the mean of
  // their gradients.
  int64_t micro_batches = 1;
  // The step takes the scalars "loss_limit" and "norm_limit" as data, and makes no update when the
  // loss or the gradient's norm is above.
  bool limits = false;
};

// Adds to the trace of a scalar loss its backward and the update of every parameter, in place:
// gradients, their norm, the clipping, the step count, the learning rate, and AdamW or SGD with its
// moments as states ("adam.m.<parameter>", "adam.v.<parameter>", "sgd.momentum.<parameter>").
// Declares the outputs "loss" (the mean over the micro-batches), "grad_norm", "lr" and "clip": what
// the gradients were multiplied by, or -1 when the loss or the norm is not finite or above its
// limit: then parameters, moments and the step count stay as they are.
void optimize(const Tensor& loss, const OptimizerOptions& options, Loc loc = Loc::current());

// The graph of one step of training the model whose loss the function traces.
Graph trace_training_step(std::string name, const std::function<Tensor()>& model_loss,
                          const OptimizerOptions& options, TracerOptions tracer = {},
                          Loc loc = Loc::current());

}  // namespace cleave
