// Reverse-mode differentiation of a traced graph: the backward becomes nodes of the same graph.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "tracer/tensor.h"

namespace cleave {

// The gradient of a scalar `loss` for each of `parameters` (values as they are stored), in their
// order, shapes and element types. The new nodes are of the backward phase, follow their forward
// node, and carry its line and scope. Throws Error, with lines, when a parameter does not reach the
// loss, when an op on the way has no gradient, and when a value that the backward needs was
// overwritten in place.
std::vector<Tensor> gradients(const Tensor& loss, std::span<const Tensor> parameters,
                              Loc loc = Loc::current());

// Called with a parameter's index and its gradient as soon as that is complete, while the rest of
// the backward is still to come: what it adds to the trace stands there.
using GradientReady = std::function<void(size_t parameter, const Tensor& gradient)>;

// The same, one gradient after the other.
void gradients(const Tensor& loss, std::span<const Tensor> parameters, const GradientReady& ready,
               Loc loc = Loc::current());

}  // namespace cleave
