// The updates of parameters and their moments by AdamW and SGD, of many tensors in one launch. What
// the step's scalars are is read on the device; an update whose clipping coefficient is negative is
// not made. With a `name`, moments of bf16 are rounded stochastically as they are stored, with the
// processor's random numbers. With a `rest`, parameters lie as their bf16 and the rest of their
// bits.
#include <array>
#include <cmath>
#include <optional>
#include <type_traits>
#include <vector>

#include "graph/bf16_rest.h"
#include "graph/philox.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/loops.cuh"
#include "kernels/cuda/many.cuh"
#include "kernels/stochastic.h"
#include "kernels/whole_index.h"

namespace cleave {
namespace {

constexpr int kThreads = 256;
constexpr int kUpdateBlocks = 132 * 8;  // of tensors that lie in any way

// --- Updates -------------------------------------------------------------------------------------

// A product that is rounded. Which products and sums are rounded together is written out: every
// kernel that updates, with a copy or without, in place or not, makes the same bits.
__device__ inline float times(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double times(double a, double b) { return __dmul_rn(a, b); }

// A square root and a quotient to some units in the last place, far less than what a step is
// rounded by when it is added to its parameter. Exact ones are half of all instructions, which
// bound the update where moments are rounded stochastically. Of b from 2^-126 to 2^126; an a below
// 2^-126 is taken for 0.
__device__ inline float near_root(float x) {
  float root;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}
__device__ inline double near_root(double x) { return sqrt(x); }
__device__ inline float near_quotient(float a, float b) {
  float quotient;
  asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(quotient) : "f"(a), "f"(b));
  return quotient;
}
__device__ inline double near_quotient(double a, double b) { return a / b; }

// Each block works out the step's scalars, then new[0..kOut) of old[0..kIn), whose last is
// the gradient; new o takes the place of old o. S: what it computes in. kOperands: old as inputs
// of the op; kStep: that with the step's number.

template <class S>
struct AdamW {
  using Number = S;
  static constexpr int kIn = 4, kOut = 3;  // p, m, v and the gradient
  static constexpr int kOperands[kIn] = {0, 2, 3, 1}, kStep = 6;
  double beta1, beta2, log_beta1, log_beta2, eps;
  AnyFloat lr, clip;
  const int* step;
  bool operator==(const AdamW&) const = default;

  static AdamW of(const KernelArgs& args) {
    const double beta1 = args.attrs.real("beta1"), beta2 = args.attrs.real("beta2");
    return {beta1,
            beta2,
            std::log(beta1),
            std::log(beta2),
            args.attrs.real("eps"),
            any_float(args.in[4]),
            any_float(args.in[5]),
            args.in[6].as<const int>()};
  }

  struct Scalars {
    double rate;
    // What is rounded to S, and why: kernels/optimizer_update.cc. root_scale: 1 / root_correction.
    S clip, gain1, gain2, step_size, root_scale, eps;
  };
  // 1 - beta^n is -expm1(n log(beta)), which takes a fraction of the time of pow.
  __device__ void work_out(Scalars& c) const {
    if (threadIdx.x == 0) {
      c.rate = get<double>(lr, 0);
      c.clip = get<S>(clip, 0);
      c.gain1 = static_cast<S>(1 - beta1), c.gain2 = static_cast<S>(1 - beta2);
      c.eps = static_cast<S>(eps);
      c.step_size = static_cast<S>(c.rate / -expm1(*step * log_beta1));
    } else if (threadIdx.x == 32) {
      c.root_scale = static_cast<S>(rsqrt(-expm1(*step * log_beta2)));
    }
  }
  // Of a tensor: the share of a parameter that its weight decay takes.
  __device__ static S decay(const Scalars& c, double weight_decay) {
    return static_cast<S>(c.rate * weight_decay);
  }
  __device__ static void update(const Scalars& c, S decay, const S (&old)[kIn], S (&made)[kOut]) {
    const S g = times(old[3], c.clip);
    const S m = fma(g, c.gain1, fma(-c.gain1, old[1], old[1]));
    const S v = fma(times(g, g), c.gain2, fma(-c.gain2, old[2], old[2]));
    const S slope = near_quotient(m, fma(near_root(v), c.root_scale, c.eps));
    made[0] = old[0] - fma(c.step_size, slope, times(old[0], decay));
    made[1] = m;
    made[2] = v;
  }
};

template <class S>
struct Sgd {
  using Number = S;
  static constexpr int kIn = 3, kOut = 2;  // p, the momentum and the gradient
  static constexpr int kOperands[kIn] = {0, 2, 1}, kStep = 5;
  double momentum;
  AnyFloat lr, clip;
  bool operator==(const Sgd&) const = default;

