// Products of bf16 on the tensor cores of compute capability 9.0 by kernels of our own, for what
// stands behind them: where cuBLASLt adds a bias, makes GELU or multiplies by its slope, the tensor
// cores wait. Here a block has two warpgroups that take turns: one multiplies a tile while the
// other works on the results of the tile before.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "kernels/cuda/products.h"
#include "kernels/geometry.h"

namespace cleave {

// How many of our kernels compute the product on a device of this capability, by number from 0:
// those of operands that lie dense along what is summed over, without GELU or with it, and those
// with its slope, whose second matrix lies dense along the rows of the result.
size_t own_kernels(const Product& product, int major);

// Launches one of them. Every sum has a fixed order.
void run_own_kernel(const Product& product, const ProductData& data, size_t which,
                    int multiprocessors, cudaStream_t stream);

// Adds up the parts of sums that it has kept, in their order, to the second result.
void add_own_sums(const KernelArgs& args, const float* sums, int64_t parts);

}  // namespace cleave
