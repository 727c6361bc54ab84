#include "executor/trials.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "graph/error.h"

namespace cleave {

Trials::Trials(std::vector<size_t> algorithms) : algorithms_(std::move(algorithms)), rounds_(0) {
  for (const size_t count : algorithms_) {
    CLEAVE_ASSERT(count > 0, "a task without an algorithm");
    rounds_ = std::max(rounds_, 2 * count);
  }
}

// Tasks go through their algorithms from different ones on, and back again, so that no round has
// the slow ones of all.
size_t Trials::algorithm(size_t task, size_t round) const {
  const size_t count = algorithms_[task], half = rounds_ / 2;
  const size_t step = round < half ? round + 3 * task : rounds_ - 1 - round + 5 * task + 1;
  return step % count;
}

void Trials::add(size_t task, size_t round, double seconds) {
  CLEAVE_ASSERT(seconds > 0 && round < rounds_, "{} s in round {}", seconds, round);
  times_.push_back({task, round, std::log(seconds)});
}

std::vector<size_t> Trials::fastest() const {
  constexpr int kSweeps = 50;  // each makes the rest of the error several times smaller
  std::vector<std::vector<double>> takes;
  for (const size_t count : algorithms_) takes.emplace_back(count, 0);
  std::vector<double> adds(rounds_, 0), weights(algorithms_.size(), 0);
  std::vector<size_t> runs(algorithms_.size(), 0);
  for (const Time& t : times_) weights[t.task] += std::exp(t.log_seconds), ++runs[t.task];
  for (size_t t = 0; t < weights.size(); ++t) {
    if (runs[t] > 0) weights[t] /= static_cast<double>(runs[t]);
  }
  std::vector<std::vector<size_t>> measured;
  for (const size_t count : algorithms_) measured.emplace_back(count, 0);
  for (const Time& t : times_) ++measured[t.task][algorithm(t.task, t.round)];
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    for (auto& of_task : takes) std::fill(of_task.begin(), of_task.end(), 0.0);
    for (const Time& t : times_) {
      const size_t a = algorithm(t.task, t.round);
      takes[t.task][a] +=
          (t.log_seconds - adds[t.round]) / static_cast<double>(measured[t.task][a]);
    }
    std::fill(adds.begin(), adds.end(), 0.0);
    std::vector<double> weight(rounds_, 0);
    for (const Time& t : times_) {
      adds[t.round] +=
          weights[t.task] * (t.log_seconds - takes[t.task][algorithm(t.task, t.round)]);
      weight[t.round] += weights[t.task];
    }
    for (size_t r = 0; r < rounds_; ++r) {
      if (weight[r] > 0) adds[r] /= weight[r];
    }
  }
  std::vector<size_t> best;
  for (size_t task = 0; task < algorithms_.size(); ++task) {
    size_t found = 0;
    double least = std::numeric_limits<double>::infinity();
    for (size_t a = 0; a < algorithms_[task]; ++a) {
      if (measured[task][a] == 0 || takes[task][a] >= least) continue;
      least = takes[task][a], found = a;
    }
    best.push_back(found);
  }
  return best;
}

}  // namespace cleave