  static Sgd of(const KernelArgs& args) {
    return {args.attrs.real("momentum"), any_float(args.in[3]), any_float(args.in[4])};
  }

  struct Scalars {
    S lr, clip, momentum;
  };
  __device__ void work_out(Scalars& c) const {
    if (threadIdx.x == 0) c = {get<S>(lr, 0), get<S>(clip, 0), static_cast<S>(momentum)};
  }
  __device__ static S decay(const Scalars&, double weight_decay) {
    return static_cast<S>(weight_decay);
  }
  __device__ static void update(const Scalars& c, S decay, const S (&old)[kIn], S (&made)[kOut]) {
    made[1] = fma(c.momentum, old[1], fma(old[2], c.clip, times(decay, old[0])));
    made[0] = fma(-c.lr, made[1], old[0]);
  }
};

// The scalars, worked out by threads of two of the block's warps.
template <class U>
__device__ typename U::Scalars shared_scalars(const U& update) {
  __shared__ typename U::Scalars scalars;
  update.work_out(scalars);
  __syncthreads();
  return scalars;
}

// --- Stochastic rounding -------------------------------------------------------------------------

// The random numbers of an update: a stream, whose step only the device knows.
struct Draws {
  uint64_t seed = 0, stream = 0;
  const int* step = nullptr;

  template <class U>
  static Draws of(const KernelArgs& args) {
    return {args.seed, stream_of(args.attrs.text("name")),
            args.in[U::kStep].template as<const int>()};
  }
  __device__ Random random() const { return {seed, stream, *step}; }
};

// Moment k gets half k of an element's random number.
template <class S>
__device__ bf16 rounded(S x, unsigned random, int moment) {
  const unsigned bits = __float_as_uint(static_cast<float>(x));
  return {stochastic_bf16(bits, random >> (16 * moment))};
}

// --- Dense tensors, in place ---------------------------------------------------------------------

template <class U>
struct Updated {
  void* p = nullptr;
  void* moments[U::kIn - 2] = {};
  const void* g = nullptr;
  void* copy = nullptr;  // the new parameter in another type, or the rest of one in two
  double weight_decay = 0;
  int64_t count = 0;
};

// Of a tensor whose moments are rounded stochastically. Its elements lie in the whole one as Spaced
// says, and four that are loaded at once have random numbers of one block.
template <class U>
struct Rounded : Updated<U> {
  Draws draws;
  int64_t first = 0, run = 1, stride = 0;

  static bool takes(const WholeIndex::Spaced& s, int64_t count) {
    return s.first % 4 == 0 && (s.run == count || (s.run % 4 == 0 && s.stride % 4 == 0));
  }
  __device__ int64_t index(int64_t i) const {
    return i < run ? first + i : first + i / run * stride + i % run;
  }
};

// Instead of a copy's type.
struct NoCopy {};
struct Rest {};  // no copy: the parameter lies as its bf16 and the rest of its bits

__device__ inline float joined(bf16 upper, int16_t rest) {
  return __uint_as_float(f32_bits({upper.bits, rest}));
}
__device__ inline Bf16AndRest apart(float x) { return bf16_and_rest(__float_as_uint(x)); }

// The parameters of a thread, from its first one on; and N of them in registers.
template <class P, class H>
struct Parameters {
  static constexpr int N = kWide<P>;
  P* p;
  __device__ Parameters(const auto& item, int64_t begin) : p(static_cast<P*>(item.p) + begin) {}

