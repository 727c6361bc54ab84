// What a box says: names, shares of the work, and the values it reads and makes.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"
#include "planner/plan.h"
#include "viz/annotations.h"
#include "viz/picture.h"
#include "viz/units.h"

namespace cleave {

class Captions {
 public:
  // All must outlive the object. `plan`: null: none.
  Captions(const Graph& graph, const Plan* plan, const Annotations& notes, const Units& units,
           ViewLevel level);

  // "[8, 1024] → [8, 128]": whole, and on one device where that differs.
  std::string shape_text(Value v) const;
  ValueLine line(const std::string& name, Value v) const;
  // Whether the value is a parameter, is made of parameters alone, or is a gradient that only the
  // update reads, in the end: pictures show those in the boxes of the ops that need them.
  bool of_weights(Value v) const { return of_weights_[static_cast<size_t>(v)]; }
  // Title, notes and values of a unit. `main`: the nodes whose last results the box shows.
  Box box_of(int32_t unit, const std::vector<NodeId>& main) const;
  // The optimizer's box: what it updates, together.
  Box update_box(const GraphUnit& unit) const;

 private:
  std::string title_of(const GraphUnit& u, const std::string& ops) const;
  void add_parameters(Box& box, const GraphUnit& u) const;
  Box compact(Box box) const;
  std::vector<Value> parameters_of(const GraphUnit& u) const;
  std::string parameter_name(const GraphUnit& u, Value v) const;
  std::string ops_of(const GraphUnit& u) const;
  std::vector<Value> results_of(int32_t unit, const std::vector<NodeId>& main, Phase reader) const;
  void add_results(Box& box, const std::string& name, const std::vector<Value>& values) const;

  const Graph& graph_;
  const Plan* plan_;
  const Annotations& notes_;
  const Units& units_;
  const ViewLevel level_;
  std::vector<std::vector<NodeId>> readers_;  // by value
  std::vector<bool> of_weights_;              // by value
  double total_ = 0;                          // flops
};

}  // namespace cleave
