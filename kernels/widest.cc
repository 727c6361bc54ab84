#include "kernels/widest.h"

namespace cleave {

#if CLEAVE_WIDEST

namespace {

Vectors detect() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("bmi2")) {
    return Vectors::kBaseline;
  }
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  return wide ? Vectors::kAvx512 : Vectors::kAvx2;
}

}  // namespace

Vectors widest_vectors() {
  static const Vectors vectors = detect();
  return vectors;
}

#endif

}  // namespace cleave