  struct Held {
    Vec<P, N> p;
    __device__ P get(int j) const { return p.x[j]; }
    __device__ void set(int j, P x) { p.x[j] = x; }
  };
  __device__ Held load(int at) const { return {cleave::load<N>(static_cast<const P*>(p) + at)}; }
  __device__ void store(int at, const Held& held) const { cleave::store(p + at, held.p); }
  __device__ P get(int at) const { return p[at]; }
  __device__ void set(int at, P x) const { p[at] = x; }
};
template <>
struct Parameters<float, Rest> {
  static constexpr int N = kWide<float>;
  bf16* upper;
  int16_t* rest;
  __device__ Parameters(const auto& item, int64_t begin)
      : upper(static_cast<bf16*>(item.p) + begin), rest(static_cast<int16_t*>(item.copy) + begin) {}

  // Two numbers in each word: by themselves they would take a register each.
  struct Held {
    Vec<unsigned, N / 2> upper, rest;
    __device__ float get(int j) const {
      const unsigned u = upper.x[j / 2], r = rest.x[j / 2];
      return __uint_as_float(j % 2 == 0 ? (u << 16) + static_cast<unsigned>(static_cast<int16_t>(r))
                                        : (u & 0xffff0000) + (static_cast<int>(r) >> 16));
    }
    __device__ void set(int j, float x) {
      const Bf16AndRest both = apart(x);
      const unsigned half = j % 2 == 0 ? 0x3254 : 0x5410;  // of the word: the one that changes
      upper.x[j / 2] = __byte_perm(upper.x[j / 2], both.bf16, half);
      rest.x[j / 2] = __byte_perm(rest.x[j / 2], static_cast<unsigned>(both.rest), half);
    }
  };
  __device__ Held load(int at) const {
    return {cleave::load<N / 2>(reinterpret_cast<const unsigned*>(upper + at)),
            cleave::load<N / 2>(reinterpret_cast<const unsigned*>(rest + at))};
  }
  __device__ void store(int at, const Held& held) const {
    cleave::store(reinterpret_cast<unsigned*>(upper + at), held.upper);
    cleave::store(reinterpret_cast<unsigned*>(rest + at), held.rest);
  }
  __device__ float get(int at) const { return joined(upper[at], rest[at]); }
  __device__ void set(int at, float x) const {
    const Bf16AndRest both = apart(x);
    upper[at].bits = both.bf16;
    rest[at] = both.rest;
  }
};

// A block has kTurn vectors of each operand in every thread, and ends: blocks that begin one after
// the other read and write faster than those that go on with other elements.
constexpr int kTurn = 2;
constexpr int piece_of(int element) { return kThreads * kTurn * 16 / element; }

// Parameters of type P, moments of type M, gradients of type G, copies of type H, or NoCopy or
// Rest.
template <template <class> class Item, class U, class P, class M, class G, class H>
__global__ void __launch_bounds__(kThreads, sizeof(P) != 4 ? 2 : 4)
    update_pieces(U update, const __grid_constant__ Table<Item<U>> table) {
  using S = typename U::Number;
  constexpr int kMoments = U::kIn - 2, N = kWide<P>;
  constexpr bool kCopies = !std::is_same_v<H, NoCopy> && !std::is_same_v<H, Rest>;
  constexpr bool kRounds = std::is_same_v<Item<U>, Rounded<U>>;
  static_assert(!kRounds || (N == 4 && std::is_same_v<M, bf16>));
  const int which = table.item_of(blockIdx.x);
  const Item<U>& item = table.items[which];
  // This thread's first element, and how far its next vector is.
  const int64_t begin =
      static_cast<int64_t>(blockIdx.x - table.first[which]) * piece_of(sizeof(P)) + threadIdx.x * N;
  constexpr int kApart = kThreads * N;
  const Parameters<P, H> p(item, begin);
  M* m[kMoments];
#pragma unroll
  for (int k = 0; k < kMoments; ++k) m[k] = static_cast<M*>(item.moments[k]) + begin;
  const G* const g = static_cast<const G*>(item.g) + begin;
  [[maybe_unused]] H* const copy = static_cast<H*>(item.copy) + (kCopies ? begin : 0);
  const auto left = [&](int u) { return item.count - begin - u * kApart; };

  typename Parameters<P, H>::Held now_p[kTurn];
  Vec<M, N> now_m[kTurn][kMoments];
  Vec<G, N> now_g[kTurn];
  // The elements are on their way while the scalars are worked out.
#pragma unroll
  for (int u = 0; u < kTurn; ++u) {
    if (left(u) < N) break;
    now_p[u] = p.load(u * kApart);
#pragma unroll
    for (int k = 0; k < kMoments; ++k) {
      now_m[u][k] = load<N>(static_cast<const M*>(m[k]) + u * kApart);
    }
    now_g[u] = load<N>(g + u * kApart);
  }
  const typename U::Scalars scalars = shared_scalars(update);
  const S decay = U::decay(scalars, item.weight_decay);
  // The new parameter of an old one; its moments are in registers or in memory.
  const auto renew = [&](P p_j, M* const(&m_j)[kMoments], G g_j, [[maybe_unused]] unsigned bits) {
    S old[U::kIn], made[U::kOut];
    old[0] = number(p_j);
#pragma unroll
    for (int k = 0; k < kMoments; ++k) old[k + 1] = number(*m_j[k]);
    old[U::kIn - 1] = number(g_j);
    U::update(scalars, decay, old, made);
#pragma unroll
    for (int k = 0; k < kMoments; ++k) {
      if constexpr (kRounds) {
        *m_j[k] = rounded(made[k + 1], bits, k);
      } else {
        *m_j[k] = To<M>::of(made[k + 1]);
      }
    }
    return To<P>::of(made[0]);
  };
  const bool updates = scalars.clip >= 0;
  // Made before the first store, after which the number of the step would be loaded again.
  [[maybe_unused]] const auto random = [&] {
    if constexpr (kRounds) {
      return item.draws.random();
    } else {
      return 0;
    }
  }();
#pragma unroll
  for (int u = 0; u < kTurn; ++u) {
    const int at = u * kApart;
    if (left(u) >= N) {
      if (updates) {
        unsigned bits[N] = {};
        if constexpr (kRounds) {
          random.draw(static_cast<uint64_t>(item.index(begin + at)) / 4, bits);
        }
#pragma unroll
        for (int j = 0; j < N; ++j) {
          M* m_j[kMoments];
#pragma unroll
          for (int k = 0; k < kMoments; ++k) m_j[k] = &now_m[u][k].x[j];
          now_p[u].set(j, renew(now_p[u].get(j), m_j, now_g[u].x[j], bits[j]));
        }
        p.store(at, now_p[u]);
#pragma unroll
        for (int k = 0; k < kMoments; ++k) store(m[k] + at, now_m[u][k]);
      }
      if constexpr (kCopies) {
        Vec<H, N> halves;
#pragma unroll
        for (int j = 0; j < N; ++j) halves.x[j] = To<H>::of(number(now_p[u].get(j)));
        store(copy + at, halves);
      }
      continue;
    }
    // The last elements of an item, of which there is no vector.
    for (int j = 0; j < left(u); ++j) {
      if (updates) {
        M* m_j[kMoments];
        for (int k = 0; k < kMoments; ++k) m_j[k] = m[k] + at + j;
        unsigned bits = 0;
        if constexpr (kRounds) {
          bits = random.at(static_cast<uint64_t>(item.index(begin + at + j)));
        }
        p.set(at + j, renew(p.get(at + j), m_j, g[at + j], bits));
      }
      if constexpr (kCopies) copy[at + j] = To<H>::of(number(p.get(at + j)));
    }
  }
}

// --- Operands of any types that lie in any way ---------------------------------------------------

// Pointers of an update: old, gradient last, then new, the copy, if any, or the new rest, and the
// old rest, if any.
template <class U>
struct Operands {
  static constexpr int kAll = U::kIn + U::kOut + 2, kCopy = kAll - 2, kRest = kAll - 1;
  AnyFloat old[U::kIn], made[U::kOut], copy;
  int16_t* new_rest = nullptr;
  const int16_t* old_rest = nullptr;
  double weight_decay = 0;

