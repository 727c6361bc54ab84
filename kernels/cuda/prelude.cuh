// Numbers in memory and in registers, and the functions that kernels share. Included by kernels
// that are compiled with the build, and given to NVRTC for those that are generated: so it includes
// nothing.
#pragma once

namespace cleave {

// Floats of 16 bits as they lie in memory.
struct bf16 {
  unsigned short bits;
};
struct f16 {
  unsigned short bits;
};
// Of 8 bits (graph/f8.h).
struct f8e4m3 {
  unsigned char bits;
};
struct f8e5m2 {
  unsigned char bits;
};

// --- To and from registers ---------------------------------------------------------------------

__device__ inline float number(bf16 x) {
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}
__device__ inline float number(f16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
__device__ inline float number(f8e4m3 x) {
  unsigned two;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(two) : "h"(static_cast<unsigned short>(x.bits)));
  return number(f16{static_cast<unsigned short>(two)});
}
__device__ inline float number(f8e5m2 x) {  // the upper half of an f16
  return number(f16{static_cast<unsigned short>(x.bits << 8)});
}
__device__ inline float number(float x) { return x; }
__device__ inline double number(double x) { return x; }
__device__ inline int number(int x) { return x; }

// To the nearest, ties to even.
template <class T>
struct To;
template <>
struct To<bf16> {
  __device__ static bf16 of(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
  }
};
template <>
struct To<f16> {
  __device__ static f16 of(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
  }
};
// Two codes of 8 bits, of `low` in the lower byte. What is too large becomes the largest number; an
// infinity becomes NaN, as which it stays visible.
template <class F8>
__device__ inline unsigned codes_of(float low, float high);
template <>
__device__ inline unsigned codes_of<f8e4m3>(float low, float high) {
  unsigned short codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
      : "=h"(codes)
      : "f"(fmaf(high, 0.0f, high)), "f"(fmaf(low, 0.0f, low)));
  return codes;
}
template <>
__device__ inline unsigned codes_of<f8e5m2>(float low, float high) {
  unsigned short codes;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;"
      : "=h"(codes)
      : "f"(fmaf(high, 0.0f, high)), "f"(fmaf(low, 0.0f, low)));
  return codes;
}
template <>
struct To<f8e4m3> {
  __device__ static f8e4m3 of(float x) {
    return {static_cast<unsigned char>(codes_of<f8e4m3>(x, 0.0f))};
  }
};
template <>
struct To<f8e5m2> {
  __device__ static f8e5m2 of(float x) {
    return {static_cast<unsigned char>(codes_of<f8e5m2>(x, 0.0f))};
  }
};
template <>
struct To<float> {
  __device__ static float of(float x) { return x; }
  __device__ static float of(double x) { return static_cast<float>(x); }
  __device__ static float of(int x) { return static_cast<float>(x); }
};
template <>
struct To<double> {
  template <class X>
  __device__ static double of(X x) {
    return static_cast<double>(x);
  }
};
template <>
struct To<int> {
  template <class X>
  __device__ static int of(X x) {
    return static_cast<int>(x);
  }
};

// N elements that are loaded and stored at once, at an address that is a multiple of their size, or
// of 16 bytes.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vec {
  T x[N];
};
template <int N, class T>
__device__ inline Vec<T, N> load(const T* p) {
  return *reinterpret_cast<const Vec<T, N>*>(p);
}
template <int N, class T>
__device__ inline void store(T* p, const Vec<T, N>& v) {
  *reinterpret_cast<Vec<T, N>*>(p) = v;
}

// What sums of T are kept in.
template <class T>
struct Sum {
  using Type = float;
};
template <>
struct Sum<double> {
  using Type = double;
};

// --- Functions ---------------------------------------------------------------------------------

__device__ inline float exp_of(float x) { return expf(x); }
__device__ inline double exp_of(double x) { return exp(x); }
__device__ inline float log_of(float x) { return logf(x); }
__device__ inline double log_of(double x) { return log(x); }
__device__ inline float sqrt_of(float x) { return sqrtf(x); }
__device__ inline double sqrt_of(double x) { return sqrt(x); }
__device__ inline float tanh_of(float x) { return tanhf(x); }
__device__ inline double tanh_of(double x) { return tanh(x); }
__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
__device__ inline double sigmoid(double x) { return 1 / (1 + exp(-x)); }

template <class T>
__device__ inline T silu(T x) {
  return x * sigmoid(x);
}
template <class T>
__device__ inline T silu_slope(T x) {
  const T s = sigmoid(x);
  return s * (1 + x * (1 - s));
}

// gelu in its tanh form: x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
template <class T>
__device__ inline T gelu(T x) {
  return x *
         sigmoid(static_cast<T>(1.5957691216057308) * (x + static_cast<T>(0.044715) * x * x * x));
}
template <class T>
__device__ inline T gelu_slope(T x) {
  const T c = static_cast<T>(1.5957691216057308), a = static_cast<T>(0.044715), square = x * x;
  const T s = sigmoid(c * (x + a * x * square));
  return s + x * s * (1 - s) * c * (1 + 3 * a * square);
}

}  // namespace cleave
