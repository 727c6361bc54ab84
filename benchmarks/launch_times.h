// How long launches on a GPU take, one behind the other.
#pragma once

#include <cuda_runtime_api.h>

#include <utility>
#include <vector>

#include "executor/step_bench.h"
#include "kernels/cuda/check.h"

namespace cleave {

// The median in ms of launches by `launch()` on the stream, after some that are not timed.
template <class Launch>
double median_ms(const Launch& launch, cudaStream_t stream) {
  constexpr size_t kRuns = 31;
  std::vector<cudaEvent_t> events(kRuns + 1);
  for (cudaEvent_t& e : events) cuda_check(cudaEventCreate(&e));
  for (int i = 0; i < 5; ++i) launch();
  for (size_t i = 0; i <= kRuns; ++i) {
    cuda_check(cudaEventRecord(events[i], stream));
    if (i < kRuns) launch();
  }
  cuda_check(cudaStreamSynchronize(stream));
  std::vector<double> times;
  for (size_t i = 0; i < kRuns; ++i) {
    float ms = 0;
    cuda_check(cudaEventElapsedTime(&ms, events[i], events[i + 1]));
    times.push_back(static_cast<double>(ms));
  }
  for (cudaEvent_t e : events) cudaEventDestroy(e);
  return median(std::move(times));
}

}  // namespace cleave