  using S = typename U::Number;
  __device__ S parameter(const int64_t* at) const {
    if (old_rest == nullptr) return get<S>(old[0], at[0]);
    return static_cast<S>(
        joined(static_cast<const bf16*>(old[0].data)[at[0]], old_rest[at[kRest]]));
  }
  // And its copy.
  __device__ void set_parameter(const int64_t* at, S x) const {
    if (new_rest != nullptr) {
      const Bf16AndRest both = apart(static_cast<float>(x));
      static_cast<bf16*>(made[0].data)[at[U::kIn]].bits = both.bf16;
      new_rest[at[kCopy]] = both.rest;
      return;
    }
    set(made[0], at[U::kIn], x);
    if (copy.data != nullptr) set(copy, at[kCopy], get<S>(made[0], at[U::kIn]));
  }
};

template <class U>
__global__ void __launch_bounds__(kThreads)
    update_elements(U update, Operands<U> operands, Loops<Operands<U>::kAll> loops) {
  using S = typename U::Number;
  const typename U::Scalars scalars = shared_scalars(update);
  const S decay = U::decay(scalars, operands.weight_decay);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < loops.count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    int64_t at[Operands<U>::kAll];
    loops.offsets(i, at);
    S old[U::kIn], made[U::kOut];
    old[0] = operands.parameter(at);
    for (int k = 1; k < U::kIn; ++k) old[k] = get<S>(operands.old[k], at[k]);
    if (scalars.clip < 0) {
      for (int k = 0; k < U::kOut; ++k) made[k] = old[k];
    } else {
      U::update(scalars, decay, old, made);
    }
    operands.set_parameter(at, made[0]);
    for (int k = 1; k < U::kOut; ++k) set(operands.made[k], at[U::kIn + k], made[k]);
  }
}

// Where the elements of a shard lie in the whole tensor: WholeIndex, by value.
struct Places {
  static constexpr int kMost = 8;
  int dims = 0;
  int64_t weight[kMost] = {};
  Shard shards[kMost];

