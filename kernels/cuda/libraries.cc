#include "kernels/cuda/libraries.h"

#include <dlfcn.h>

#include <string>

#include "graph/error.h"

namespace cleave {
namespace {

// Where the system looks, then where the toolkit lay that this was built with.
void* opened(const char* name) {
  for (const std::string& path :
       {std::string(name), fmt::format("{}/{}", CLEAVE_CUDA_LIBRARIES, name)}) {
    if (void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
  }
  fail(
      "{} cannot be opened ({}): GPUs need CUDA 13's libraries, in LD_LIBRARY_PATH if they are in "
      "no "
      "usual place",
      name, ::dlerror());
}

template <class Function>
void find(void* library, const char* name, Function& to) {
  to = reinterpret_cast<Function>(::dlsym(library, name));
  if (to == nullptr) fail("{} is not in CUDA's library here: GPUs need CUDA 13", name);
}

}  // namespace

const CublasLt& cublas_lt() {
  static const CublasLt functions = [] {
    CublasLt f;
    void* const library = opened("libcublasLt.so.13");
#define CLEAVE_FIND(name) find(library, "cublasLt" #name, f.name);
    CLEAVE_CUBLAS_LT(CLEAVE_FIND)
#undef CLEAVE_FIND
    return f;
  }();
  return functions;
}

const Nvrtc& nvrtc() {
  static const Nvrtc functions = [] {
    Nvrtc f;
    void* const library = opened("libnvrtc.so.13");
#define CLEAVE_FIND(name) find(library, "nvrtc" #name, f.name);
    CLEAVE_NVRTC(CLEAVE_FIND)
#undef CLEAVE_FIND
    return f;
  }();
  return functions;
}

}  // namespace cleave
