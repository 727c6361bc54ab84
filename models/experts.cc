#include "models/experts.h"

namespace cleave {

MoeOptions experts_of(const ModelConfig& c, RouterOptions::Scores scores, double deviation) {
  return {.experts = c.experts,
          .router = {.top_k = c.top_k, .scores = scores, .scale = c.route_scale},
          .capacity_factor = c.capacity_factor,
          .shared_width = c.shared_experts * c.expert_width(),
          .dropout = c.dropout,
          .deviation = deviation};
}

RouterLosses::RouterLosses(const ModelConfig& c) {
  const double layers = static_cast<double>(std::max<int64_t>(c.layers - c.dense_layers, 1));
  balance_ = c.balance_loss / layers;
  z_ = c.z_loss / layers;
}

void RouterLosses::add(const Routing& routing, Loc loc) {
  const LocationScope line(loc);
  if (balance_ > 0) parts_.push_back(balance_loss(routing) * balance_);
  if (z_ > 0) parts_.push_back(router_z_loss(routing) * z_);
}

Tensor RouterLosses::added_to(const Tensor& loss, Loc loc) const {
  if (parts_.empty()) return loss;
  std::vector<Tensor> terms = {loss};
  terms.insert(terms.end(), parts_.begin(), parts_.end());
  return add_all(terms, loc);
}

}  // namespace cleave