  static Places of(const KernelArgs& args) {
    Places places;
    const std::vector<int8_t> factors = factors_of(args.signature.inputs()[0]);
    CLEAVE_ASSERT(factors.size() <= static_cast<size_t>(kMost), "more than {} factors", kMost);
    int64_t weight = 1;
    for (size_t d = factors.size(); d-- > 0;) {
      const Extent& extent = args.extents[static_cast<size_t>(factors[d])];
      places.weight[d] = weight;
      places.shards[d] = shard_of(extent);
      weight *= extent.global;
    }
    places.dims = static_cast<int>(factors.size());
    return places;
  }
  __device__ int64_t index(int64_t local) const {
    int64_t whole = 0;
    for (int d = dims - 1; d >= 0; --d) {
      const int64_t rest = local / shards[d].local;
      whole += shards[d].position(local - rest * shards[d].local) * weight[d];
      local = rest;
    }
    return whole;
  }
};

// The same with moments that are rounded stochastically. The loops have one more operand: the
// row-major index.
template <class U>
__global__ void __launch_bounds__(kThreads)
    round_elements(U update, Operands<U> operands, Loops<Operands<U>::kAll + 1> loops,
                   Places places, Draws draws) {
  using S = typename U::Number;
  const typename U::Scalars scalars = shared_scalars(update);
  const S decay = U::decay(scalars, operands.weight_decay);
  const Random random = draws.random();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < loops.count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    int64_t at[Operands<U>::kAll + 1];
    loops.offsets(i, at);
    S old[U::kIn], made[U::kOut];
    old[0] = operands.parameter(at);
    for (int k = 1; k < U::kIn; ++k) old[k] = get<S>(operands.old[k], at[k]);
    // What is stored already is not changed by rounding.
    if (scalars.clip < 0) {
      for (int k = 0; k < U::kOut; ++k) made[k] = old[k];
    } else {
      U::update(scalars, decay, old, made);
    }
    const unsigned bits = random.at(static_cast<uint64_t>(places.index(at[Operands<U>::kAll])));
    operands.set_parameter(at, made[0]);
    for (int k = 1; k < U::kOut; ++k) {
      static_cast<bf16*>(operands.made[k].data)[at[U::kIn + k]] = rounded(made[k], bits, k - 1);
    }
  }
}

