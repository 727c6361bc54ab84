// Changing where a value lies: the cheapest sequence of collectives and local cuts from any
// placement to any other.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "planner/cluster.h"
#include "planner/cost.h"
#include "planner/mesh.h"

namespace cleave {

// One change on one mesh axis.
struct Step {
  StepKind kind = StepKind::kAllReduce;
  int8_t axis = 0;
  Placement to;      // on that axis, after the step
  double bytes = 0;  // sent by one rank: ring all-reduce of N bytes over t ranks 2N(t-1)/t,
                     // all-gather and reduce-scatter N(t-1)/t, all-to-all of n local n(t-1)/t,
                     // shift n
  double seconds = 0;
};

// All the placements that a value of one shape can take on one mesh, and the cheapest way between
// any two. One object serves every value with the same atoms. Ways are found when they are asked
// for: not to be shared between threads.
class PlacementSpace {
 public:
  // `partials`: the kinds of partial result that the value may be. `bundled`: many such values are
  // moved at once (gradients before the update), so that only bytes count and not the start of each
  // collective. `splits`: for each axis, a bit for each atom that may be split there; empty: all.
  PlacementSpace(const Cluster& cluster, const Mesh& mesh, std::vector<int64_t> atoms,
                 std::vector<int8_t> atom_dim, DType dtype, std::span<const Reduction> partials,
                 bool bundled, std::span<const uint32_t> splits = {});

  size_t size() const { return placements_.size(); }
  const Placements& at(size_t index) const { return placements_[index]; }
  int index_of(const Placements& p) const;  // -1: it does not divide, or is not of the space
  int replicated() const { return replicated_; }
  bool has_partial(size_t index) const { return partial_[index]; }
  double local_bytes(size_t index) const { return local_bytes_[index]; }
  // Seconds from one placement to another; infinite when there is no way.
  double seconds(size_t from, size_t to) const { return row(from).seconds[to]; }
  // The steps of the cheapest way, fewest steps among equals.
  std::vector<Step> steps(size_t from, size_t to) const;

 private:
  struct Row {  // the cheapest ways from one placement
    std::vector<double> seconds;
    std::vector<int32_t> previous;  // the placement before the last step
    std::vector<Step> last_step;
  };
  struct Neighbour {
    int32_t to = 0;
    Step step;
  };

  void enumerate(std::span<const Reduction> partials, std::span<const uint32_t> splits);
  // Whether this placement on the axis can be changed alone: the earlier axis cuts first, so an
  // atom that a later axis has cut cannot be cut or gathered.
  bool is_free(const Placements& p, size_t axis, const Placement& there) const;
  std::optional<Step> step_to(size_t from, size_t to, size_t axis) const;
  const std::vector<Neighbour>& neighbours(size_t from) const;
  const Row& row(size_t from) const;

  const Cluster* cluster_;        // of the constructor's; must outlive the space
  std::vector<AxisLinks> links_;  // by axis
  Mesh mesh_;
  Layout layout_;  // placements unused
  DType dtype_;
  bool bundled_;
  std::vector<std::vector<Placement>> choices_;  // by axis
  std::vector<Placements> placements_;
  std::vector<int32_t> index_;  // by the choices as digits, the first axis highest; -1: none
  std::vector<int32_t> code_;   // by placement: the same digits
  std::vector<bool> partial_;
  std::vector<double> local_bytes_;
  int replicated_ = 0;
  mutable std::vector<std::vector<Neighbour>> neighbours_;  // by placement; empty: not yet known
  mutable std::vector<std::unique_ptr<Row>> rows_;          // by placement
};

}  // namespace cleave
