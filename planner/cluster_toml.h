// A cluster as TOML: what `--cluster FILE.toml` reads and `cleave calibrate` writes. The keys are
// those of Device, Tier and NodeGroup; docs/cluster.md lists them.
#pragma once

#include <string>
#include <string_view>

#include "planner/cluster.h"

namespace cleave {

// Reads a file. Throws Error, one line that names the file, the line and the key: not TOML, a key
// that there is not, a value that is missing, of another type or out of its range, with `find_op`
// also a rate of an op that there is not, or whose time goes by other keys.
Cluster read_cluster(const std::string& path, FindOp find_op = nullptr);
// The same for a text; `path` is the cluster's spec, and for errors.
Cluster cluster_from_toml(std::string_view text, const std::string& path, FindOp find_op = nullptr);

// Everything, with a comment for each key; read back it gives the same cluster, but for `spec`.
// `head`: lines for the top of the file, without their '#'.
std::string cluster_to_toml(const Cluster& cluster, std::string_view head = {});

}  // namespace cleave
