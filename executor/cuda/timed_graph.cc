#include "executor/cuda/timed_graph.h"

#include <algorithm>
#include <array>
#include <memory>
#include <type_traits>

#include "kernels/cuda/check.h"

namespace cleave {
namespace {

constexpr size_t kRuns = 5;                           // of the graph
constexpr double kLeastCopies = 4, kMostCopies = 64;  // of the launch in it

class Event {
 public:
  Event() { cuda_check(cudaEventCreate(&event_)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

double seconds_in_graph(cudaStream_t stream, double effort, const std::function<void()>& launch) {
  const Event begun, ended;
  const auto timed = [&](const auto& work) {
    cuda_check(cudaEventRecord(begun.get(), stream));
    work();
    cuda_check(cudaEventRecord(ended.get(), stream));
    cuda_check(cudaEventSynchronize(ended.get()));
    float milliseconds = 0;
    cuda_check(cudaEventElapsedTime(&milliseconds, begun.get(), ended.get()));
    return static_cast<double>(milliseconds) * 1e-3;
  };
  launch();
  const double once = std::max(timed(launch), 1e-7);
  const auto copies =
      static_cast<int>(std::clamp(effort / kRuns / once, kLeastCopies, kMostCopies));
  cudaGraph_t captured = nullptr;
  cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < copies; ++i) launch();
  cuda_check(cudaStreamEndCapture(stream, &captured));
  const std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, decltype(&cudaGraphDestroy)> graph(
      captured, &cudaGraphDestroy);
  cudaGraphExec_t made = nullptr;
  cuda_check(cudaGraphInstantiate(&made, captured, 0));
  const std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, decltype(&cudaGraphExecDestroy)>
      exec(made, &cudaGraphExecDestroy);
  std::array<double, kRuns> seconds;
  for (double& s : seconds) {
    s = timed([&] { cuda_check(cudaGraphLaunch(made, stream)); }) / copies;
  }
  std::nth_element(seconds.begin(), seconds.begin() + kRuns / 2, seconds.end());
  return seconds[kRuns / 2];
}

}  // namespace cleave
