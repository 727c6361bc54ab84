// One call of attention, forward or backward, as its kernels take it: which heads there are, where
// each lies, and where its queries and keys lie along the whole of them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "graph/kernel_args.h"
#include "kernels/cuda/dropout_rule.h"
#include "kernels/cuda/loops.h"

namespace cleave {

struct AttentionWork {
  enum Operand { kQ, kK, kV, kO, kLse, kDo, kDq, kDk, kDv, kOperands };

  // One operand's matrix of a head: of rows along the queries or keys.
  struct Matrix {
    void* data = nullptr;
    int64_t row = 0, column = 0;  // strides
  };
  Matrix matrices[kOperands];
  DType dtype = DType::kF32, lse_dtype = DType::kF32;
  int64_t s = 1, t = 1, e = 1, v = 1;  // queries, keys, and their widths

  // What is independent: the batch, blocks of keys, and last the key heads.
  using Nest = Loops<kOperands>;
  Nest loops;
  Shard positions[Nest::kMost];
  int64_t mask_steps[Nest::kMost] = {};  // how far each moves in dropout's mask
  int64_t key_steps[Nest::kMost] = {};   // and in the keys' positions

  // The query heads of a key head.
  int64_t r = 1;
  int64_t r_steps[kOperands] = {};
  Shard r_positions;
  int64_t r_mask_step = 0;

  Shard query_positions, key_positions;
  int64_t query_mask_step = 0;  // a key's is 1
  bool causal = false, dropout = false;
  double scale = 1;
  DropoutRule rule;
  const int* step = nullptr;

  // Of every query of the backward: its gradient times its result, summed. [loops, r, s], f32 or
  // f64.
  void* delta = nullptr;
};

// Our own kernels, for operands of any float type that lie in any way.
void attend(const AttentionWork& work, cudaStream_t stream);
void attend_backward(const AttentionWork& work, cudaStream_t stream);

}  // namespace cleave
