// Which elements of a storage a strided view covers, as sets that can be compared exactly.
#pragma once

#include <span>
#include <vector>

#include "graph/op.h"

namespace cleave {

// A set of elements of one storage: disjoint boxes in the coordinates of its ElementGrid.
struct ElementSet {
  struct Interval {
    int64_t low = 0, high = 0;  // low <= i < high
  };
  using Box = std::vector<Interval>;  // one interval a level of the grid
  std::vector<Box> boxes;
  bool exact = true;  // false: a superset of what was meant

  bool empty() const { return boxes.empty(); }
};

// Coordinates in which every view of one storage is a few boxes. An element's index is written with
// mixed radices, the strides of the views: with strides 1, 64 and 4096, element 4170 is at
// (1, 1, 10), and a slice of any of the three dimensions is one box. Views whose strides do not
// divide one another are sets of runs of consecutive elements instead; beyond 2^16 runs, the
// interval from the first element to the last.
class ElementGrid {
 public:
  // `views`: all geometries that `set` will be asked for.
  explicit ElementGrid(std::span<const Geometry> views);
  ElementSet set(const Geometry& view) const;

 private:
  std::vector<int64_t> strides_;  // of the levels, ascending, each dividing the next; first 1
};

// Of two sets from one grid. With an inexact set `overlap` may be true too often, and `subtract`
// removes nothing.
bool overlap(const ElementSet& a, const ElementSet& b);
void subtract(ElementSet& from, const ElementSet& what);

}  // namespace cleave
