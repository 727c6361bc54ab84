// The mask of dropout on the device, of a rule that the host makes.
#pragma once

#include <cstdint>

#include "kernels/cuda/dropout_rule.h"
#include "kernels/cuda/prelude.cuh"

namespace cleave {

// S: the type of the factors.
template <class S>
class DeviceMask : public Mask<S> {
 public:
  __device__ DeviceMask(const DropoutRule& rule, int32_t step)
      : Mask<S>(rule.seed, rule.stream, step, rule.threshold, rule.scale) {}
};

}  // namespace cleave
