// BLAS does most of a step's work: which one it is, whether it is right, and how fast.
#pragma once

#include <vector>

#include "cli/doctor.h"

namespace cleave {

// Floating-point operations a second of single-precision matrix products on one core; 0 when their
// results are wrong.
double matrix_product_rate();

// BLAS itself, at this rate, and one more finding for each variable of the environment that changes
// what OpenBLAS does: then this program is run once more, without them.
std::vector<Finding> examine_blas(double rate);

}  // namespace cleave
