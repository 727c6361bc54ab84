// A family: a node and the nodes that follow it (its backward), which share one iteration space and
// are split alike. Families of the same kind (op, factors, sizes, pins) share everything computed
// here, so that repeated layers cost as much as one.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "planner/cluster.h"
#include "planner/dimensions.h"
#include "planner/expansion.h"
#include "planner/made_once.h"
#include "planner/redistribution.h"

namespace cleave {

// What may be split on one mesh axis.
enum class AxisRole : uint8_t {
  kAny,    // any class
  kData,   // "dp": the batch, or nothing
  kInner,  // "tp": a class that lives inside layers or at the model's ends. Where an op contracts,
           // not the batch, nor the sequence, nor the width (the classes of the values that pass
           // from one repeated layer to the next); elsewhere the sequence too, which follows.
  kContext,  // "cp": the sequence, or nothing
  kExpert,   // "ep": the batch; or a class inside layers that is looked up by index, as experts are
};

// "any", "dp", "tp", "cp", "ep".
std::string_view name_of(AxisRole role);
std::optional<AxisRole> role_named(std::string_view name);

// How one family uses one mesh axis.
struct AxisOption {
  enum class Kind : uint8_t {
    kReplicate,
    kPartialLeader,     // the leader passes partial sums through; its followers are not split
    kPartialFollowers,  // the followers pass partial sums through; the leader is not split
    kFactor,            // the factor with this letter (a small one) is split at this atom
    kRing,  // the same, and so is the factor that OpDef::merges names: what carries that one passes
            // from rank to rank, and each rank sees one part of it after the other
  };
  Kind kind = Kind::kReplicate;
  char letter = 0;
  int8_t atom = 0;
  bool operator==(const AxisOption&) const = default;
};

// One member under one choice.
struct MemberSplit {
  struct OnAxis {
    int8_t factor = -1;  // of the member's signature; -1: not split
    int8_t atom = 0;
    bool partial = false;
    bool expanded = false;  // the factor is whole: OpDef::split writes the op out
    int8_t ring = -1;       // the factor whose parts pass round; -1: none
    bool operator==(const OnAxis&) const = default;
  };
  std::vector<OnAxis> axes;
  std::vector<Placements> inputs, outputs;  // what it needs and what it makes
  double seconds = 0;                       // compute and inner collectives
  std::vector<Step> inner;                  // the collectives inside an expansion
};

struct FamilyKind {
  std::vector<std::vector<AxisOption>> choices;   // by choice, axis
  std::vector<std::vector<MemberSplit>> members;  // by member, choice
  std::vector<double> seconds;                    // by choice: sum over the members
};

struct Family {
  std::vector<NodeId> members;  // ascending; the first is the leader
  int32_t kind = -1;
};

// What restricts the choices: the role of each axis, and classes with a meaning.
struct Restrictions {
  std::vector<AxisRole> roles;  // one an axis
  ClassId batch = -1, sequence = -1;
  std::vector<ClassId>
      width;  // carried from one repeated layer to the next; batch and sequence not
  std::vector<ClassId> indexed;  // by class: ascending; of indexed factors; the same ones not
};

class Families {
 public:
  Families(const Graph& graph, const Dimensions& dimensions, const Cluster& cluster,
           const Mesh& mesh, Restrictions restrictions);

  const std::vector<Family>& all() const { return families_; }
  int32_t family_of(NodeId n) const { return family_of_[static_cast<size_t>(n)]; }
  // The node's place among its family's members.
  int32_t member_of(NodeId n) const { return member_of_[static_cast<size_t>(n)]; }
  const FamilyKind& kind(int32_t k) const { return kinds_[static_cast<size_t>(k)]; }
  const FamilyKind& kind_of(NodeId n) const {
    return kind(families_[static_cast<size_t>(family_of(n))].kind);
  }
  // Whether the node depends on the step's data; parameters, and what is made of them alone, do
  // not.
  bool reads_data(NodeId n) const { return reads_data_[static_cast<size_t>(n)]; }

 private:
  std::string key(const Family& family) const;
  FamilyKind build(const Family& family) const;
  std::vector<AxisOption> options(const Family& family, size_t axis) const;
  std::optional<MemberSplit> split(NodeId n, bool leader,
                                   const std::vector<AxisOption>& choice) const;
  bool set_placements(NodeId n, MemberSplit& s) const;
  bool set_seconds(NodeId n, MemberSplit& s) const;
  bool set_ring(NodeId n, const AxisOption& option, MemberSplit::OnAxis& on) const;
  double unbalanced(NodeId n, const MemberSplit& s) const;
  void add_ring_seconds(NodeId n, size_t axis, const std::vector<int64_t>& extents,
                        const std::vector<TensorType>& in, const std::vector<TensorType>& out,
                        MemberSplit& s) const;
  bool expanded_seconds(NodeId n, MemberSplit& s) const;
  bool allowed(NodeId leader, size_t axis, ClassId c) const;
  // Whether the family works on parameters, gradients and states rather than on the step's data.
  bool keeps_state(NodeId leader) const;
  // On more than two axes, what is kept is spread over those of the data together or not at all.
  bool sensible(NodeId leader, const std::vector<AxisOption>& choice) const;

  const Graph& graph_;
  const Dimensions& dims_;
  const Cluster& cluster_;
  const Mesh& mesh_;
  Restrictions restrictions_;
  std::vector<Family> families_;
  std::vector<int32_t> family_of_, member_of_;
  std::vector<bool> leads_;       // by node: its family's first, or computes that again
  std::vector<bool> reads_data_;  // by node: depends on the step's data
  std::vector<bool> untied_;      // by node: follows one made_once, in a family of its own
  std::vector<Adding> adding_;    // by node
  std::vector<FamilyKind> kinds_;
};

// Whether the op reduces a factor that can be split: a matrix product, a table look-up, a sum.
// Norms and the like, which need a dimension whole, do not count.
bool contracts(const Node& node);

// Where in an operand the atom of a factor lies: the index among the value's atoms, or -1 when the
// operand does not carry the factor.
int atom_in_operand(const OperandDims& dims, const std::vector<ValueAtom>& atoms,
                    const std::vector<std::vector<Atom>>& factors, int factor, int atom);

}  // namespace cleave
