// Changing where a value lies: the cheapest sequence of collectives and local cuts from any
// placement to any other.
#pragma once

#include <span>
#include <vector>

#include "planner/cluster.h"
#include "planner/mesh.h"

namespace cleave {

enum class StepKind : uint8_t { kAllReduce, kAllGather, kReduceScatter, kAllToAll, kSlice, kMask };
std::string_view name_of(StepKind kind);  // "all-reduce"
bool is_collective(StepKind kind);

// One change on one mesh axis.
struct Step {
  StepKind kind = StepKind::kAllReduce;
  int8_t axis = 0;
  Placement to;      // on that axis, after the step
  double bytes = 0;  // sent by one rank: ring all-reduce of N bytes over t ranks 2N(t-1)/t,
                     // all-gather and reduce-scatter N(t-1)/t, all-to-all of n local n(t-1)/t
  double seconds = 0;
};

// Seconds of a collective along one mesh axis that sends these bytes from each rank: what starting
// it takes, one latency for each of its ring's steps, and the bytes over the link's bandwidth.
double collective_seconds(StepKind kind, double bytes, int64_t ranks, const Link& link);

// All the placements that a value of one shape can take on one mesh, and the cheapest way between
// any two. Immutable; one object serves every value with the same atoms.
class PlacementSpace {
 public:
  // `partials`: the kinds of partial result that the value may be. `bundled`: many such values are
  // moved at once (gradients before the update), so that only bytes count and not the start of each
  // collective.
  PlacementSpace(const Cluster& cluster, const Mesh& mesh, std::vector<int64_t> atoms,
                 std::vector<int8_t> atom_dim, DType dtype, std::span<const Reduction> partials,
                 bool bundled);

  size_t size() const { return placements_.size(); }
  const Placements& at(size_t index) const { return placements_[index]; }
  int index_of(const Placements& p) const;  // -1: it does not divide
  int replicated() const { return replicated_; }
  bool has_partial(size_t index) const { return partial_[index]; }
  double local_bytes(size_t index) const { return local_bytes_[index]; }
  // Seconds from one placement to another; infinite when there is no way.
  double seconds(size_t from, size_t to) const { return seconds_[from * size() + to]; }
  // The steps of the cheapest way, fewest steps among equals.
  std::vector<Step> steps(size_t from, size_t to) const;

 private:
  void enumerate(std::span<const Reduction> partials);
  void find_ways(const Cluster& cluster, bool bundled);
  std::vector<Step> neighbours(size_t from, const Cluster& cluster, bool bundled,
                               std::vector<int32_t>& targets) const;

  Mesh mesh_;
  Layout layout_;  // placements unused
  DType dtype_;
  std::vector<Placements> placements_;
  std::vector<bool> partial_;
  std::vector<double> local_bytes_;
  int replicated_ = 0;
  std::vector<double> seconds_;    // from x to
  std::vector<int32_t> previous_;  // from x to: the placement before the last step
  std::vector<Step> last_step_;    // from x to
};

}  // namespace cleave
