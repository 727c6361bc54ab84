#include "executor/cuda/captured_graph.h"

#include "kernels/cuda/check.h"

namespace cleave {

CapturedGraph captured(cudaStream_t stream, const std::function<void()>& launch) {
  cudaGraph_t graph = nullptr;
  cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  try {
    launch();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);  // a stream that is captured cannot be waited for
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  cuda_check(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t exec = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  cuda_check(made);
  return CapturedGraph(exec);
}

}  // namespace cleave
