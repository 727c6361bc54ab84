#include "cli/times_in_place.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "graph/error.h"

namespace cleave {

TimesInPlace times_in_place(StepBench& bench, double settle, int64_t recorded) {
  CLEAVE_ASSERT(recorded > 0, "the median of no steps");
  constexpr int64_t kLeastSteps = 5;  // the first of a row waits for its data
  constexpr double kBetween = 0.1;    // seconds of steps before each recorded one
  bench.recorded();                   // what is captured for it now makes no pause later
  const double about = std::max(median(bench.steps(kLeastSteps)), 1e-6);
  const auto steps = [&](double seconds) {
    return bench.steps(std::max(kLeastSteps, static_cast<int64_t>(std::ceil(seconds / about))));
  };
  steps(settle);
  const size_t instrs = bench.runtime().program().instrs.size();
  std::vector<double> all;
  std::vector<std::vector<double>> seconds(instrs);
  TimesInPlace times;
  times.launches.resize(instrs, 0);
  for (int64_t i = 0; i < recorded; ++i) {
    for (const double s : steps(std::min(settle, kBetween))) all.push_back(s);
    const StepResult step = bench.recorded();
    for (const InstrRun& run : step.runs.at(0)) {
      const auto at = static_cast<size_t>(run.instr);
      seconds[at].push_back(run.seconds);
      times.launches[at] = run.share;
    }
  }
  times.step = median(std::move(all));
  for (std::vector<double>& of : seconds) {
    times.seconds.push_back(of.empty() ? 0 : median(std::move(of)));
  }
  return times;
}

double recording_overhead(const TimesInPlace& times) {
  constexpr double kMost = 4e-6;
  const auto sum = [](const std::vector<double>& x) {
    return std::accumulate(x.begin(), x.end(), 0.0);
  };
  const double launches = sum(times.launches);
  if (launches == 0) return 0;
  return std::clamp((sum(times.seconds) - times.step) / launches, 0.0, kMost);
}

void take_off(TimesInPlace& times, double overhead) {
  for (size_t i = 0; i < times.seconds.size(); ++i) {
    double& seconds = times.seconds[i];
    seconds = std::max(seconds - overhead * times.launches[i], seconds / 2);
  }
}

}  // namespace cleave
