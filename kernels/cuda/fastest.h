// Which of several ways to do the same on the GPU is the fastest there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace cleave {

// Of `count` ways, at least one, the one that takes the least time in the middle of other work;
// `run` launches one of them into the null stream. `scratch`, of so many bytes on the device, may
// be written. Waits for the GPU.
size_t fastest(size_t count, const std::function<void(size_t)>& run, void* scratch,
               int64_t scratch_bytes);

}  // namespace cleave
