#include "executor/cuda/timed_graph.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "executor/cuda/captured_graph.h"
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

double seconds_in_graph(cudaStream_t stream, const Effort& effort,
                        const std::function<void()>& launch) {
  using Clock = std::chrono::steady_clock;
  std::array<Event, kRuns + 1> marks;
  const auto mark = [&](size_t i) { cuda_check(cudaEventRecord(marks[i].get(), stream)); };
  const auto between = [&](size_t i, size_t j) {
    cuda_check(cudaEventSynchronize(marks[j].get()));
    float milliseconds = 0;
    cuda_check(cudaEventElapsedTime(&milliseconds, marks[i].get(), marks[j].get()));
    return static_cast<double>(milliseconds) * 1e-3;
  };
  launch();
  mark(0), launch(), mark(1);
  const double once = std::max(between(0, 1), 1e-7);
  const auto copies =
      static_cast<int>(std::clamp(effort.measure / kRuns / once, kLeastCopies, kMostCopies));
  const CapturedGraph graph = captured(stream, [&] {
    for (int i = 0; i < copies; ++i) launch();
  });
  const auto run = [&] { cuda_check(cudaGraphLaunch(graph.get(), stream)); };
  const Clock::time_point begin = Clock::now();
  for (size_t i = 0; std::chrono::duration<double>(Clock::now() - begin).count() < effort.settle;
       ++i) {
    run(), mark(i % 2);
    if (i > 0) cuda_check(cudaEventSynchronize(marks[(i + 1) % 2].get()));  // one run ahead
  }
  mark(0);
  for (size_t i = 1; i <= kRuns; ++i) run(), mark(i);
  std::array<double, kRuns> seconds;
  for (size_t i = 0; i < kRuns; ++i) seconds[i] = between(i, i + 1) / copies;
  std::nth_element(seconds.begin(), seconds.begin() + kRuns / 2, seconds.end());
  return seconds[kRuns / 2];
}

}  // namespace cleave
