// The updates of parameters and their moments by AdamW and SGD, of many tensors in one launch. What
// the step's scalars are is read on the device; an update whose clipping coefficient is negative is
// not made.
#include <array>
#include <type_traits>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/loops.cuh"
#include "kernels/cuda/many.cuh"

namespace cleave {
namespace {

constexpr int kThreads = 256;
constexpr int kUpdateBlocks = 132 * 8;  // of tensors that lie in any way

// --- Updates -------------------------------------------------------------------------------------

// Each update works out the step's scalars once, then new[0..kOut) of old[0..kIn), whose last is
// the gradient; new o takes the place of old o. S: what it computes in. kOperands: old as inputs
// of the op.

template <class S>
struct AdamW {
  using Number = S;
  static constexpr int kIn = 4, kOut = 3;  // p, m, v and the gradient
  static constexpr int kOperands[kIn] = {0, 2, 3, 1};
  double beta1, beta2, eps;
  AnyFloat lr, clip;
  const int* step;
  bool operator==(const AdamW&) const = default;

  static AdamW of(const KernelArgs& args) {
    return {args.attrs.real("beta1"), args.attrs.real("beta2"), args.attrs.real("eps"),
            any_float(args.in[4]),    any_float(args.in[5]),    args.in[6].as<const int>()};
  }

  struct Scalars {
    S decay, clip, beta1, beta2, step_size, root_correction, eps;
  };
  __device__ Scalars scalars(double weight_decay) const {
    const double rate = get<double>(lr, 0), n = *step;
    return {static_cast<S>(1 - rate * weight_decay),
            get<S>(clip, 0),
            static_cast<S>(beta1),
            static_cast<S>(beta2),
            static_cast<S>(rate / (1 - pow(beta1, n))),
            static_cast<S>(sqrt(1 - pow(beta2, n))),
            static_cast<S>(eps)};
  }
  __device__ static void update(const Scalars& c, const S (&old)[kIn], S (&made)[kOut]) {
    const S g = old[3] * c.clip;
    const S m = old[1] + (g - old[1]) * (1 - c.beta1);
    const S v = old[2] * c.beta2 + g * g * (1 - c.beta2);
    made[0] = old[0] * c.decay - c.step_size * (m / (sqrt_of(v) / c.root_correction + c.eps));
    made[1] = m;
    made[2] = v;
  }
};

template <class S>
struct Sgd {
  using Number = S;
  static constexpr int kIn = 3, kOut = 2;  // p, the momentum and the gradient
  static constexpr int kOperands[kIn] = {0, 2, 1};
  double momentum;
  AnyFloat lr, clip;
  bool operator==(const Sgd&) const = default;

  static Sgd of(const KernelArgs& args) {
    return {args.attrs.real("momentum"), any_float(args.in[3]), any_float(args.in[4])};
  }

