// Times single ops and copies on this machine's GPU: what `cleave calibrate` measures besides the
// programs of models.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "graph/op.h"

namespace cleave {

struct GpuFacts {
  std::string name;
  double memory = 0;  // bytes
  int64_t multiprocessors = 0;
};

class KernelTimer {
 public:
  // What each figure takes: `settle` seconds of the same work without a pause, after which clock
  // and power are those of training, and then `measure` seconds. Throws Error when there is no GPU
  // that Cleave's kernels run on.
  KernelTimer(double settle, double measure);
  ~KernelTimer();

  GpuFacts facts() const;

  struct Figure {
    double seconds = 0, flops = 0, bytes = 0;
  };
  // The op on random operands of these types, which lie densely.
  Figure time(const OpDef& op, std::string_view factors, const Attrs& attrs,
              const std::vector<TensorType>& in, bool tf32 = false);
  // A copy of so many bytes on the device; from or to pinned memory of the host.
  double copy_seconds(int64_t bytes);
  double host_copy_seconds(int64_t bytes, bool to_device);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cleave