// --- Launchers -----------------------------------------------------------------------------------

// Tensors that one launch can update: of the same types, by the same scalars. Their moments are
// rounded to the nearest, or are those of Rounded.
template <class U, template <class> class Item>
struct Alike {
  U update;
  DType p, m, g, copy;  // kI32: no copy; kI16: p is f32, in two
  std::vector<Item<U>> items = {};

  bool takes(const Alike& other) const {
    return update == other.update && p == other.p && m == other.m && g == other.g &&
           copy == other.copy;
  }
};

// Calls fn with zeros of the types, for those that training uses; returns whether it did.
template <class Fn>
bool with_update_types(DType p, DType m, DType g, DType copy, const Fn& fn) {
  const auto halves = [&]<class P>(P zero) {
    if (copy != DType::kI32 || (m != p && m != DType::kF32)) return false;
    const auto gradients = [&](auto moment) {
      if (g == p) return fn(zero, moment, zero, NoCopy{}), true;
      return g == DType::kF32 && (fn(zero, moment, float{}, NoCopy{}), true);
    };
    return m == p ? gradients(zero) : gradients(float{});
  };
  if (p == DType::kBF16) return halves(bf16{});
  if (p == DType::kF16) return halves(f16{});
  if (m != p || p == DType::kI32) return false;
  if (p == DType::kF64) {
    if (g != p || copy != DType::kI32) return false;
    return fn(double{}, double{}, double{}, NoCopy{}), true;
  }
  const auto copies = [&]<class H>(H zero, DType half) {
    if (copy != half || (g != DType::kF32 && g != half)) return false;
    if (g == half) return fn(float{}, float{}, zero, zero), true;
    return fn(float{}, float{}, float{}, zero), true;
  };
  if (copy == DType::kI16) {
    if (g == DType::kF32) return fn(float{}, float{}, float{}, Rest{}), true;
    return g == DType::kBF16 && (fn(float{}, float{}, bf16{}, Rest{}), true);
  }
  if (copy == DType::kI32) {
    if (g == DType::kF32) return fn(float{}, float{}, float{}, NoCopy{}), true;
    if (g == DType::kBF16) return fn(float{}, float{}, bf16{}, NoCopy{}), true;
    return g == DType::kF16 && (fn(float{}, float{}, f16{}, NoCopy{}), true);
  }
  return copies(bf16{}, DType::kBF16) || copies(f16{}, DType::kF16);
}

// The same for tensors that are updated as this item says: in f32, where moments are rounded.
template <template <class> class Item, class U, class Fn>
bool with_item_types(const Alike<U, Item>& alike, const Fn& fn) {
  if constexpr (std::is_same_v<Item<U>, Rounded<U>>) {
    if (alike.p != DType::kF32 || alike.m != DType::kBF16) return false;
    return with_update_types(alike.p, alike.p, alike.g, alike.copy,
                             [&]<class P, class M, class G, class H>(P p, M, G g, H copy) {
                               if constexpr (std::is_same_v<P, float>) fn(p, bf16{}, g, copy);
                             });
  } else {
    return with_update_types(alike.p, alike.m, alike.g, alike.copy, fn);
  }
}

bool has_rest(const KernelArgs& args) { return args.in.back().dtype == DType::kI16; }

// How an update's operands lie, as Operands has them.
template <class U>
struct Lying {
  static constexpr size_t kAll = Operands<U>::kAll;
  std::array<Shape, kAll> strides;
  std::array<const void*, kAll> data = {};
  bool in_place = true;

