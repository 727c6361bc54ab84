#include "executor/timeline.h"

#include <algorithm>

#include "executor/lower.h"
#include "executor/timeline_memory.h"
#include "executor/typing.h"
#include "graph/error.h"

namespace cleave {
namespace {

constexpr size_t kManyRuns = 1'000'000;  // from which on matrices are worth making

size_t at(int32_t index) { return static_cast<size_t>(index); }

// What each stage does with its time.
class Accounts {
 public:
  Accounts(const Program& program, const StepTasks& tasks, const StepRun& run)
      : program_(program), tasks_(tasks), run_(run), exposed_(run.runs.size(), 0) {
    for (const StepTasks::Stage& stage : tasks.stages) {
      for (const StepTasks::Segment& segment : stage.order) {
        for (const Task& t : stage.lists[at(segment.list)].tasks) stream_.push_back(t.stream);
      }
    }
  }

  StageSeconds of_stage(int32_t s);
  // By run, of collectives and messages: while computation waited for it. Complete when all stages
  // are accounted for.
  const std::vector<double>& exposed() const { return exposed_; }

 private:
  double communicating(int32_t stage, double begin, double end, int32_t cause);

  const Program& program_;
  const StepTasks& tasks_;
  const StepRun& run_;
  std::vector<int32_t> stream_;  // by run
  std::vector<double> exposed_;
};

// Of [begin, end), after which runs what `cause` let begin: the seconds in which the stage's own
// collectives ran, one waiting for the other, or a message to it.
double Accounts::communicating(int32_t stage, double begin, double end, int32_t cause) {
  double seconds = 0;
  while (end > begin && cause >= 0) {
    const TaskRun& r = run_.runs[at(cause)];
    if (stream_[at(cause)] == kComputeStream) break;
    const double from = std::max(begin, r.start);
    const double own = std::max(0.0, std::min(end, r.end) - from);
    exposed_[at(cause)] += own;
    seconds += own;
    end = from;
    if (cause < run_.first[at(stage)] || cause >= run_.first[at(stage) + 1]) break;
    cause = r.cause;
  }
  return seconds;
}

StageSeconds Accounts::of_stage(int32_t s) {
  const StepTasks::Stage& stage = tasks_.stages[at(s)];
  StageSeconds result;
  double now = 0;  // what was before has been accounted for
  int32_t r = run_.first[at(s)], last = -1;
  const auto wait = [&](double until, int32_t cause) {
    if (until <= now) return;
    const double seconds = communicating(s, now, until, cause);
    result.communication += seconds;
    result.bubble += until - now - seconds;
    now = until;
  };
  for (const StepTasks::Segment& segment : stage.order) {
    for (const Task& task : stage.lists[at(segment.list)].tasks) {
      const int32_t own = r++;
      const TaskRun& t = run_.runs[at(own)];
      if (last < 0 || t.end > run_.runs[at(last)].end) last = own;
      if (task.stream != kComputeStream) {
        result.communicating += task.seconds;
        continue;
      }
      wait(t.start, t.cause);
      now = t.end;
      if (task.instr < 0) continue;
      const Instr& instr = program_.instrs[at(task.instr)];
      if (is_collective(instr.kind) || copies_with_host(program_, instr)) {  // nothing overlaps
        result.communication += task.seconds;
        result.communicating += task.seconds;
        exposed_[at(own)] = task.seconds;
      } else if (instr.part == Part::kUpdate) {
        result.optimizer += task.seconds;
      } else {
        result.compute += task.seconds;
      }
    }
  }
  // Its own collectives may end last; then it waits for the others.
  if (last >= 0) wait(run_.runs[at(last)].end, last);
  wait(run_.seconds, -1);
  return result;
}

std::vector<TimelineEvent> events_of(const StepTasks::Stage& stage, const StepRun& run,
                                     const std::vector<double>& exposed, int32_t first) {
  std::vector<TimelineEvent> events;
  int32_t r = first;
  for (const StepTasks::Segment& segment : stage.order) {
    for (const Task& task : stage.lists[at(segment.list)].tasks) {
      const int32_t own = r++;
      const TaskRun& t = run.runs[at(own)];
      if (task.instr < 0) continue;
      events.push_back({task.stream, task.instr, task.bucket,
                        segment.micro_batch - (task.previous ? 1 : 0), t.start, task.seconds,
                        exposed[at(own)]});
    }
  }
  return events;
}

}  // namespace

StepTimeline simulate_step(const Program& program, const Cluster& cluster,
                           const TimelineOptions& options, const Plan* plan) {
  const StepTasks tasks = step_tasks(program, cluster, options, plan);
  const StepRun run = run_tasks(tasks);
  Accounts accounts(program, tasks, run);
  StepTimeline result;
  result.seconds = run.seconds;
  for (size_t s = 0; s < tasks.stages.size(); ++s) {
    result.stages.emplace_back().seconds = accounts.of_stage(static_cast<int32_t>(s));
  }
  for (size_t s = 0; s < tasks.stages.size(); ++s) {
    StageTimeline& stage = result.stages[s];
    stage.events = events_of(tasks.stages[s], run, accounts.exposed(), run.first[s]);
    stage.memory =
        memory_of(program, tasks.stages[s], static_cast<int32_t>(s), stage.events, run.seconds);
    for (const MemoryPoint& p : stage.memory)
      stage.peak_bytes = std::max(stage.peak_bytes, p.bytes);
  }
  const auto least = std::min_element(
      result.stages.begin(), result.stages.end(),
      [](const auto& a, const auto& b) { return a.seconds.bubble < b.seconds.bubble; });
  result.critical = static_cast<int32_t>(least - result.stages.begin());
  return result;
}

double predicted_step_seconds(const Program& program, const Cluster& cluster,
                              const TimelineOptions& options, const Plan* plan) {
  const StepTasks tasks = step_tasks(program, cluster, options, plan);
  size_t runs = 0;
  for (const StepTasks::Stage& stage : tasks.stages) {
    for (const StepTasks::Segment& s : stage.order) runs += stage.lists[at(s.list)].tasks.size();
  }
  return runs < kManyRuns ? run_tasks(tasks).seconds : run_seconds(tasks);
}

TimelineOptions timeline_options(const Cluster& cluster) {
  return {.overlap = cluster.device.overlaps};
}

double predicted_step_seconds(const Graph& graph, const Plan& plan) {
  return predicted_step_seconds(lower_unplaced(graph, plan), plan.cluster,
                                timeline_options(plan.cluster), &plan);
}

}  // namespace cleave
