// How long work takes on the GPU when it is launched as training launches it: from a captured
// graph.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

namespace cleave {

// Seconds of one launch, of many in a row in one graph; the median of a few runs of it, which take
// `effort` seconds together. `launch` is called once before, for what it finds out the first time.
double seconds_in_graph(cudaStream_t stream, double effort, const std::function<void()>& launch);

}  // namespace cleave
