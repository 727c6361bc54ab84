// Every plan of a small graph, counted by docs/planner.md read anew: the planner's oracle. It
// shares with the planner only the families' choices and the prices of single ops and conversions.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "planner/family.h"
#include "planner/placement_problem.h"

namespace cleave::testing {

// Seconds of a way, and the bytes that it holds at the end of the forward.
struct Way {
  double seconds = 0;
  double bytes = 0;
};

// Where the space of plans ends.
struct SpaceRules {
  // Families that go the same way from one hand-out pay for it once, as the plan's steps do; the
  // search lets each pay.
  bool shared = false;
  // Values are held and handed out in any placement, not only where they are made or read.
  bool anywhere = false;
};

// All plans of a graph on a mesh whose axes have no roles. The graph must outlive it.
class BruteForce {
 public:
  BruteForce(const Graph& graph, const Cluster& cluster, const Mesh& mesh, SpaceRules rules = {});

  // How many ways there are to give each family one of its allowed choices.
  double assignments() const;
  const std::vector<bool>& once() const { return once_; }
  // Takes choices away at random until there are at most this many assignments.
  void restrict_to(double most, std::mt19937& random);
  // What makes find_plan keep to the allowed choices. Refers to this object.
  Preferences preferences() const;
  // Seconds of the best plan.
  double cheapest();
  // The plans that no other beats in both seconds and bytes, by ascending bytes.
  std::vector<Way> frontier();
  // The same costs as tables over the families' choices alone: for graphs too large to enumerate.
  MinSumProblem tables();

 private:
  // One family's reading of a value in one phase: it may need it in several placements.
  struct Reader {
    int family = -1;
    std::vector<std::vector<size_t>> needs;  // by choice, distinct
  };
  struct ValueRules {
    std::unique_ptr<PlacementSpace> plain, bundled;
    int producer = -1;               // family
    std::vector<size_t> made;        // by the producer's choice
    std::vector<Reader> readers[4];  // by phase; what is made of it once, when the step begins
    bool bundle[4] = {};             // likewise
    bool data = false, source = false, crosses = false, saved = false;
    bool once = false;              // made when the step begins, and held
    int outputs = 0;                // how many outputs of the graph it is
    Value next_of = kNoValue;       // the source whose next value it is
    std::vector<size_t> held;       // candidates; empty: read as it is produced
    std::vector<size_t> handed[4];  // candidates; empty: one reader, which takes it directly
    int lies_with = -1;  // a state that lies as this family, its only reader and writer, needs it
  };
  // Values whose costs depend on each other beyond the families: a source and its next value.
  struct Group {
    std::vector<Value> values;
    std::vector<int> families;
    std::vector<std::vector<Way>> memory;  // by the families' choices
  };
  using Parts = std::vector<const std::vector<Way>*>;                   // one a group
  using VisitPlan = std::function<void(const Parts&, double seconds)>;  // seconds of all ops
  using VisitWay = std::function<void(size_t held, const Way&)>;

  void describe(Value v, const Cluster& cluster, const Mesh& mesh);
  const std::vector<MemberSplit>& member(NodeId n) const;
  void add_reader(ValueRules& r, NodeId n, size_t operand);
  void find_held(Value v);
  bool lies_with_its_family(Value state) const;
  std::vector<size_t> source_forms(Value source) const;
  void group_values();
  void enumerate(const VisitPlan& visit);
  std::vector<Way> ways_of(const Group& g) const;
  bool matters(int family, const Group& g) const;
  void ways_of_value(Value v, size_t source_held, const VisitWay& visit) const;
  void find_once();
  // How often a step runs what belongs to this phase, or to these readers.
  double times(size_t readers) const;
  double times_of(NodeId n) const;
  double family_seconds(size_t family, size_t choice) const;
  double deliver(const ValueRules& r, size_t phase, size_t from, size_t out) const;
  std::optional<size_t> kept_form(const ValueRules& r, size_t handed) const;
  size_t chosen(int family) const {
    return static_cast<size_t>(choice_[static_cast<size_t>(family)]);
  }

  const Graph& graph_;
  const SpaceRules rules_;
  const Dimensions dims_;
  const Families families_;
  std::vector<bool> once_;                 // by node: run when the step begins
  std::vector<std::vector<int>> allowed_;  // by family: choices
  std::vector<ValueRules> values_;
  std::vector<Group> groups_;
  std::vector<int> choice_;  // by family: of the assignment at hand
};

}  // namespace cleave::testing
