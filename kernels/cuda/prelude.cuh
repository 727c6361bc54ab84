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

// Two numbers as halves of a register, the first in the low half; T: bf16 or f16.
template <class T>
__device__ inline unsigned pair(float low, float high) {
  unsigned both;
  if constexpr (__is_same(T, bf16)) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  }
  return both;
}

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

template <int N, class T>
__device__ inline Vec<T, N> spread(T x) {
  Vec<T, N> v;
#pragma unroll
  for (int i = 0; i < N; ++i) v.x[i] = x;
  return v;
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

inline constexpr double kLog2E = 1.4426950408889634;

// 2^x, to two units of the last place; 0 below -126.
__device__ inline float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// e^x to some 2^-22 of 1, of numbers that are not far above 0; of floats below -87.3 it is 0.
__device__ inline float exp_near(float x) { return exp2_of(x * static_cast<float>(kLog2E)); }
__device__ inline double exp_near(double x) { return exp(x); }

// 1 / (1 + 2^x).
__device__ inline float fraction(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1 + exp2_of(x)));
  return y;
}
__device__ inline float sigmoid(float x) { return fraction(x * static_cast<float>(-kLog2E)); }
__device__ inline double sigmoid(double x) { return 1 / (1 + exp(-x)); }

// Minus infinity.
template <class T>
__device__ inline T below_all() {
  return static_cast<T>(__longlong_as_double(static_cast<long long>(0xfff0000000000000ull)));
}

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

// --- Random numbers ------------------------------------------------------------------------------

// RandomStream (kernels/random_stream.h), of a step that only the device knows.
class Random {
 public:
  using Bits = unsigned;
  using Index = unsigned long long;

  __device__ Random(Index seed, Index stream, int step)
      : seed_(seed), stream_(mixed(stream, step)) {}

  __device__ Bits at(Index index) const {
    Bits bits[4];
    draw(index / 4, bits);
    const Bits low = (index & 1) != 0 ? bits[1] : bits[0];
    const Bits high = (index & 1) != 0 ? bits[3] : bits[2];
    return (index & 2) != 0 ? high : low;
  }

  // The four numbers of a block, as philox_block gives them.
  __device__ void draw(Index block, Bits (&bits)[4]) const {
    Bits c0 = static_cast<Bits>(block), c1 = static_cast<Bits>(block >> 32);
    Bits c2 = static_cast<Bits>(stream_), c3 = static_cast<Bits>(stream_ >> 32);
    Bits k0 = static_cast<Bits>(seed_), k1 = static_cast<Bits>(seed_ >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
      const Index p0 = Index{0xD2511F53} * c0, p1 = Index{0xCD9E8D57} * c2;
      c0 = static_cast<Bits>(p1 >> 32) ^ c1 ^ k0;
      c1 = static_cast<Bits>(p1);
      c2 = static_cast<Bits>(p0 >> 32) ^ c3 ^ k1;
      c3 = static_cast<Bits>(p0);
      k0 += 0x9E3779B9, k1 += 0xBB67AE85;
    }
    bits[0] = c0, bits[1] = c1, bits[2] = c2, bits[3] = c3;
  }

 private:
  // The stream's hash and the step, mixed as in splitmix64.
  __device__ static Index mixed(Index stream, int step) {
    Index z = stream + 0x9E3779B97F4A7C15ULL * static_cast<Index>(static_cast<unsigned>(step));
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }

  Index seed_, stream_;
};

// DropoutMask (kernels/dropout_mask.h): every element whose number is below `threshold` is dropped,
// others are scaled. S: the type of the factors.
template <class S>
class Mask {
 public:
  using Bits = Random::Bits;
  using Index = Random::Index;

  __device__ Mask(Index seed, Index stream, int step, Bits threshold, double scale)
      : random_(seed, stream, step), threshold_(threshold), scale_(static_cast<S>(scale)) {}

  // The scale when the element is kept, else 0.
  __device__ S at(Index index) const { return factor(random_.at(index)); }

  // factors[i] = at(first + i).
  template <int N>
  __device__ void fill(Index first, S (&factors)[N]) const {
    if (N % 4 == 0 && first % 4 == 0) {
#pragma unroll
      for (int b = 0; b < N / 4; ++b) {
        Bits bits[4];
        random_.draw(first / 4 + static_cast<Index>(b), bits);
#pragma unroll
        for (int j = 0; j < 4; ++j) factors[4 * b + j] = factor(bits[j]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) factors[i] = at(first + static_cast<Index>(i));
    }
  }

  // factors[i] = at(index).
  template <int N>
  __device__ void spread(Index index, S (&factors)[N]) const {
    const S one = at(index);
#pragma unroll
    for (int i = 0; i < N; ++i) factors[i] = one;
  }

 private:
  __device__ S factor(Bits bits) const { return (bits >> 8) >= threshold_ ? scale_ : S{0}; }

  Random random_;
  Bits threshold_;
  S scale_;
};

}  // namespace cleave
