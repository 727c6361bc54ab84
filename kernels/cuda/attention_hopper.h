// Attention of 16 bits on the tensor cores of compute capability 9.0: our own kernels, which give
// the same bits every time and store no weights. Forward, a block of queries walks over the keys,
// with the softmax's sums as it goes. Backward, one kernel goes by queries, for their gradient, and
// one by keys, for theirs and the values': the weights are computed twice, and in exchange every
// sum is one block's.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/attention_shape.h"

namespace cleave {

// Launch the call and return true, or return false: heads are not of 64, 96 or 128 numbers, the
// same for keys and values, or, forward, the scale is not positive.
bool attend_on_tensor_cores(const AttentionShape& shape, const AttentionWork& work,
                            int multiprocessors, cudaStream_t stream);
// `statistics`: 16-byte aligned, of attention_statistics_bytes (kernels/attention.h). `sums`: null,
// or where the sums of dq, dk and dv over every 64 rows of the batch go, [parts, 3, g e]
// (attention_room.h).
bool attend_backward_on_tensor_cores(const AttentionShape& shape, const AttentionWork& work,
                                     void* statistics, float* sums, int multiprocessors,
                                     cudaStream_t stream);
// Adds up those parts: `to` [3 n], in the order of the parts.
void add_attention_sums(const float* sums, int64_t parts, int64_t n, const TensorView& to,
                        cudaStream_t stream);

}  // namespace cleave
