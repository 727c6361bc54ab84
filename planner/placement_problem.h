// The choice of a split as a min-sum problem: one variable for each family of nodes, and for each
// value that several read, variables for the form in which it is held and handed out.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "graph/graph.h"
#include "planner/elimination.h"
#include "planner/family.h"
#include "planner/plan.h"
#include "planner/redistribution.h"

namespace cleave {

// Extra cost of choices: how users' pins, loaded plans and tests steer the search. Infinite
// forbids.
struct Preferences {
  std::function<double(NodeId leader, const std::vector<AxisOption>&)> choice;
  std::function<double(Value, const Placements&)> held;
  // The states that lie in the host's memory (can_be_offloaded holds for them); null: none.
  std::function<bool(const Source&)> on_host;
  bool empty() const { return !choice && !held; }
};

// The groups of a costing. What it refers to must outlive the problem.
struct Grouping {
  std::span<const int32_t> of_node;   // empty: one group
  std::span<const int32_t> of_value;  // empty: where it is made; of sources, where first read
  std::span<const NodeId> twins;      // by node: one before it that is split alike; kNoNode: none
  std::span<const int32_t> pieces;    // by node: of the model, for MemoryPrice::split; empty: 0
  // Whether what is kept for the backward is a choice of its own, rather than what is cheaper under
  // the costing.
  bool explicit_keeping = false;
};

// A value's way from its producer to its readers:
//
//   produced --> held --> handed out in the forward  --> each reader's need
//                    \--> handed out in the backward --> each reader's need
//                    \--> the update's needs
//
// `held` exists when several families, or several phases, read the value; a hand-out when several
// families of one phase do. What the backward hands out is made from the held form, or from what
// the forward handed out when keeping that is cheaper.
class PlacementProblem {
 public:
  // Everything referred to must outlive the problem.
  PlacementProblem(const Graph& graph, const Dimensions& dimensions, const Families& families,
                   const Cluster& cluster, const Mesh& mesh, const Grouping& grouping,
                   const Costing& costing, const Preferences& preferences);

  const MinSumProblem& problem() const { return problem_; }
  // The nodes' and values' part of a plan that a solution means; costs are summed again from its
  // steps into predicted.step_seconds (and compute/communication).
  void read_solution(std::span<const int32_t> choice, Plan& plan) const;

 private:
  using Indices = std::vector<int32_t>;  // by choice of a variable: a placement of a space

  // A variable seen from one value: for each of its choices, a placement.
  struct End {
    int32_t variable = -1;              // -1: a constant
    std::vector<const Indices*> needs;  // several when a family reads a value in several operands
  };
  struct Space {
    std::unique_ptr<PlacementSpace> plain, bundled;
  };
  struct Use {
    NodeId node = kNoNode;
    int32_t operand = 0;
  };
  // The readers of a value in one phase, or what is made of it when the step begins.
  struct Readers {
    std::vector<Use> uses;
    std::vector<End> ends;  // one a family
    int32_t hand_out = -1;  // variable; -1: at most one family reads
    const Indices* hand_out_forms = nullptr;
  };
  struct ValueWays {
    int32_t space = -1;
    End producer;
    bool data = false;         // replicated on the host: any form is a slice away
    bool source = false;       // a parameter, state or accumulator
    bool accumulated = false;  // the next value of an accumulator: held as it is made
    bool saved = false;        // priced: held from the forward to the backward
    bool once = false;         // made when the step begins
    bool lasts = false;        // once, and held for micro-batches that read it
    int32_t held = -1;         // variable; -1: the readers take it as produced
    int32_t keep = -1;         // variable: 1: what the forward handed out is kept; -1: the cheaper
    const Indices* held_forms = nullptr;
    Readers readers[4];             // by phase; what is made once a step (kBegin)
    std::vector<End> fixed;         // outputs, replicated, then a held form for each of final_of
    std::vector<int32_t> final_of;  // the sources whose next value this is
  };

