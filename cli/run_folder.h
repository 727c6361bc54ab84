// What lies where in a run's folder.
#pragma once

#include <string>

namespace cleave {

// The folder of checkpoints in a run's folder; any other path as it is.
std::string checkpoints_in(const std::string& path);

// Whether the path lies in the folder, or is it; false when either does not exist.
bool lies_in(const std::string& path, const std::string& folder);

}  // namespace cleave
