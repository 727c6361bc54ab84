#include "kernels/cuda/check.h"
#include "kernels/cuda/libraries.h"

#include "graph/error.h"

namespace cleave {
namespace {

[[noreturn]] void broken(const char* library, const char* what, const std::source_location& where) {
  throw InternalError(
      fmt::format("{}: {} ({}:{})", library, what, where.file_name(), where.line()));
}

}  // namespace

void cuda_check(cudaError_t status, std::source_location where) {
  switch (status) {
    case cudaSuccess: return;
    case cudaErrorMemoryAllocation:
      fail("the GPU has not enough free memory: take a smaller --batch with --accumulate");
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver: {
      int driver = 0;
      const bool none = cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0;
      fail(
          "there is no NVIDIA GPU here that this build can use ({}): --devices cpu:N runs on the "
          "processor; cleave doctor says more",
          none ? "no NVIDIA driver" : cudaGetErrorString(status));
    }
    case cudaErrorNoKernelImageForDevice:
      fail(
          "this GPU is too old: Cleave's kernels are built for compute capability 9.0 (H100, "
          "H200) and later");
    default: broken("CUDA", cudaGetErrorString(status), where);
  }
}

void cuda_check(cublasStatus_t status, std::source_location where) {
  if (status != CUBLAS_STATUS_SUCCESS)
    broken("cuBLASLt", cublas_lt().GetStatusString(status), where);
}

void cuda_check(nvrtcResult status, std::source_location where) {
  if (status != NVRTC_SUCCESS) broken("NVRTC", nvrtc().GetErrorString(status), where);
}

void expect_not_captured(cudaStream_t stream, std::string_view what) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cuda_check(cudaStreamIsCapturing(stream, &status));
  CLEAVE_ASSERT(
      status == cudaStreamCaptureStatusNone,
      "{} was needed for the first time while a graph is captured, in which nothing can be "
      "chosen or allocated: run the instruction once before",
      what);
}

}  // namespace cleave
