// Kernels for the GPU against the reference on the CPU in double. In builds with CUDA only.
#pragma once

#ifdef CLEAVE_CUDA

#include "tests/support/op_runner.h"

namespace cleave::testing {

bool has_gpu();

// While it lives, products are by our own kernels wherever they can be.
struct OwnProductsFirst {
  OwnProductsFirst();
  ~OwnProductsFirst();
  OwnProductsFirst(const OwnProductsFirst&) = delete;
  OwnProductsFirst& operator=(const OwnProductsFirst&) = delete;
};

// The case in f64, f32, bf16 and f16, with operands that lie in any way, and in place; two runs of
// it have the same bits. Mistakes are failures of the test that calls.
void check_on_gpu(const OpCase& c);

// The same of one application, in which some floats may be f32 whatever the others are: `mixed`
// says so, and then only halves are tried.
void check_on_gpu(const Application& a, const OpCase& c, bool mixed = false);

// The op's outputs, computed on the GPU by operands that lie as the options say.
std::vector<HostTensor> run_op_on_gpu(const Application& a, RunOptions options = {});

// The case with every indexed factor that can be split, and its own size, a shard of a larger one.
Application shard_of(const OpCase& c);

}  // namespace cleave::testing

#endif
