// What is launched into a stream, as a graph that launches it again.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <type_traits>

namespace cleave {

struct DestroyGraph {
  void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
using CapturedGraph = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, DestroyGraph>;

// What `launch` gives to the stream, which does not run. What it throws passes through, and the
// stream is of use after it.
CapturedGraph captured(cudaStream_t stream, const std::function<void()>& launch);

}  // namespace cleave