  explicit Lying(const KernelArgs& args) {
    for (size_t k = 0; k < U::kIn; ++k) {
      const auto i = static_cast<size_t>(U::kOperands[k]);
      strides[k] = in_strides(args, i);
      data[k] = args.in[i].data;
    }
    for (size_t o = 0; o < U::kOut; ++o) {
      strides[U::kIn + o] = out_strides(args, o);
      data[U::kIn + o] = args.out[o].data;
      in_place &= args.out[o].data == data[o];
    }
    constexpr size_t kCopy = Operands<U>::kCopy, kRest = Operands<U>::kRest;
    strides[kCopy] = strides[kRest] = strides[0];
    if (args.out.size() > U::kOut) {
      strides[kCopy] = out_strides(args, U::kOut);
      data[kCopy] = args.out[U::kOut].data;
    }
    if (!has_rest(args)) return;
    strides[kRest] = in_strides(args, args.in.size() - 1);
    data[kRest] = args.in.back().data;
    in_place &= data[kRest] == data[kCopy];
  }
  // Loops over all, and over `more`.
  template <class... More>
  LoopNest<kAll + sizeof...(More)> nest(const KernelArgs& args, const More&... more) const {
    std::array<Shape, kAll + sizeof...(More)> all;
    std::copy(strides.begin(), strides.end(), all.begin());
    size_t next = kAll;
    ((all[next++] = more), ...);
    return nest_over<kAll + sizeof...(More)>(args, factors_of(args.signature.inputs()[0]), all);
  }
};

template <class U>
Operands<U> operands_of(const KernelArgs& args) {
  Operands<U> operands;
  for (int k = 0; k < U::kIn; ++k) {
    operands.old[k] = any_float(args.in[static_cast<size_t>(U::kOperands[k])]);
  }
  for (int k = 0; k < U::kOut; ++k) operands.made[k] = any_float(args.out[static_cast<size_t>(k)]);
  if (has_rest(args)) {
    operands.new_rest = args.out[U::kOut].template as<int16_t>();
    operands.old_rest = args.in.back().template as<int16_t>();
  } else if (args.out.size() > U::kOut) {
    operands.copy = any_float(args.out[U::kOut]);
  }
  operands.weight_decay = args.attrs.real("weight_decay");
  return operands;
}

template <class U>
void launch_elements(const KernelArgs& args, const Lying<U>& lying) {
  const auto loops = loops_of(lying.nest(args));
  const unsigned blocks = blocks_for(loops.count, kThreads, kUpdateBlocks);
  if (blocks == 0) return;
  update_elements<U><<<blocks, kThreads, 0, static_cast<cudaStream_t>(args.stream)>>>(
      U::of(args), operands_of<U>(args), loops);
  cuda_check(cudaGetLastError());
}

template <class U>
void launch_round_elements(const KernelArgs& args, const Lying<U>& lying, const WholeIndex& where) {
  const auto loops = loops_of(lying.nest(args, where.local_strides()));
  const unsigned blocks = blocks_for(loops.count, kThreads, kUpdateBlocks);
  if (blocks == 0) return;
  round_elements<U><<<blocks, kThreads, 0, static_cast<cudaStream_t>(args.stream)>>>(
      U::of(args), operands_of<U>(args), loops, Places::of(args), Draws::of<U>(args));
  cuda_check(cudaGetLastError());
}

template <class U, template <class> class Item>
void launch_alike(const Alike<U, Item>& alike, cudaStream_t stream) {
  const int piece = piece_of(static_cast<int>(size_of(alike.p)));
  in_tables(
      alike.items, [&](const Item<U>& item) { return ceil_div(item.count, piece); },
      [&](const Table<Item<U>>& table, unsigned pieces) {
        with_item_types(alike, [&]<class P, class M, class G, class H>(P, M, G, H) {
          if constexpr (std::is_same_v<P, double> == std::is_same_v<typename U::Number, double>)
            update_pieces<Item, U, P, M, G, H>
                <<<pieces, kThreads, 0, stream>>>(alike.update, table);
        });
        cuda_check(cudaGetLastError());
      });
}

