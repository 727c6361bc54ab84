// The factor string of a reshape, found from the two shapes.
#pragma once

#include <string>

#include "graph/attrs.h"
#include "graph/types.h"

namespace cleave {

struct ReshapeFactors {
  std::string text;  // "bs(cde)->bscde"
  Attrs attrs;       // sizes of the factors that the input alone does not settle
};

// Dimensions are cut into factors wherever the running products of both shapes allow; sizes of 1
// are "1". Where they do not line up (6x4 -> 4x6) the dimensions concerned become whole letters.
// Both shapes have the same number of elements, none of size 0.
ReshapeFactors reshape_factors(const Shape& from, const Shape& to);

}  // namespace cleave
