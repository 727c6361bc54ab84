// cuBLASLt and NVRTC, opened when a GPU is used: together they take 70 ms to load, which no command
// that uses none should wait for. cublas_lt().Matmul(...) is cublasLtMatmul(...).
#pragma once

#include <cublasLt.h>
#include <nvrtc.h>

namespace cleave {

// clang-format off
#define CLEAVE_CUBLAS_LT(X)                                                               \
  X(Create) X(Destroy) X(GetStatusString) X(Matmul) X(MatmulAlgoCheck)                    \
  X(MatmulAlgoGetHeuristic) X(GetVersion)                                                 \
  X(MatmulDescCreate) X(MatmulDescDestroy) X(MatmulDescSetAttribute)                      \
  X(MatmulPreferenceCreate) X(MatmulPreferenceDestroy) X(MatmulPreferenceSetAttribute)    \
  X(MatrixLayoutCreate) X(MatrixLayoutDestroy) X(MatrixLayoutSetAttribute)

#define CLEAVE_NVRTC(X)                                                                   \
  X(CompileProgram) X(CreateProgram) X(DestroyProgram) X(GetCUBIN) X(GetCUBINSize)        \
  X(GetErrorString) X(GetProgramLog) X(GetProgramLogSize) X(Version)
// clang-format on

struct CublasLt {
#define CLEAVE_FIELD(name) decltype(&::cublasLt##name) name = nullptr;
  CLEAVE_CUBLAS_LT(CLEAVE_FIELD)
#undef CLEAVE_FIELD
};

struct Nvrtc {
#define CLEAVE_FIELD(name) decltype(&::nvrtc##name) name = nullptr;
  CLEAVE_NVRTC(CLEAVE_FIELD)
#undef CLEAVE_FIELD
};

// Throw Error, one line, when the library is not installed.
const CublasLt& cublas_lt();
const Nvrtc& nvrtc();

}  // namespace cleave
