#include "executor/tasks.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "graph/error.h"

namespace cleave {
namespace {

constexpr double kNotThere = std::numeric_limits<double>::quiet_NaN();

class Run {
 public:
  explicit Run(const StepTasks& tasks) : tasks_(tasks), slot_first_(tasks.slot_offsets()) {
    entries_.assign(slot_first_.back(), {kNotThere, -1});
    int32_t runs = 0;
    for (const StepTasks::Stage& stage : tasks.stages) {
      result_.first.push_back(runs);
      State state;
      state.next = state.segment_first = runs;
      state.streams.resize(static_cast<size_t>(stage.streams));
      states_.push_back(std::move(state));
      for (const StepTasks::Segment& s : stage.order)
        runs += static_cast<int32_t>(stage.lists[static_cast<size_t>(s.list)].tasks.size());
    }
    result_.first.push_back(runs);
    result_.runs.resize(static_cast<size_t>(runs));
  }

  StepRun run() {
    const size_t stages = states_.size();
    int32_t left = result_.first.back();
    while (left > 0) {
      int32_t done = 0;
      for (size_t s = 0; s < stages; ++s) done += advance(s);
      for (size_t s = stages; s-- > 0;) done += advance(s);
      CLEAVE_ASSERT(done > 0, "{} tasks of {} stages wait for one another", left, stages);
      left -= done;
    }
    for (const TaskRun& r : result_.runs) result_.seconds = std::max(result_.seconds, r.end);
    return std::move(result_);
  }

 private:
  struct Entry {
    double at;
    int32_t run;
  };
  struct Stream {
    double free = 0;
    int32_t last = -1;  // run
  };
  struct State {
    size_t segment = 0;
    size_t task = 0;  // in the segment's list
    int32_t next = 0, segment_first = 0;
    std::vector<Stream> streams;
  };

  // Null: the micro-batch before the first.
  Entry* entry(SlotId slot, int32_t micro_batch, bool previous) {
    const auto s = static_cast<size_t>(slot);
    if (!tasks_.slot_of_each[s]) return &entries_[slot_first_[s]];
    const int32_t at = micro_batch - (previous ? 1 : 0);
    return at < 0 ? nullptr : &entries_[slot_first_[s] + static_cast<size_t>(at)];
  }

  // Runs what can be run of a stage now; how many tasks that was.
  int32_t advance(size_t s) {
    const StepTasks::Stage& stage = tasks_.stages[s];
    State& state = states_[s];
    const int32_t before = state.next;
    for (; state.segment < stage.order.size(); ++state.segment) {
      const StepTasks::Segment& segment = stage.order[state.segment];
      const TaskList& list = stage.lists[static_cast<size_t>(segment.list)];
      for (; state.task < list.tasks.size(); ++state.task, ++state.next) {
        if (!begin(list, segment.micro_batch, state)) return state.next - before;
      }
      state.task = 0;
      state.segment_first = state.next;
    }
    return state.next - before;
  }

  bool begin(const TaskList& list, int32_t micro_batch, State& state) {
    const Task& task = list.tasks[state.task];
    Stream& stream = state.streams[static_cast<size_t>(task.stream)];
    TaskRun run{stream.free, 0, stream.last};
    for (const int32_t n : list.needs_of(state.task)) {
      const int32_t r = state.segment_first + n;
      const double end = result_.runs[static_cast<size_t>(r)].end;
      if (end > run.start) run.start = end, run.cause = r;
    }
    for (const SlotWait& w : list.waits_of(state.task)) {
      const Entry* e = entry(w.slot, micro_batch, w.previous);
      if (e == nullptr) continue;
      if (std::isnan(e->at)) return false;
      if (e->at > run.start) run.start = e->at, run.cause = e->run;
    }
    run.end = run.start + task.seconds;
    stream = {run.end, state.next};
    for (const SlotId slot : list.sets_of(state.task)) {
      *entry(slot, micro_batch, task.previous) = {run.end, state.next};
    }
    result_.runs[static_cast<size_t>(state.next)] = run;
    return true;
  }

  const StepTasks& tasks_;
  const std::vector<size_t> slot_first_;
  std::vector<Entry> entries_;
  std::vector<State> states_;
  StepRun result_;
};

template <class T>
std::span<const T> part(const std::vector<T>& all, int32_t begin, int32_t end) {
  return std::span(all).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
}

}  // namespace

void TaskList::add(Task task) {
  task.needs_end = static_cast<int32_t>(needs.size());
  task.waits_end = static_cast<int32_t>(waits.size());
  task.sets_end = static_cast<int32_t>(sets.size());
  tasks.push_back(task);
}

std::span<const int32_t> TaskList::needs_of(size_t task) const {
  return part(needs, task == 0 ? 0 : tasks[task - 1].needs_end, tasks[task].needs_end);
}
std::span<const SlotWait> TaskList::waits_of(size_t task) const {
  return part(waits, task == 0 ? 0 : tasks[task - 1].waits_end, tasks[task].waits_end);
}
std::span<const SlotId> TaskList::sets_of(size_t task) const {
  return part(sets, task == 0 ? 0 : tasks[task - 1].sets_end, tasks[task].sets_end);
}

std::vector<size_t> StepTasks::slot_offsets() const {
  std::vector<size_t> offsets = {0};
  for (const bool each : slot_of_each) {
    offsets.push_back(offsets.back() + (each ? static_cast<size_t>(micro_batches) : 1));
  }
  return offsets;
}

SlotId StepTasks::add_slot(bool of_each_micro_batch) {
  slot_of_each.push_back(of_each_micro_batch);
  return static_cast<SlotId>(slot_of_each.size() - 1);
}

StepRun run_tasks(const StepTasks& tasks) { return Run(tasks).run(); }

}  // namespace cleave
