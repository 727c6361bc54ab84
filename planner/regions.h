// Synchronization-free regions: for each dimension class, the sets of ops that the class passes
// through without anyone having to wait for anyone, and the points where each ends.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"
#include "planner/dimensions.h"

namespace cleave {

enum class SyncKind : uint8_t {
  kReduction,  // the op sums (or maximises) over the class: partial results must be combined
  kWhole,      // the op needs the dimension whole, or combines inside
  kConflict,   // the op meets the class in two of its factors: one of them must be whole
};
std::string_view name_of(SyncKind kind);

struct SyncPoint {
  NodeId node = kNoNode;
  SyncKind kind = SyncKind::kReduction;
  Reduction reduction = Reduction::kSum;
  Phase phase = Phase::kForward;
  // Of the value to be combined (reduction), or gathered (whole, conflict); of the small partial
  // results where the op says how it splits.
  double bytes = 0;
  std::string place;  // scope and source line
};

struct Region {
  ClassId dimension_class = -1;
  std::vector<NodeId> nodes;  // ascending; those that reduce the class included
  double flops = 0;
  double flops_share = 0;  // of the whole step
  std::vector<SyncPoint> syncs;
};

// All regions, of all classes of at least two elements, the most work first. Classes whose regions
// hold no floating-point work are left out.
std::vector<Region> find_regions(const Graph& graph, const Dimensions& dimensions);

// Regions that are alike but for their place (the same ops, sizes and ends, layer after layer).
struct RegionGroup {
  Region first;
  int64_t count = 1;
};
std::vector<RegionGroup> fold_regions(const Graph& graph, std::vector<Region> regions);

// Sync points of one region that are alike: same op, kind, phase, bytes and source line.
struct SyncGroup {
  SyncPoint first;
  int64_t count = 1;
};
std::vector<SyncGroup> fold_syncs(const Graph& graph, const std::vector<SyncPoint>& syncs);

}  // namespace cleave
