// What each instruction takes in the middle of training steps: with the clock, the power and the
// caches that it has there.
#pragma once

#include <cstdint>
#include <vector>

#include "executor/step_bench.h"

namespace cleave {

struct TimesInPlace {
  double step = 0;  // seconds from one step to the next, the median
  // By instruction, the medians of recorded steps: 0 where it did not run.
  std::vector<double> seconds;
  std::vector<double> launches;  // its share of one, see InstrRun
};

// Of so many recorded steps of rank 0, with others between them, after steps for at least `settle`
// seconds. One micro-batch a step.
TimesInPlace times_in_place(StepBench& bench, double settle, int64_t recorded);

// What recording adds to the time of a launch: on a GPU the event at its end waits for all of it,
// some 2 us. The more launches for the time there are, the better it is known.
double recording_overhead(const TimesInPlace& times);
// Takes it off every launch, which keeps at least half of its seconds.
void take_off(TimesInPlace& times, double overhead);

}  // namespace cleave
