#include "kernels/cuda/generated.h"

#include <fmt/ranges.h>
#include <nvrtc.h>

#include <iterator>
#include <vector>

#include "graph/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/libraries.h"

namespace cleave {
namespace {

constexpr char kPrelude[] = {
#include <prelude.inc>
    , 0};

// Quotients of floats are within two units of the last place: those that are rounded right take
// many more instructions, which short chains would wait for.
constexpr const char* kOptions[] = {"--std=c++20", "--device-as-default-execution-space",
                                    "--prec-div=false"};

}  // namespace

std::string compiled(const std::string& text, const std::string& arch) {
  nvrtcProgram program = nullptr;
  const char* headers[] = {kPrelude};
  const char* names[] = {"prelude.cuh"};
  cuda_check(nvrtc().CreateProgram(&program, text.c_str(), "generated.cu", 1, headers, names));
  const std::string gpu = "--gpu-architecture=" + arch;
  std::vector<const char*> options = {gpu.c_str()};
  options.insert(options.end(), std::begin(kOptions), std::end(kOptions));
  const nvrtcResult result =
      nvrtc().CompileProgram(program, static_cast<int>(options.size()), options.data());
  std::string code;
  if (result == NVRTC_SUCCESS) {
    size_t size = 0;
    cuda_check(nvrtc().GetCUBINSize(program, &size));
    code.resize(size);
    cuda_check(nvrtc().GetCUBIN(program, code.data()));
  } else {
    size_t size = 0;
    nvrtc().GetProgramLogSize(program, &size);
    std::string log(size, ' ');
    nvrtc().GetProgramLog(program, log.data());
    nvrtc().DestroyProgram(&program);
    throw InternalError(fmt::format("a generated kernel does not compile: {}\n{}", log, text));
  }
  nvrtc().DestroyProgram(&program);
  return code;
}

GeneratedKernels::GeneratedKernels(const cudaDeviceProp& device)
    : arch_(fmt::format("sm_{}{}", device.major, device.minor)), cache_("kernels") {}

GeneratedKernels::~GeneratedKernels() {
  for (auto& [text, loaded] : loaded_) {
    if (loaded.library != nullptr) cudaLibraryUnload(loaded.library);
  }
}

const void* GeneratedKernels::kernel(const std::string& text, cudaStream_t stream) {
  Loaded& loaded = loaded_[text];
  if (loaded.kernel == nullptr) {
    expect_not_captured(stream, "a generated kernel");
    int major = 0, minor = 0;
    cuda_check(nvrtc().Version(&major, &minor));
    const std::string key = fmt::format("// {} nvrtc {}.{} {}\n{}\n{}", arch_, major, minor,
                                        fmt::join(kOptions, " "), kPrelude, text);
    std::string code = cache_.find(key);
    if (code.empty()) code = cache_.keep(key, compiled(text, arch_));
    cuda_check(cudaLibraryLoadData(&loaded.library, code.data(), nullptr, nullptr, 0, nullptr,
                                   nullptr, 0));
    cuda_check(cudaLibraryGetKernel(&loaded.kernel, loaded.library, "cleave_kernel"));
  }
  return loaded.kernel;
}

}  // namespace cleave
