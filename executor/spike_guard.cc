#include "executor/spike_guard.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace cleave {
namespace {

double limit(const std::vector<double>& values, double deviations) {
  const auto n = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double squares = 0;
  for (double x : values) squares += (x - mean) * (x - mean);
  return mean + deviations * std::sqrt(squares / n);
}

void push(std::vector<double>& values, double x) {
  if (values.size() == SpikeGuard::kWindow) values.erase(values.begin());
  values.push_back(x);
}

}  // namespace

StepLimits SpikeGuard::limits() const {
  if (deviations_ <= 0 || losses_.size() < kLeast) {
    return {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity()};
  }
  return {limit(losses_, deviations_), limit(norms_, deviations_)};
}

void SpikeGuard::add(double loss, double norm) {
  push(losses_, loss);
  push(norms_, norm);
}

void SpikeGuard::restore(std::vector<double> losses, std::vector<double> norms) {
  losses_ = std::move(losses);
  norms_ = std::move(norms);
}

}  // namespace cleave
