// The seconds of a step without every task's: a list that runs often becomes a matrix over (max,
// +), from when its streams are free and what it waits for is there, to when its streams are free
// again and what it sets is there.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "executor/tasks.h"
#include "graph/error.h"

namespace cleave {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();
constexpr double kNotThere = std::numeric_limits<double>::quiet_NaN();
constexpr size_t kOften = 32;  // runs of a list

// What a list needs from outside, and what it gives.
struct Ports {
  std::vector<SlotWait> waits;  // distinct
  std::vector<SlotId> sets;     // distinct
  // By place in the list's waits and sets: which of them.
  std::vector<int32_t> wait_of, set_of;
};

Ports ports_of(const TaskList& list) {
  Ports p;
  std::map<std::pair<SlotId, bool>, int32_t> waits;
  for (const SlotWait& w : list.waits) {
    const auto [at, is_new] =
        waits.emplace(std::pair(w.slot, w.previous), static_cast<int32_t>(p.waits.size()));
    if (is_new) p.waits.push_back(w);
    p.wait_of.push_back(at->second);
  }
  std::map<SlotId, int32_t> sets;
  for (const SlotId s : list.sets) {
    const auto [at, is_new] = sets.emplace(s, static_cast<int32_t>(p.sets.size()));
    if (is_new) p.sets.push_back(s);
    p.set_of.push_back(at->second);
  }
  return p;
}

// Runs a list: `free` by stream, `there` by wait; gives `free` after it and `set` by set.
void run_list(const TaskList& list, const Ports& ports, std::vector<double>& free,
              const std::vector<double>& there, std::vector<double>& set,
              std::vector<double>& ends) {
  ends.resize(list.tasks.size());
  set.assign(ports.sets.size(), kNever);
  size_t need = 0, wait = 0, sets = 0;
  for (size_t t = 0; t < list.tasks.size(); ++t) {
    const Task& task = list.tasks[t];
    double& stream = free[static_cast<size_t>(task.stream)];
    double start = stream;
    for (; need < static_cast<size_t>(task.needs_end); ++need)
      start = std::max(start, ends[static_cast<size_t>(list.needs[need])]);
    for (; wait < static_cast<size_t>(task.waits_end); ++wait)
      start = std::max(start, there[static_cast<size_t>(ports.wait_of[wait])]);
    ends[t] = stream = start + task.seconds;
    for (; sets < static_cast<size_t>(task.sets_end); ++sets)
      set[static_cast<size_t>(ports.set_of[sets])] = ends[t];
  }
}

class Seconds {
 public:
  explicit Seconds(const StepTasks& tasks) : tasks_(tasks), slot_first_(tasks.slot_offsets()) {
    entries_.assign(slot_first_.back(), kNotThere);
    for (const StepTasks::Stage& stage : tasks.stages) {
      State& state = states_.emplace_back();
      state.free.assign(static_cast<size_t>(stage.streams), 0);
      std::vector<size_t> runs(stage.lists.size(), 0);
      for (const StepTasks::Segment& s : stage.order) ++runs[static_cast<size_t>(s.list)];
      for (size_t l = 0; l < stage.lists.size(); ++l) {
        state.ports.push_back(ports_of(stage.lists[l]));
        state.matrices.emplace_back();
        if (runs[l] >= kOften)
          state.matrices[l] = matrix(stage.lists[l], state.ports[l], state.free.size());
      }
    }
  }

  // NaN: some list waits in its middle for what its own beginning lets another stage do.
  double run() {
    size_t left = 0;
    for (const StepTasks::Stage& stage : tasks_.stages) left += stage.order.size();
    while (left > 0) {
      size_t done = 0;
      for (size_t s = 0; s < states_.size(); ++s) done += advance(s);
      for (size_t s = states_.size(); s-- > 0;) done += advance(s);
      if (done == 0) return kNotThere;
      left -= done;
    }
    double seconds = 0;
    for (const State& state : states_)
      seconds = std::max(seconds, *std::max_element(state.free.begin(), state.free.end()));
    return seconds;
  }

 private:
  struct State {
    size_t next = 0;  // segment
    std::vector<double> free;
    std::vector<Ports> ports;                   // by list
    std::vector<std::vector<double>> matrices;  // by list: rows of what it gives; or empty
  };

  std::vector<double> matrix(const TaskList& list, const Ports& ports, size_t streams) {
    const size_t inputs = streams + ports.waits.size(), outputs = streams + ports.sets.size();
    std::vector<double> m(inputs * outputs, kNever);
    for (size_t i = 0; i < inputs; ++i) {
      std::vector<double> free(streams, kNever), there(ports.waits.size(), kNever);
      (i < streams ? free[i] : there[i - streams]) = 0;
      run_list(list, ports, free, there, set_, ends_);
      for (size_t o = 0; o < outputs; ++o)
        m[o * inputs + i] = o < streams ? free[o] : set_[o - streams];
    }
    return m;
  }

  size_t advance(size_t s) {
    const StepTasks::Stage& stage = tasks_.stages[s];
    State& state = states_[s];
    const size_t before = state.next;
    for (; state.next < stage.order.size(); ++state.next) {
      const StepTasks::Segment& segment = stage.order[state.next];
      const auto l = static_cast<size_t>(segment.list);
      const Ports& ports = state.ports[l];
      there_.clear();
      bool blocked = false;
      for (const SlotWait& w : ports.waits) {
        const double* e = entry(w.slot, segment.micro_batch, w.previous);
        blocked |= e != nullptr && std::isnan(*e);
        there_.push_back(e == nullptr ? kNever : *e);
      }
      if (blocked) break;
      if (state.matrices[l].empty()) {
        run_list(stage.lists[l], ports, state.free, there_, set_, ends_);
      } else {
        apply(state.matrices[l], state.free, ports.sets.size());
      }
      for (size_t i = 0; i < ports.sets.size(); ++i)
        *entry(ports.sets[i], segment.micro_batch, false) = set_[i];
    }
    return state.next - before;
  }

  void apply(const std::vector<double>& m, std::vector<double>& free, size_t sets) {
    const size_t streams = free.size(), inputs = streams + there_.size();
    in_.assign(free.begin(), free.end());
    in_.insert(in_.end(), there_.begin(), there_.end());
    set_.assign(sets, kNever);
    for (size_t o = 0; o < streams + sets; ++o) {
      double best = kNever;
      for (size_t i = 0; i < inputs; ++i) best = std::max(best, m[o * inputs + i] + in_[i]);
      (o < streams ? free[o] : set_[o - streams]) = best;
    }
  }

  // Null: the micro-batch before the first.
  double* entry(SlotId slot, int32_t micro_batch, bool previous) {
    const auto s = static_cast<size_t>(slot);
    if (!tasks_.slot_of_each[s]) return &entries_[slot_first_[s]];
    const int32_t at = micro_batch - (previous ? 1 : 0);
    return at < 0 ? nullptr : &entries_[slot_first_[s] + static_cast<size_t>(at)];
  }

  const StepTasks& tasks_;
  const std::vector<size_t> slot_first_;
  std::vector<double> entries_;
  std::vector<State> states_;
  std::vector<double> there_, set_, in_, ends_;  // scratch
};

}  // namespace

double run_seconds(const StepTasks& tasks) {
  const double seconds = Seconds(tasks).run();
  return std::isnan(seconds) ? run_tasks(tasks).seconds : seconds;
}

}  // namespace cleave
