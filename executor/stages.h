// Which instructions of a pipeline's program a node becomes: its chunk, the part of the step, and
// where in it values are sent.
#pragma once

#include <cstdint>
#include <vector>

#include "executor/program.h"
#include "planner/plan.h"

namespace cleave {

struct SectionItem {
  NodeId node = kNoNode;
  bool sends = false;  // the sender's half of a transfer
};

// A part of a chunk (once a step: of a stage), with its nodes in the order in which they run.
struct Section {
  Part part = Part::kForward;
  int32_t chunk = 0;
  bool ends_pass = false;      // the last of a chunk that each of several micro-batches runs
  bool begins_update = false;  // what was made before is brought together first
  std::vector<SectionItem> items = {};
};

class Stages {
 public:
  Stages(const Graph& graph, const Plan& plan);

  const Schedule& schedule() const { return schedule_; }
  // In the order of the program's instructions: what begins the step; forward, backward and, of
  // schedules that have them, weight gradients, chunk by chunk; the updates.
  const std::vector<Section>& sections() const { return sections_; }

  int32_t chunk_of(NodeId n) const {
    return schedule_.stages == 1 ? 0 : plan_.pipeline.chunk_of[static_cast<size_t>(n)];
  }
  // -1: data, which lie wherever they are read.
  int32_t chunk_of_value(Value v) const;
  // Whether the node is a transfer from another chunk.
  bool receives(NodeId n) const;
  // Whether what the node makes is made when the step begins.
  bool is_begun(NodeId n) const { return begun_[static_cast<size_t>(n)]; }

 private:
  void one_stage();
  void pipeline();
  std::vector<bool> awaited_backward() const;
  Part part_of(NodeId n, const std::vector<bool>& awaited) const;

  const Graph& graph_;
  const Plan& plan_;
  Schedule schedule_;
  std::vector<int32_t> source_chunks_;
  std::vector<bool> begun_;  // by node: made_once
  std::vector<Section> sections_;
};

}  // namespace cleave
