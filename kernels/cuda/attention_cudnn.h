// Attention of bf16 and f16 by cuDNN.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/attention_shape.h"

namespace cleave {

class DeviceContext;

// Plans are made once for each shape, and kept. Builds without cuDNN have none.
class CudnnAttention {
 public:
  CudnnAttention();
  ~CudnnAttention();

  // Launches the call and returns true, or returns false: it is not one that cuDNN takes. The
  // first call of a shape chooses and loads kernels. `workspace`: as kernels/cuda/attention_room.h
  // says; calls that it does not count take memory from the device the first time.
  bool attend(const AttentionShape& shape, const AttentionWork& work, void* workspace,
              DeviceContext& device, cudaStream_t stream);

  // Whether this build has cuDNN.
  static bool available();
  // Of every shape that looked right and was not taken, why.
  const std::vector<std::string>& refusals() const;
  // What was chosen for every shape that was taken, in words.
  const std::vector<std::string>& choices() const;

 private:
  struct Plans;
  std::unique_ptr<Plans> plans_;
};

// Copies log-sum-exps between layouts. Strides are those of [batch, heads, rows].
struct StatisticsCopy {
  const float* from = nullptr;
  float* to = nullptr;
  long long batch = 1, heads = 1, rows = 1;
  long long from_steps[3] = {}, to_steps[3] = {};
};
void copy_statistics(const StatisticsCopy& copy, cudaStream_t stream);

}  // namespace cleave
