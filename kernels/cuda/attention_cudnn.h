// Attention of bf16 and f16 by cuDNN, whose kernels use the tensor cores as ours do not.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <vector>

namespace cleave {

class DeviceContext;
struct AttentionWork;

// What the positions of a call's queries and keys come to.
enum class AttentionMask {
  kNone,    // every query sees every key
  kCausal,  // query i sees the keys up to i
  kOther,
};

// Plans are made once for each shape, and kept. Builds without cuDNN have none.
class CudnnAttention {
 public:
  CudnnAttention();
  ~CudnnAttention();

  // Launch the call and return true, or return false: the call is not one that cuDNN takes. The
  // first call of a shape takes memory from the device, and waits for it.
  bool attend(const AttentionWork& work, AttentionMask mask, DeviceContext& device,
              cudaStream_t stream);
  bool attend_backward(const AttentionWork& work, AttentionMask mask, DeviceContext& device,
                       cudaStream_t stream);

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