  void collect_uses();
  void add_families(const Preferences& preferences);
  void join_finals();
  void add_readers(Value v);
  void add_held(Value v, const Preferences& preferences);
  bool lies_with_its_family(Value v) const;
  End only_reader(Value v) const;
  void add_ways(Value v);
  void add_state_price(Value v, const ValueWays& w);
  void add_backward_term(Value v, ValueWays& w);
  bool lies_on_host(Value v) const;
  int32_t space_for(Value v);
  // For each axis, a bit for each atom of the value that some choice of its families splits there.
  std::vector<uint32_t> splits_of(Value v);
  const std::vector<uint32_t>& operand_splits(NodeId node, int32_t operand, bool output);
  // A whole, replicated placement: what outputs and data are.
  const Indices* replicated_in(int32_t space);
  End end_of(NodeId node, int32_t operand, bool output, int32_t space);
  const Indices* placements_of(int32_t kind, int32_t member, int32_t operand, bool output,
                               int32_t space);
  const Indices* candidates(const ValueWays& w, const std::vector<End>& ends);
  int32_t add_variable(size_t domain);
  void add_term(std::vector<int32_t> variables, std::shared_ptr<const CostTable> table);
  // Cost of making every distinct need of `to` from `from`'s placement.
  void add_conversion(Value v, const End& from, const End& to, Phase phase, bool bundled);
  double conversion(int32_t space, bool bundled, int32_t from, const End& to, size_t choice) const;
  // By choice of `from` (rows) and of `to`; each made once.
  const std::vector<double>& conversions(int32_t space, bool bundled, const Indices* from,
                                         const End& to);
  End held_end(const ValueWays& w) const;
  End handed_out(const Readers& r) const;
  const PlacementSpace& space(int32_t s, bool bundled) const {
    return bundled ? *spaces_[static_cast<size_t>(s)].bundled
                   : *spaces_[static_cast<size_t>(s)].plain;
  }
  // Seconds a byte: of what is kept for the backward, or of a parameter or state itself.
  double price_of(Value v, bool kept) const;
  // How often the costing counts what happens to this value in this phase.
  double runs(Value v, Phase phase) const {
    return costing_.runs[static_cast<size_t>(group_of_value_[static_cast<size_t>(v)])]
                        [static_cast<size_t>(phase)];
  }
  double runs_of(NodeId n) const {
    const bool sends = graph_.node(n).op->transfer && !costing_.sends.empty();
    return (sends ? costing_.sends
                  : costing_.runs)[static_cast<size_t>(group(n))][static_cast<size_t>(phase_of(n))];
  }
  // What is sent or made once a step counts with the update, and so does bringing it what it reads.
  Phase phase_of(NodeId n) const {
    return once_[static_cast<size_t>(n)] ? Phase::kUpdate : graph_.node(n).phase;
  }
  static constexpr size_t kBegin = 3;
  size_t readers_of(NodeId n) const {
    return once_[static_cast<size_t>(n)] ? kBegin : static_cast<size_t>(graph_.node(n).phase);
  }
  static Phase phase_of_readers(size_t readers) {
    return readers == kBegin ? Phase::kUpdate : static_cast<Phase>(readers);
  }
  int32_t group(NodeId n) const {
    return grouping_.of_node.empty() ? 0 : grouping_.of_node[static_cast<size_t>(n)];
  }
  void find_groups();
  GroupLoad& load(Value v, Plan& plan) const {
    return plan.loads[static_cast<size_t>(group_of_value_[static_cast<size_t>(v)])];
  }
  // When what a graph output needs is made: after the last micro-batch.
  Phase output_phase(Value v) const;
  // Seconds of all members of a family in one step, by choice.
  double family_seconds(const Family& family, size_t choice) const;
  // `readers`: an index of ValueWays::readers.
  bool is_bundled(const ValueWays& w, Value v, size_t readers) const;
  std::shared_ptr<const CostTable> table_for(const std::string& key, std::vector<int32_t> sizes,
                                             const std::function<void(std::vector<double>&)>& fill);
  std::shared_ptr<const CostTable> memoised(const std::string& key, std::vector<int32_t> sizes,
                                            const std::function<double(const int32_t*)>& cost);

  int32_t form_for(std::span<const int32_t> choice, Value v, const End& end, size_t need,
                   int32_t from, Phase phase, bool bundled, bool paid, Plan& plan) const;
  void read_value(std::span<const int32_t> choice, Value v, Plan& plan) const;
  void read_phase(std::span<const int32_t> choice, Value v, size_t phase, int32_t held,
                  int32_t& forward_form, Plan& plan) const;
  const Graph& graph_;
  const Dimensions& dims_;
  const Families& families_;
  const Cluster& cluster_;
  const Mesh& mesh_;
  Grouping grouping_;
  std::vector<bool> once_;  // by node, see made_once
  std::vector<int32_t> group_of_value_, piece_of_value_;
  std::vector<int32_t> variable_of_;  // by family
  const Costing& costing_;
  MinSumProblem problem_;
  std::vector<ValueWays> ways_;                  // by value
  std::vector<std::vector<Use>> uses_;           // by value
  std::vector<std::vector<Value>> one_as_next_;  // by value: those that are one state over time
  std::vector<int64_t> unpriced_;                // by storage: elements not priced yet
  std::vector<Space> spaces_;
  std::map<std::string, int32_t> space_named_;
  // By kind, member, operand, whether it is an output.
  std::map<std::tuple<int32_t, int32_t, int32_t, bool>, std::vector<uint32_t>> operand_splits_;
  std::map<std::vector<int64_t>, std::unique_ptr<Indices>> indices_;
  std::unordered_map<std::string, std::shared_ptr<const CostTable>> tables_;
  std::unordered_map<std::string, std::vector<double>> conversions_;  // see conversions()
  std::vector<bool> on_host_;                                         // by source
};

}  // namespace cleave
