// Tells a loss or a gradient that is far above the latest ones, so that the step's update can be
// left out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cleave {

// The largest loss and gradient norm with which a step's update is made; infinite: any.
struct StepLimits {
  double loss = 0, norm = 0;
};

// Looks at the steps whose updates were made, of which it keeps the latest kWindow.
class SpikeGuard {
 public:
  static constexpr size_t kWindow = 128;
  static constexpr size_t kLeast = 32;  // before so many steps nothing is a spike

  // `deviations`: standard deviations above the mean that make a spike; 0: nothing is one.
  explicit SpikeGuard(double deviations) : deviations_(deviations) {}

  StepLimits limits() const;
  void add(double loss, double norm);

  // Oldest first; for checkpoints.
  const std::vector<double>& losses() const { return losses_; }
  const std::vector<double>& norms() const { return norms_; }
  void restore(std::vector<double> losses, std::vector<double> norms);

 private:
  double deviations_;
  std::vector<double> losses_, norms_;
};

}  // namespace cleave
