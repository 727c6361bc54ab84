// What the families with mixtures of experts share.
#pragma once

#include <vector>

#include "models/config.h"
#include "tracer/moe.h"

namespace cleave {

// The experts of one layer as the configuration says; `deviation`: of what ends in the residual
// stream.
MoeOptions experts_of(const ModelConfig& config, RouterOptions::Scores scores, double deviation);

// What the routers add to the loss: the mean over the layers of their balance and log-sum-exp
// losses, times the configuration's weights. Nothing where those are 0.
class RouterLosses {
 public:
  explicit RouterLosses(const ModelConfig& config);
  void add(const Routing& routing, Loc loc = Loc::current());
  Tensor added_to(const Tensor& loss, Loc loc = Loc::current()) const;

 private:
  double balance_, z_;         // weights, a layer
  std::vector<Tensor> parts_;  // scalars, added up at the end: layers do not hang together by them
};

}  // namespace cleave
