#include "kernels/cuda/generated.h"

#include <fmt/ranges.h>
#include <nvrtc.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "graph/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/libraries.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;

constexpr char kPrelude[] = {
#include <prelude.inc>
    , 0};

// FNV-1a.
uint64_t hash_of(std::string_view text) {
  uint64_t hash = 14695981039346656037ULL;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211ULL;
  return hash;
}

std::string cache_folder() {
  const char* base = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  if (base != nullptr && *base != 0) return fmt::format("{}/cleave/kernels", base);
  if (home != nullptr && *home != 0) return fmt::format("{}/.cache/cleave/kernels", home);
  return "";
}

// A file holds the text, a zero byte, and its machine code.
std::string kept(const std::string& path, const std::string& text) {
  std::ifstream file(path, std::ios::binary);
  const std::string all{std::istreambuf_iterator<char>(file), {}};
  if (all.size() <= text.size() || all.compare(0, text.size(), text) != 0) return "";
  return all[text.size()] == 0 ? all.substr(text.size() + 1) : "";
}

// Under another name first, so that nobody reads half of it.
void keep(const std::string& path, const std::string& text, const std::string& code) {
  std::error_code error;
  fs::create_directories(fs::path(path).parent_path(), error);
  const std::string part = fmt::format("{}.{}", path, ::getpid());
  std::ofstream file(part, std::ios::binary);
  file << text << '\0' << code;
  file.close();
  if (file) fs::rename(part, path, error);
  if (!file || error) fs::remove(part, error);
}

}  // namespace

std::string compiled(const std::string& text, const std::string& arch) {
  nvrtcProgram program = nullptr;
  const char* headers[] = {kPrelude};
  const char* names[] = {"prelude.cuh"};
  cuda_check(nvrtc().CreateProgram(&program, text.c_str(), "generated.cu", 1, headers, names));
  const std::string gpu = "--gpu-architecture=" + arch;
  const char* options[] = {gpu.c_str(), "--std=c++20", "--device-as-default-execution-space"};
  const nvrtcResult result =
      nvrtc().CompileProgram(program, static_cast<int>(std::size(options)), options);
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
    : arch_(fmt::format("sm_{}{}", device.major, device.minor)), folder_(cache_folder()) {}

GeneratedKernels::~GeneratedKernels() {
  for (auto& [text, loaded] : loaded_) {
    if (loaded.library != nullptr) cudaLibraryUnload(loaded.library);
  }
}

const void* GeneratedKernels::kernel(const std::string& text) {
  Loaded& loaded = loaded_[text];
  if (loaded.kernel == nullptr) {
    int major = 0, minor = 0;
    cuda_check(nvrtc().Version(&major, &minor));
    const std::string key =
        fmt::format("// {} nvrtc {}.{}\n{}\n{}", arch_, major, minor, kPrelude, text);
    const std::string path =
        folder_.empty() ? "" : fmt::format("{}/{:016x}", folder_, hash_of(key));
    std::string code = path.empty() ? "" : kept(path, key);
    if (code.empty()) {
      code = compiled(text, arch_);
      if (!path.empty()) keep(path, key, code);
    }
    cuda_check(cudaLibraryLoadData(&loaded.library, code.data(), nullptr, nullptr, 0, nullptr,
                                   nullptr, 0));
    cuda_check(cudaLibraryGetKernel(&loaded.kernel, loaded.library, "cleave_kernel"));
  }
  return loaded.kernel;
}

}  // namespace cleave
