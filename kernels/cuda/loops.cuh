// What kernels over strided tensors share: dispatch on element types, floats of a type that is
// known only when the kernel runs, and whether elements can be moved 16 bytes at a time.
#pragma once

#include <cuda_runtime.h>

#include <array>

#include "kernels/cuda/check.h"
#include "kernels/cuda/loops.h"
#include "kernels/cuda/prelude.cuh"

namespace cleave {

// Calls fn with a zero of the element's type as kernels see it.
template <class Fn>
void with_gpu_float(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kF64: return fn(double{});
    case DType::kF32: return fn(float{});
    case DType::kBF16: return fn(bf16{});
    case DType::kF16: return fn(f16{});
    case DType::kI32:
    case DType::kF8E4M3:
    case DType::kF8E5M2:
    case DType::kI16: break;
  }
  CLEAVE_ASSERT(false, "no kernel for {} on the GPU", name_of(dtype));
}

// The same with the type that such elements are computed in.
template <class Fn>
void with_sum_type(DType dtype, Fn&& fn) {
  if (dtype == DType::kF64) return fn(double{});
  fn(float{});
}

// The memory of statistics of rows of T: double of double, float of all others.
template <class T>
using Statistic = typename Sum<T>::Type;

// Elements of T in 16 bytes.
template <class T>
inline constexpr int kWide = 16 / sizeof(T);

// Whether rows of n elements, `along` apart, can be moved `length` at a time, 16 bytes at once, in
// operand o of the loops over rows.
template <size_t N>
bool wide_rows(const LoopNest<N>& rows, size_t o, const void* data, int64_t along, int64_t n,
               int64_t length) {
  bool wide = along == 1 && n % length == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  for (const auto& step : rows.steps) wide &= step[o] % length == 0;
  return wide;
}
template <class T, size_t N>
bool wide_rows(const LoopNest<N>& rows, size_t o, const void* data, int64_t along, int64_t n) {
  return wide_rows(rows, o, data, along, n, kWide<T>);
}

// Whether the innermost loop can go `length` elements at a time in all operands.
template <size_t N>
bool wide_loops(LoopNest<N> nest, const std::array<const void*, N>& data, int64_t length) {
  if (nest.sizes.empty()) return false;
  const int64_t n = nest.sizes.back();
  const auto along = nest.steps.back();
  nest.sizes.pop_back();
  nest.steps.pop_back();
  bool wide = true;
  for (size_t o = 0; o < N; ++o) wide &= wide_rows(nest, o, data[o], along[o], n, length);
  return wide;
}

// Whether all operands' elements lie one behind the other, in the same order, from addresses that
// are multiples of 16.
template <size_t N>
bool is_dense(const LoopNest<N>& nest, const std::array<const void*, N>& data) {
  bool dense = nest.sizes.size() <= 1;
  for (const int64_t step : nest.inner_steps()) dense &= step == 1;
  for (const void* p : data) dense &= reinterpret_cast<uintptr_t>(p) % 16 == 0;
  return dense;
}

// A float in memory whose type is known only when the kernel runs.
struct AnyFloat {
  void* data = nullptr;
  DType dtype = DType::kF32;
  bool operator==(const AnyFloat&) const = default;
};
inline AnyFloat any_float(const TensorView& view) { return {view.data, view.dtype}; }

// Element i as a number of type S, and back.
template <class S>
__device__ inline S get(const AnyFloat& x, int64_t i) {
  switch (x.dtype) {
    case DType::kF64: return static_cast<S>(static_cast<const double*>(x.data)[i]);
    case DType::kF32: return static_cast<S>(static_cast<const float*>(x.data)[i]);
    case DType::kBF16: return static_cast<S>(number(static_cast<const bf16*>(x.data)[i]));
    default: return static_cast<S>(number(static_cast<const f16*>(x.data)[i]));
  }
}
template <class S>
__device__ inline void set(const AnyFloat& x, int64_t i, S value) {
  const auto single = static_cast<float>(value);
  switch (x.dtype) {
    case DType::kF64: static_cast<double*>(x.data)[i] = static_cast<double>(value); break;
    case DType::kF32: static_cast<float*>(x.data)[i] = single; break;
    case DType::kBF16: static_cast<bf16*>(x.data)[i] = To<bf16>::of(single); break;
    default: static_cast<f16*>(x.data)[i] = To<f16>::of(single); break;
  }
}

}  // namespace cleave
