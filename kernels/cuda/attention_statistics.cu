// The log-sum-exp of attention from one layout to another: cuDNN may not take ours.
#include "kernels/cuda/attention_cudnn.h"
#include "kernels/cuda/check.h"

namespace cleave {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) copy_one(const StatisticsCopy c) {
  const long long i = blockIdx.x * static_cast<long long>(kThreads) + threadIdx.x;
  if (i >= c.batch * c.heads * c.rows) return;
  const long long head = i % c.heads, row = i / c.heads % c.rows, batch = i / c.heads / c.rows;
  c.to[batch * c.to_steps[0] + head * c.to_steps[1] + row * c.to_steps[2]] =
      c.from[batch * c.from_steps[0] + head * c.from_steps[1] + row * c.from_steps[2]];
}

}  // namespace

void copy_statistics(const StatisticsCopy& copy, cudaStream_t stream) {
  const long long count = copy.batch * copy.heads * copy.rows;
  copy_one<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(copy);
  cuda_check(cudaGetLastError());
}

}  // namespace cleave
