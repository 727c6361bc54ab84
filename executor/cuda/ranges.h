// Ranges of NVTX, by which NVIDIA's profilers name what the host launches.
#pragma once

#include <string_view>

namespace cleave {

// Whether CLEAVE_NVTX is set (and not to 0): then every instruction is launched in a range of its
// op's name, by itself and not in a CUDA graph, in which profilers see no ranges.
bool ranges_wanted();

// A range while it lives. Without a profiler it costs nothing that counts.
class Range {
 public:
  Range(std::string_view name, std::string_view where);
  ~Range();
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
};

}  // namespace cleave
