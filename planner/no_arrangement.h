// Why what was asked for leaves no arrangement.
#pragma once

#include <functional>
#include <string>

#include "planner/arrangements.h"

namespace cleave {

// Throws Error when pins contradict the mesh that was asked for: another size of an axis, or a role
// that the mesh does not have.
void check_mesh(const MeshRequest& request, const Pins& pins);

// Of pins and a mesh that leave none: one line that names what cannot be met and why, as far as
// sizes and counts tell. `possible`: whether other pins would leave any.
std::string why_no_arrangement(const Cluster& cluster, const MeshRequest& request, const Pins& pins,
                               const ArrangementLimits& limits,
                               const std::function<bool(const Pins&)>& possible);

}  // namespace cleave
