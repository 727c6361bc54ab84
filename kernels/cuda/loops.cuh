// What kernels do with strided.h's loops, and dispatch on element types.
#pragma once

#include "kernels/cuda/prelude.cuh"
#include "kernels/cuda/strided.h"

namespace cleave {

// Calls fn with a value of the element's type: with_device_float(dtype, [&]<class T>(T) { ... }).
template <class Fn>
void with_device_float(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kF64: return fn(double{});
    case DType::kF32: return fn(float{});
    case DType::kBF16: return fn(bf16{});
    case DType::kF16: return fn(f16{});
    case DType::kI32: break;
  }
  no_kernel_for(dtype);
}

// Calls fn with a value of the type that such elements are computed in.
template <class Fn>
void with_sum_type(DType dtype, Fn&& fn) {
  if (dtype == DType::kF64) return fn(double{});
  fn(float{});
}

// at[i] = where the element with this row-major index lies in operand i.
template <int N>
__device__ inline void offsets(const DeviceLoops<N>& loops, int64_t element, int64_t (&at)[N]) {
  for (int i = 0; i < N; ++i) at[i] = 0;
  for (int d = loops.rank - 1; d > 0; --d) {
    const int64_t size = loops.sizes[d];
    const int64_t rest =
        loops.small ? static_cast<uint32_t>(element) / static_cast<uint32_t>(size) : element / size;
    const int64_t index = element - rest * size;
    for (int i = 0; i < N; ++i) at[i] += index * loops.steps[d][i];
    element = rest;
  }
  if (loops.rank > 0) {
    for (int i = 0; i < N; ++i) at[i] += element * loops.steps[0][i];
  }
}

// Where the shard's index lies along the whole factor.
__device__ inline int64_t position(const Positions& p, int64_t i) {
  for (int c = 0; c < p.cuts; ++c) {
    const int64_t block = i / p.chunk[c];
    i = block * p.apart[c] + p.first[c] + (i - block * p.chunk[c]);
  }
  return i;
}

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
