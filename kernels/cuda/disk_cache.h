// What took time to find out, kept on disk from run to run: compiled kernels, and the fastest
// algorithms of products. In $XDG_CACHE_HOME/cleave, or ~/.cache/cleave; a folder that cannot be
// written is done without.
#pragma once

#include <string>
#include <string_view>

namespace cleave {

class DiskCache {
 public:
  // `kind`: a folder's name.
  explicit DiskCache(std::string_view kind);

  // What was kept under the key, or nothing. A key says all that the value depends on.
  std::string find(const std::string& key) const;
  // Keeps the value unless there is one already, and returns the one that is kept: processes that
  // find something out at the same time go on with the same.
  std::string keep(const std::string& key, const std::string& value) const;

 private:
  std::string path_of(const std::string& key) const;

  std::string folder_;  // empty: there is none
};

}  // namespace cleave
