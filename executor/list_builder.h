// Writes the task lists of one stage: which instruction is issued when, on which stream, and after
// what.
#pragma once

#include <deque>
#include <map>
#include <vector>

#include "executor/instr_costs.h"
#include "executor/program_flow.h"
#include "executor/task_lists.h"

namespace cleave {

// What all stages' lists are made from.
struct ListSources {
  const Program& program;
  const Cluster& cluster;
  const TimelineOptions& options;
  const ProgramFlow& flow;
  const InstrCosts& costs;
};

class ListBuilder {
 public:
  // All must outlive it; lists are added to the stage, slots to the step, those of messages by
  // their transfers to `messages`.
  ListBuilder(const ListSources& from, std::map<NodeId, SlotId>& messages, StepTasks& step,
              StepTasks::Stage& stage);

  // The list of a part's run; -1: there is nothing to do. Runs must come in the order in which the
  // stage does them: what is reduced in buckets goes from the last micro-batch's units to the
  // update.
  int32_t list_of(const PartRun& run);
  // Completes the lists.
  void finish();

 private:
  struct Place {
    int32_t list = -1, task = -1;
  };
  // What a task starts after: the last of each stream, and entries of other lists.
  struct Needs {
    std::vector<int32_t> on_stream;
    std::vector<SlotWait> waits;
  };
  struct Delayed {
    int32_t instr = -1;
    bool previous = false;
    double bytes = 0;
  };
  struct Ahead {
    int32_t instr = -1;
    int32_t before = -1;  // issued before this instruction; -1: at once
  };
  struct Buckets {
    std::vector<bool> in;       // by pair: it is in one
    std::vector<size_t> open;   // pairs of the one that is being filled
    double size = 0, sent = 0;  // bytes
    size_t left = 0;            // pairs
    int32_t closed = 0;
  };

  const Instr& instr(int32_t i) const { return p_.instrs[static_cast<size_t>(i)]; }
  TensorId root(TensorId t) const { return flow_.root[static_cast<size_t>(t)]; }
  int32_t part(int32_t i) const { return flow_.part[static_cast<size_t>(i)]; }
  bool in_update(int32_t i) const { return flow_.in_update(i); }
  bool is_bundle(int32_t i) const { return instr(i).bundled && instr(i).out.size() > 1; }
  bool is_placed(int32_t i) const;
  TaskList& list(int32_t l) { return stage_.lists[static_cast<size_t>(l)]; }
  double local_bytes(TensorId t) const;
  std::vector<Ahead> find_ahead(const ProgramPart& part) const;

  int32_t in_program_order(int32_t part);
  int32_t update(int32_t part);
  int32_t pass_list(int32_t part, bool carry_in, bool carry_out, bool is_last);
  void begin_list(int32_t part, bool is_last);
  void end_pass(bool carry_out);
  void join();
  void issue(int32_t i);

  Needs no_needs() const;
  void require(Needs& needs, TensorId t, int32_t reader, bool previous);
  void require_memory(Needs& needs, int32_t i, TensorId out);
  bool is_there(TensorId t, int32_t reader) const;
  int32_t emit(Task task, const Needs& needs);
  void place(int32_t i, bool previous = false, bool anchored = false);
  void place_ahead(int32_t i, bool anchored);
  void made(TensorId t);
  void try_collective(int32_t i, TensorId t);
  void add_pair(int32_t i, size_t pair);
  void close(int32_t i);
  void close_all();
  void delay(int32_t i);
  void issue_oldest();

  const Program& p_;
  const Cluster& cluster_;
  const TimelineOptions& options_;
  const ProgramFlow& flow_;
  const InstrCosts& costs_;
  std::map<NodeId, SlotId>& messages_;
  StepTasks& step_;
  StepTasks::Stage& stage_;

  struct UnitLists {
    int32_t first = -1, middle = -1;
    std::vector<int32_t> carried;  // instructions that one run leaves to the next
  };
  std::map<int32_t, UnitLists> lists_;                         // by part
  std::vector<bool> is_last_;                                  // by list
  std::vector<std::vector<std::pair<int32_t, SlotId>>> sets_;  // by list: task, slot
  std::map<int32_t, SlotId> carry_slots_;                      // by instruction

  // Of the list being written.
  int32_t list_ = -1, part_ = -1, last_compute_ = -1;
  std::vector<int32_t> task_of_;  // by instruction: its last task in this list; -1: none yet
  std::deque<Delayed> delayed_;
  double delayed_bytes_ = 0;
  // Of all lists.
  std::vector<Place> where_;    // by tensor: the task that makes it
  std::vector<bool> finished_;  // by instruction of the update
  std::map<int32_t, Buckets> buckets_;
};

}  // namespace cleave
