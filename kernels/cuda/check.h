// Calls into CUDA's libraries, checked.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <nvrtc.h>

#include <source_location>
#include <string_view>

namespace cleave {

// Throw Error when the device has too little memory or is not there, which is for the user to mend;
// InternalError, with the place of the call, for everything else.
void cuda_check(cudaError_t status, std::source_location where = std::source_location::current());
void cuda_check(cublasStatus_t status,
                std::source_location where = std::source_location::current());
void cuda_check(nvrtcResult status, std::source_location where = std::source_location::current());

// Throws InternalError when the stream is being captured. To be called before `what` is found out
// or made the first time, for which kernels are timed, or memory is taken: no graph can hold that.
void expect_not_captured(cudaStream_t stream, std::string_view what);

}  // namespace cleave
