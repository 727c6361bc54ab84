// What the devices of each stage do in one step, as tasks on streams, and when each task runs. One
// rank stands for its stage: all ranks of a stage do the same at the same time.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

namespace cleave {

// A result that a task of another list waits for, or of another stage, or of an earlier run of the
// same list: one a step, or one for each micro-batch.
using SlotId = int32_t;

struct SlotWait {
  SlotId slot = 0;
  bool previous = false;  // the entry of the micro-batch before; of the first one there is none
};

struct Task {
  int32_t stream = 0;
  double seconds = 0;
  int32_t instr = -1;     // of the stage's program; -1: it only waits
  int32_t bucket = -1;    // which part of an instruction that is done in several
  bool previous = false;  // put off: it belongs to the micro-batch before
  // Ends of its lists in the TaskList; they begin where the task before ends.
  int32_t needs_end = 0, waits_end = 0, sets_end = 0;
};

// In the order in which a rank issues them. A stream runs its tasks in this order, one at a time; a
// task starts when its stream is free, and what it needs and waits for is there.
struct TaskList {
  std::vector<Task> tasks;
  std::vector<int32_t> needs;   // earlier tasks of the list
  std::vector<SlotWait> waits;  // entries that must be there
  std::vector<SlotId> sets;     // entries that are there when the task ends

  // Adds a task; what it needs, waits for and sets is added to the last task.
  void add(Task task);
  void need(int32_t task) { needs.push_back(task), ++tasks.back().needs_end; }
  void wait(SlotWait wait) { waits.push_back(wait), ++tasks.back().waits_end; }
  void set(SlotId slot) { sets.push_back(slot), ++tasks.back().sets_end; }
  std::span<const int32_t> needs_of(size_t task) const;
  std::span<const SlotWait> waits_of(size_t task) const;
  std::span<const SlotId> sets_of(size_t task) const;
};

struct StepTasks {
  struct Segment {  // one run of a list
    int32_t list = 0;
    int32_t micro_batch = 0;
  };
  struct Stage {
    int32_t streams = 1;
    std::vector<TaskList> lists;
    std::vector<Segment> order;
    // By instruction and bucket: which of the instruction's pairs it moves.
    std::map<std::pair<int32_t, int32_t>, std::vector<size_t>> buckets;
  };
  std::vector<Stage> stages;
  int32_t micro_batches = 1;
  std::vector<bool> slot_of_each;  // by slot: one entry a micro-batch, not one a step

  SlotId add_slot(bool of_each_micro_batch);
  // By slot, its first entry when all slots' entries stand in a row; last, how many there are.
  std::vector<size_t> slot_offsets() const;
};

struct TaskRun {
  double start = 0, end = 0;
  // The run whose end it started at: what it waited for last, or the one before on its stream. -1:
  // it started at 0.
  int32_t cause = -1;
};

// All runs of a stage in the order of issue, stage after stage.
struct StepRun {
  double seconds = 0;          // until the last task ends
  std::vector<TaskRun> runs;   // empty when only the seconds were asked for
  std::vector<int32_t> first;  // by stage: its first run; one more: the number of runs
};

// Each task once, in one pass. Throws InternalError when the stages wait for one another.
StepRun run_tasks(const StepTasks& tasks);
// StepRun::seconds alone, in time that hardly grows with the micro-batches.
double run_seconds(const StepTasks& tasks);

}  // namespace cleave
