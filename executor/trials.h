// Which of several algorithms is the fastest for each of several tasks that run together, as the
// products of a training step do. All tasks are measured at once, round by round, each with another
// of its algorithms. What a round's clock was is found with the algorithms' times: power and
// temperature change it by more than good algorithms differ.
#pragma once

#include <cstddef>
#include <vector>

namespace cleave {

class Trials {
 public:
  // How many algorithms each task has, at least one. A task of one tells of the clock.
  explicit Trials(std::vector<size_t> algorithms);

  // So many that each algorithm is measured at least twice.
  size_t rounds() const { return rounds_; }
  // With which one a task runs in a round.
  size_t algorithm(size_t task, size_t round) const;
  // What it took: more than 0. Once for each task and round; a task may be left out of a round.
  void add(size_t task, size_t round, double seconds);

  // By task, the one of the least time; of one that was never measured, 0. By least squares of
  // log(seconds) = what the algorithm takes + what the round adds, where a task counts as much as
  // the time it takes.
  std::vector<size_t> fastest() const;

 private:
  struct Time {
    size_t task, round;
    double log_seconds;
  };
  std::vector<size_t> algorithms_;
  size_t rounds_;
  std::vector<Time> times_;
};

}  // namespace cleave
