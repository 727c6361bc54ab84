#include "kernels/cuda/fastest.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <vector>

#include "graph/error.h"
#include "kernels/cuda/check.h"

namespace cleave {
namespace {

// They take turns, each for a row of runs, so that all have the clock that the GPU's power leaves
// them. Run one by one, with a pause after each, others are the fastest: those that need the most
// power, by up to 12 % of a large product on an H100.
constexpr size_t kTurns = 5;          // of which the median counts
constexpr double kRowSeconds = 2e-3;  // that a row takes
constexpr double kLongestRow = 16;    // runs
// What runs before: so many times what one takes, up to a limit.
constexpr double kWarmRuns = 250, kWarmSeconds = 0.1;

class Event {
 public:
  Event() { cuda_check(cudaEventCreate(&event_)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  void record() const { cuda_check(cudaEventRecord(event_, nullptr)); }
  // Waits for the later one.
  double seconds_until(const Event& later) const {
    cuda_check(cudaEventSynchronize(later.event_));
    float milliseconds = 0;
    cuda_check(cudaEventElapsedTime(&milliseconds, event_, later.event_));
    return static_cast<double>(milliseconds) * 1e-3;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

size_t fastest(size_t count, const std::function<void(size_t)>& run, void* scratch,
               int64_t scratch_bytes) {
  CLEAVE_ASSERT(count > 0, "the fastest of none");
  if (count == 1) return 0;
  for (size_t i = 0; i < count; ++i) run(i);  // what happens the first time only
  std::vector<Event> marks(count + 1);
  marks[0].record();
  run(0);
  marks[1].record();
  const double once = std::max(marks[0].seconds_until(marks[1]), 1e-6);
  const auto row = static_cast<size_t>(std::clamp(kRowSeconds / once, 1.0, kLongestRow));
  const auto warm = static_cast<size_t>(std::min(kWarmRuns, kWarmSeconds / once));
  for (size_t r = 0; r < warm; ++r) run(0);
  std::vector<std::array<double, kTurns>> seconds(count);
  for (size_t turn = 0; turn < kTurns; ++turn) {
    // Something else keeps the GPU busy while the rows are queued: the host may take longer to
    // launch a short one than the GPU to run it.
    for (size_t r = 0; r < count * row; r += 4) {
      cuda_check(cudaMemsetAsync(scratch, 0, static_cast<size_t>(scratch_bytes), nullptr));
    }
    const auto nth = [&](size_t i) { return turn % 2 == 0 ? i : count - 1 - i; };
    marks[0].record();
    for (size_t i = 0; i < count; ++i) {
      for (size_t r = 0; r < row; ++r) run(nth(i));
      marks[i + 1].record();
    }
    for (size_t i = 0; i < count; ++i) {
      seconds[nth(i)][turn] = marks[i].seconds_until(marks[i + 1]);
    }
  }
  const auto middle = [](std::array<double, kTurns> s) {
    std::nth_element(s.begin(), s.begin() + kTurns / 2, s.end());
    return s[kTurns / 2];
  };
  const auto least =
      std::min_element(seconds.begin(), seconds.end(),
                       [&](const auto& a, const auto& b) { return middle(a) < middle(b); });
  return static_cast<size_t>(least - seconds.begin());
}

}  // namespace cleave
