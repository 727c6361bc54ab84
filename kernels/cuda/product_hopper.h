// Products of bf16 on the tensor cores of compute capability 9.0 by kernels of our own, for what
// stands behind them: where cuBLASLt adds a bias, makes GELU or multiplies by its slope, the tensor
// cores wait. Here a block has two warpgroups that take turns: one multiplies a tile while the
// other works on the results of the tile before.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "graph/kernel_args.h"
#include "kernels/cuda/products.h"

namespace cleave {

// How many of our kernels compute the product on a device of this capability, by number: 0 with
// tiles of 128 x 192 of the sums, 1 of 128 x 128. None but of bf16, one product (of SwiGLU two of
// one b), aligned to 16 bytes, with nothing but a bias or an epilogue behind it. Both operands lie
// dense along what is summed over; in the backwards of GELU and SwiGLU the first one (Product::a)
// lies dense along the result's columns instead.
size_t own_kernels(const Product& product, int major);

// Launches one of them. Every sum has a fixed order.
void run_own_kernel(const Product& product, const ProductData& data, size_t which,
                    int multiprocessors, cudaStream_t stream);

// Makes the second result of the parts of sums (ProductData::sums) that such a kernel has kept, in
// a fixed order.
void add_own_sums(const KernelArgs& args, const float* sums, int64_t parts);

}  // namespace cleave
