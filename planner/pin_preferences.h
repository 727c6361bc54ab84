// What pins forbid the placement problem of one mesh, and which meshes they leave.
#pragma once

#include <string>
#include <vector>

#include "planner/family.h"
#include "planner/pins.h"
#include "planner/placement_problem.h"

namespace cleave {

struct PinnedPreferences {
  Preferences preferences;  // also what `base` says
  std::string impossible;   // why this mesh has no plan with the pins; empty: not known to
};

// The placement pins and the ZeRO stage. A parameter is pinned where it is kept, and where ops read
// it if they can on that axis; a ZeRO stage says of every parameter and state whether it is kept in
// parts along the dp axes, where it can be. `graph` is the one that is placed. Throws Error when a
// pin matches nothing. The result refers to nothing that may go.
PinnedPreferences pinned_preferences(const Pins& pins, const Graph& graph,
                                     const Dimensions& dimensions, const Families& families,
                                     const Mesh& mesh, const std::vector<AxisRole>& roles,
                                     const Preferences& base);

// Sizes and roles, as in MeshRequest: every mesh of so many devices, of at most `max_axes` axes,
// that the pins leave: pinned axes as they are; dp and tp, and roles that a placement pin names,
// with every size that divides what is left, the latter above 1. Maybe none.
struct PinnedMesh {
  std::vector<int64_t> sizes;
  std::vector<AxisRole> roles;
};
std::vector<PinnedMesh> pinned_meshes(const Pins& pins, int64_t devices, size_t max_axes);
// Whether the pins say anything of axes: a ZeRO stage does, 0 too, which only an axis with the role
// of dp can be held to.
bool pins_axes(const Pins& pins);

}  // namespace cleave