// Tensors in the groups that one launch can update.
template <class U, template <class> class Item>
class Groups {
 public:
  // Whether kernels for such tensors are there.
  static bool known(const Alike<U, Item>& alone) {
    return with_item_types(alone, [](auto, auto, auto, auto) {});
  }
  void add(Alike<U, Item> alone, Item<U> item) {
    size_t at = 0;
    while (at < groups_.size() && !groups_[at].takes(alone)) ++at;
    if (at == groups_.size()) groups_.push_back(std::move(alone));
    groups_[at].items.push_back(std::move(item));
  }
  void launch(cudaStream_t stream) const {
    for (const Alike<U, Item>& group : groups_) launch_alike(group, stream);
  }

 private:
  std::vector<Alike<U, Item>> groups_;
};

template <class U, template <class> class Item>
Alike<U, Item> alike_of(const KernelArgs& args) {
  const auto type = [&](size_t k) { return args.in[static_cast<size_t>(U::kOperands[k])].dtype; };
  return {U::of(args), has_rest(args) ? DType::kF32 : type(0), type(1), type(U::kIn - 1),
          args.out.size() > U::kOut ? args.out[U::kOut].dtype : DType::kI32};
}

// The tensor, when all of its operands are dense and it is updated in place.
template <class U>
std::optional<Updated<U>> dense_item(const KernelArgs& args, const Lying<U>& lying) {
  const auto nest = lying.nest(args);
  if (!lying.in_place || !is_dense<Lying<U>::kAll>(nest, lying.data)) return std::nullopt;
  for (size_t o = 2; o < U::kOut; ++o) {
    if (args.out[o].dtype != args.out[1].dtype) return std::nullopt;
  }
  Updated<U> item;
  item.p = args.out[0].data;
  for (size_t o = 1; o < U::kOut; ++o) item.moments[o - 1] = args.out[o].data;
  item.g = args.in[1].data;
  if (args.out.size() > U::kOut) item.copy = args.out[U::kOut].data;
  item.weight_decay = args.attrs.real("weight_decay");
  item.count = nest.count();
  return item;
}

template <class U>
void launch_updates(std::span<const KernelArgs> all) {
  Groups<U, Updated> plain;
  Groups<U, Rounded> rounded;
  for (const KernelArgs& args : all) {
    const Lying<U> lying(args);
    const std::optional<Updated<U>> item = dense_item<U>(args, lying);
    if (!args.attrs.has("name")) {
      auto alone = alike_of<U, Updated>(args);
      if (item && plain.known(alone)) {
        plain.add(std::move(alone), *item);
      } else {
        launch_elements<U>(args, lying);
      }
      continue;
    }
    const WholeIndex where(args, args.signature.inputs()[0]);
    const auto spaced = where.spaced();
    auto alone = alike_of<U, Rounded>(args);
    if (item && rounded.known(alone) && spaced && Rounded<U>::takes(*spaced, item->count)) {
      rounded.add(std::move(alone),
                  {*item, Draws::of<U>(args), spaced->first, spaced->run, spaced->stride});
    } else {
      launch_round_elements<U>(args, lying, where);
    }
  }
  const auto stream = static_cast<cudaStream_t>(all[0].stream);
  plain.launch(stream);
  rounded.launch(stream);
}

template <template <class> class U>
void launch_in_type(std::span<const KernelArgs> all) {
  // All are computed in float, or all in double: else one after the other.
  for (size_t i = 0; i < all.size();) {
    const bool is_double = all[i].in[0].dtype == DType::kF64;
    size_t end = i + 1;
    while (end < all.size() && (all[end].in[0].dtype == DType::kF64) == is_double) ++end;
    if (is_double) {
      launch_updates<U<double>>(all.subspan(i, end - i));
    } else {
      launch_updates<U<float>>(all.subspan(i, end - i));
    }
    i = end;
  }
}

}  // namespace

void adamw_cuda_many(std::span<const KernelArgs> all) { launch_in_type<AdamW>(all); }
void adamw_cuda(const KernelArgs& args) { adamw_cuda_many({&args, 1}); }

void sgd_cuda_many(std::span<const KernelArgs> all) { launch_in_type<Sgd>(all); }
void sgd_cuda(const KernelArgs& args) { sgd_cuda_many({&args, 1}); }

}  // namespace cleave
