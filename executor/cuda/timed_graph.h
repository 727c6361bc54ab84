// How long work takes on the GPU when it is launched as training launches it: from a captured
// graph.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

namespace cleave {

// How long to run, in seconds: at first unmeasured, until the clock is what power allows, and then
// together the runs of which the median counts. Without a pause in between.
struct Effort {
  double settle = 0, measure = 0;
};

// Seconds of one launch, of many in a row in one graph. `launch` is called before, for what it
// finds out the first time.
double seconds_in_graph(cudaStream_t stream, const Effort& effort,
                        const std::function<void()>& launch);

}  // namespace cleave