  struct Scalars {
    S lr, clip, momentum, decay;
  };
  __device__ Scalars scalars(double weight_decay) const {
    return {get<S>(lr, 0), get<S>(clip, 0), static_cast<S>(momentum), static_cast<S>(weight_decay)};
  }
  __device__ static void update(const Scalars& c, const S (&old)[kIn], S (&made)[kOut]) {
    made[1] = c.momentum * old[1] + (old[2] * c.clip + c.decay * old[0]);
    made[0] = old[0] - c.lr * made[1];
  }
};

// The scalars, worked out by one thread of the block.
template <class U>
__device__ typename U::Scalars shared_scalars(const U& update, double weight_decay) {
  __shared__ typename U::Scalars scalars;
  if (threadIdx.x == 0) scalars = update.scalars(weight_decay);
  __syncthreads();
  return scalars;
}

// --- Dense tensors, in place ---------------------------------------------------------------------

template <class U>
struct Updated {
  void* p = nullptr;
  void* moments[U::kIn - 2] = {};
  const void* g = nullptr;
  void* copy = nullptr;  // the new parameter in another type
  double weight_decay = 0;
  int64_t count = 0;
};

struct NoCopy {};

// Parameters of type P, moments of type M, gradients of type G, copies of type H. A piece has
// `piece` elements.
template <class U, class P, class M, class G, class H>
__global__ void __launch_bounds__(kThreads, sizeof(P) == 4 ? 4 : 2)
    update_pieces(U update, const __grid_constant__ Table<Updated<U>> table, int piece) {
  using S = typename U::Number;
  constexpr int kMoments = U::kIn - 2, N = kWide<P>, kTurn = 2;
  constexpr bool kCopies = !std::is_same_v<H, NoCopy>;
  const int which = table.item_of(blockIdx.x);
  const Updated<U>& item = table.items[which];
  const int64_t begin = static_cast<int64_t>(blockIdx.x - table.first[which]) * piece;
  const int n = item.count - begin < piece ? static_cast<int>(item.count - begin) : piece;
  const int vectors = n / N;
  P* const p = static_cast<P*>(item.p) + begin;
  M* m[kMoments];
#pragma unroll
  for (int k = 0; k < kMoments; ++k) m[k] = static_cast<M*>(item.moments[k]) + begin;
  const G* const g = static_cast<const G*>(item.g) + begin;
  [[maybe_unused]] H* const copy = static_cast<H*>(item.copy) + begin;

  Vec<P, N> now_p[kTurn];
  Vec<M, N> now_m[kTurn][kMoments];
  Vec<G, N> now_g[kTurn];
  const auto fetch = [&](int i) {
#pragma unroll
    for (int u = 0; u < kTurn; ++u) {
      const int at = (i + u * kThreads) * N;
      if (i + u * kThreads >= vectors) break;
      now_p[u] = load<N>(static_cast<const P*>(p) + at);
#pragma unroll
      for (int k = 0; k < kMoments; ++k) now_m[u][k] = load<N>(static_cast<const M*>(m[k]) + at);
      now_g[u] = load<N>(g + at);
    }
  };
  // The first elements are on their way while the scalars are worked out.
  int i = static_cast<int>(threadIdx.x);
  fetch(i);
  const typename U::Scalars scalars = shared_scalars(update, item.weight_decay);
  if (scalars.clip < 0) {
    if constexpr (kCopies) {
      for (int j = static_cast<int>(threadIdx.x); j < n; j += kThreads) {
        copy[j] = To<H>::of(number(p[j]));
      }
    }
    return;
  }
  // One element, and its copy.
  const auto renew = [&](P& p_j, M* const(&m_j)[kMoments], G g_j) {
    S old[U::kIn], made[U::kOut];
    old[0] = number(p_j);
#pragma unroll
    for (int k = 0; k < kMoments; ++k) old[k + 1] = number(*m_j[k]);
    old[U::kIn - 1] = number(g_j);
    U::update(scalars, old, made);
    p_j = To<P>::of(made[0]);
#pragma unroll
    for (int k = 0; k < kMoments; ++k) *m_j[k] = To<M>::of(made[k + 1]);
  };
  while (i < vectors) {
#pragma unroll
    for (int u = 0; u < kTurn; ++u) {
      const int at = (i + u * kThreads) * N;
      if (i + u * kThreads >= vectors) break;
#pragma unroll
      for (int j = 0; j < N; ++j) {
        M* m_j[kMoments];
#pragma unroll
        for (int k = 0; k < kMoments; ++k) m_j[k] = &now_m[u][k].x[j];
        renew(now_p[u].x[j], m_j, now_g[u].x[j]);
      }
      store(p + at, now_p[u]);
#pragma unroll
      for (int k = 0; k < kMoments; ++k) store(m[k] + at, now_m[u][k]);
      if constexpr (kCopies) {
        Vec<H, N> halves;
#pragma unroll
        for (int j = 0; j < N; ++j) halves.x[j] = To<H>::of(number(now_p[u].x[j]));
        store(copy + at, halves);
      }
    }
    i += kTurn * kThreads;
    fetch(i);
  }
  const int rest = vectors * N + static_cast<int>(threadIdx.x);
  if (rest < n) {
    M* m_j[kMoments];
    for (int k = 0; k < kMoments; ++k) m_j[k] = m[k] + rest;
    renew(p[rest], m_j, g[rest]);
    if constexpr (kCopies) copy[rest] = To<H>::of(number(p[rest]));
  }
}

// --- Operands of any types that lie in any way ---------------------------------------------------

// Pointers of an update: old, gradient last, then new, and the copy, if any.
template <class U>
struct Operands {
  static constexpr int kAll = U::kIn + U::kOut + 1;
  AnyFloat old[U::kIn], made[U::kOut], copy;
  double weight_decay = 0;
};

template <class U>
__global__ void __launch_bounds__(kThreads)
    update_elements(U update, Operands<U> operands, Loops<Operands<U>::kAll> loops) {
  using S = typename U::Number;
  const typename U::Scalars scalars = shared_scalars(update, operands.weight_decay);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < loops.count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    int64_t at[Operands<U>::kAll];
    loops.offsets(i, at);
    S old[U::kIn], made[U::kOut];
    for (int k = 0; k < U::kIn; ++k) old[k] = get<S>(operands.old[k], at[k]);
    if (scalars.clip < 0) {
      for (int k = 0; k < U::kOut; ++k) made[k] = old[k];
    } else {
      U::update(scalars, old, made);
    }
    for (int k = 0; k < U::kOut; ++k) set(operands.made[k], at[U::kIn + k], made[k]);
    if (operands.copy.data == nullptr) continue;
    set(operands.copy, at[U::kIn + U::kOut], get<S>(operands.made[0], at[U::kIn]));
  }
}

// --- Launchers -----------------------------------------------------------------------------------

// Tensors that one launch can update: of the same types, by the same scalars.
template <class U>
struct Alike {
  U update;
  DType p, m, g, copy;  // kI32: no copy
  std::vector<Updated<U>> items = {};

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
  if (copy == DType::kI32) {
    if (g == DType::kF32) return fn(float{}, float{}, float{}, NoCopy{}), true;
    if (g == DType::kBF16) return fn(float{}, float{}, bf16{}, NoCopy{}), true;
    return g == DType::kF16 && (fn(float{}, float{}, f16{}, NoCopy{}), true);
  }
  return copies(bf16{}, DType::kBF16) || copies(f16{}, DType::kF16);
}

template <class U>
void launch_elements(const KernelArgs& args, const LoopNest<Operands<U>::kAll>& nest) {
  Operands<U> operands;
  for (int k = 0; k < U::kIn; ++k) {
    operands.old[k] = any_float(args.in[static_cast<size_t>(U::kOperands[k])]);
  }
  for (int k = 0; k < U::kOut; ++k) operands.made[k] = any_float(args.out[static_cast<size_t>(k)]);
  if (args.out.size() > U::kOut) operands.copy = any_float(args.out[U::kOut]);
  operands.weight_decay = args.attrs.real("weight_decay");
  const auto loops = loops_of(nest);
  const unsigned blocks = blocks_for(loops.count, kThreads, kUpdateBlocks);
  if (blocks == 0) return;
  update_elements<U><<<blocks, kThreads, 0, static_cast<cudaStream_t>(args.stream)>>>(
      U::of(args), operands, loops);
  cuda_check(cudaGetLastError());
}

template <class U>
void launch_alike(const Alike<U>& alike, cudaStream_t stream) {
  int64_t elements = 0;
  for (const Updated<U>& item : alike.items) elements += item.count;
  // Pieces small enough that every multiprocessor has some, large enough to begin seldom.
  int piece = 16384;
  while (piece > 2048 && elements < int64_t{piece} * 132 * 16) piece /= 2;
  in_tables(
      alike.items, [&](const Updated<U>& item) { return ceil_div(item.count, piece); },
      [&](const Table<Updated<U>>& table, unsigned pieces) {
        with_update_types(
            alike.p, alike.m, alike.g, alike.copy,
            [&]<class P, class M, class G, class H>(P, M, G, H) {
              if constexpr (std::is_same_v<P, double> == std::is_same_v<typename U::Number, double>)
                update_pieces<U, P, M, G, H>
                    <<<pieces, kThreads, 0, stream>>>(alike.update, table, piece);
            });
        cuda_check(cudaGetLastError());
      });
}

template <class U>
void launch_updates(std::span<const KernelArgs> all) {
  std::vector<Alike<U>> groups;
  for (const KernelArgs& args : all) {
    constexpr size_t kAll = Operands<U>::kAll;
    std::array<Shape, kAll> strides;
    std::array<const void*, kAll> data = {};
    bool in_place = true;
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
    const bool copies = args.out.size() > U::kOut;
    strides[kAll - 1] = copies ? out_strides(args, U::kOut) : strides[0];
    if (copies) data[kAll - 1] = args.out[U::kOut].data;
    const auto nest = nest_over<kAll>(args, factors_of(args.signature.inputs()[0]), strides);
    const auto type = [&](size_t k) { return args.in[static_cast<size_t>(U::kOperands[k])].dtype; };
    Alike<U> alone = {U::of(args), type(0), type(1), type(U::kIn - 1),
                      copies ? args.out[U::kOut].dtype : DType::kI32};
    bool dense = in_place && is_dense<kAll>(nest, data);
    for (size_t k = 2; k + 1 < U::kIn; ++k) dense &= type(k) == alone.m;
    if (!dense ||
        !with_update_types(alone.p, alone.m, alone.g, alone.copy, [](auto, auto, auto, auto) {})) {
      launch_elements<U>(args, nest);
      continue;
    }
    Updated<U> item;
    item.p = args.out[0].data;
    for (size_t o = 1; o < U::kOut; ++o) item.moments[o - 1] = args.out[o].data;
    item.g = args.in[1].data;
    if (copies) item.copy = args.out[U::kOut].data;
    item.weight_decay = args.attrs.real("weight_decay");
    item.count = nest.count();
    size_t at = 0;
    while (at < groups.size() && !groups[at].takes(alone)) ++at;
    if (at == groups.size()) groups.push_back(std::move(alone));
    groups[at].items.push_back(item);
  }
  for (const Alike<U>& group : groups) {
    launch_alike(group, static_cast<cudaStream_t>(all[0].stream));
  }
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
