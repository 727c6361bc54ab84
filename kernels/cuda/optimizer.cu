// What a training step ends with, on the device: nothing here is read by the host. An update whose
// clipping coefficient is negative is not made.
#include <array>
#include <string>
#include <type_traits>

#include "kernels/cuda/check.h"
#include "kernels/cuda/loops.cuh"
#include "kernels/cuda/workspace.h"

namespace cleave {

namespace {

constexpr int kThreads = 256;
constexpr int kUpdateBlocks = 132 * 8;

// --- Sums of squares -----------------------------------------------------------------------------

// The sum over the block, in thread 0.
__device__ double block_sum(double sum) {
  __shared__ double sums[kThreads / 32];
  for (int width = 16; width > 0; width /= 2) sum += __shfl_down_sync(~0u, sum, width);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < kThreads / 32 ? sums[threadIdx.x] : 0;
    for (int width = kThreads / 64; width > 0; width /= 2) {
      sum += __shfl_down_sync(~0u, sum, width);
    }
  }
  return sum;
}

// parts[block] = a sum over a share of the elements that depends on nothing but their number. Few
// squares are added as floats, the rest as doubles.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    square_parts(const T* x, Loops<1> loops, double* parts) {
  constexpr int kUnroll = 4;
  using S = typename Sum<T>::Type;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  double sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < loops.count;
       i += kUnroll * step) {
    Vec<T, N> v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (i + u * step >= loops.count) break;
      int64_t at[1];
      loops.offsets(i + u * step, at);
      v[u] = load<N>(x + at[0]);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (i + u * step >= loops.count) break;
      S few = 0;
#pragma unroll
      for (int j = 0; j < N; ++j) few += number(v[u].x[j]) * number(v[u].x[j]);
      sum += few;
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    add_parts(const double* parts, int count, AnyFloat total) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) sum += parts[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) set(total, 0, sum);
}

// --- Scalars -------------------------------------------------------------------------------------

// The loss is judged by two limits, or by none.
struct Judged {
  AnyFloat squares, loss, loss_limit, norm_limit;
  bool limits = false;
};

template <class S>
__global__ void coefficient(Judged judged, S max_norm, AnyFloat norm_out, AnyFloat out) {
  const S norm = sqrt_of(get<S>(judged.squares, 0));
  const S loss = get<S>(judged.loss, 0);
  bool sound = isfinite(norm) && isfinite(loss);
  if (judged.limits) {
    sound = sound && loss <= get<S>(judged.loss_limit, 0) && norm <= get<S>(judged.norm_limit, 0);
  }
  set(norm_out, 0, norm);
  const S clip = max_norm / (norm + static_cast<S>(1e-6));
  set(out, 0, !sound ? S{-1} : max_norm == 0 || clip > 1 ? S{1} : clip);
}

__global__ void count_up(const int* from, int* to) { *to = *from + 1; }

__global__ void count_if_made(const int* from, AnyFloat coefficient, int* to) {
  *to = *from + (get<double>(coefficient, 0) < 0 ? 0 : 1);
}

struct Schedule {
  double base = 0, min = 0;
  int64_t warmup = 0, total = 0;
  bool cosine = false;
};

__global__ void rate(Schedule s, const int* step_of, AnyFloat out) {
  const int64_t step = *step_of;
  double lr = s.base;
  if (step < s.warmup) {
    lr = s.base * static_cast<double>(step) / static_cast<double>(s.warmup);
  } else if (s.cosine && step >= s.total) {
    lr = s.min;
  } else if (s.cosine) {
    const double progress =
        static_cast<double>(step - s.warmup) / static_cast<double>(s.total - s.warmup);
    lr = s.min + 0.5 * (s.base - s.min) * (1 + cospi(progress));
  }
  set(out, 0, lr);
}

// --- Updates -------------------------------------------------------------------------------------

// Each update works out the step's scalars once, then new[0..kOut) of old[0..kIn), whose last is
// the gradient; new o takes the place of old o. S: what it computes in.

template <class S>
struct AdamW {
  static constexpr int kIn = 4, kOut = 3;  // p, m, v and the gradient
  double beta1, beta2, eps, weight_decay;
  AnyFloat lr, clip;
  const int* step;

  struct Scalars {
    S decay, clip, beta1, beta2, step_size, root_correction, eps;
  };
  __device__ Scalars scalars() const {
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
  static constexpr int kIn = 3, kOut = 2;  // p, the momentum and the gradient
  double momentum, weight_decay;
  AnyFloat lr, clip;

  struct Scalars {
    S lr, clip, momentum, decay;
  };
  __device__ Scalars scalars() const {
    return {get<S>(lr, 0), get<S>(clip, 0), static_cast<S>(momentum), static_cast<S>(weight_decay)};
  }
  __device__ static void update(const Scalars& c, const S (&old)[kIn], S (&made)[kOut]) {
    made[1] = c.momentum * old[1] + (old[2] * c.clip + c.decay * old[0]);
    made[0] = old[0] - c.lr * made[1];
  }
};

// Pointers of an update: old, gradient last, then new.
template <class U>
struct Operands {
  AnyFloat old[U::kIn], made[U::kOut];
  bool in_place = false;  // all of them
};

// The scalars, worked out by one thread of the block.
template <class U>
__device__ typename U::Scalars shared_scalars(const U& update) {
  __shared__ typename U::Scalars scalars;
  if (threadIdx.x == 0) scalars = update.scalars();
  __syncthreads();
  return scalars;
}

// Parameters of type P, moments of type M, gradients of type G, kVector elements a thread and turn.
template <class U, class S, class P, class M, class G, int kVector>
__global__ void __launch_bounds__(kThreads)
    update_vectors(U update, Operands<U> operands, Loops<U::kIn + U::kOut> loops) {
  constexpr int kIn = U::kIn, kOut = U::kOut;
  const bool skipped = get<S>(update.clip, 0) < 0;
  if (skipped && operands.in_place) return;
  const typename U::Scalars scalars = shared_scalars(update);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < loops.count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    int64_t at[kIn + kOut];
    loops.offsets(i, at);
    const auto p = load<kVector>(static_cast<const P*>(operands.old[0].data) + at[0]);
    Vec<M, kVector> m[kIn - 2], new_m[kIn - 2];
#pragma unroll
    for (int k = 0; k < kIn - 2; ++k) {
      m[k] = load<kVector>(static_cast<const M*>(operands.old[k + 1].data) + at[k + 1]);
    }
    const auto g = load<kVector>(static_cast<const G*>(operands.old[kIn - 1].data) + at[kIn - 1]);
    Vec<P, kVector> new_p;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      S old[kIn], made[kOut];
      old[0] = number(p.x[j]);
#pragma unroll
      for (int k = 0; k < kIn - 2; ++k) old[k + 1] = number(m[k].x[j]);
      old[kIn - 1] = number(g.x[j]);
      if (skipped) {
#pragma unroll
        for (int k = 0; k < kOut; ++k) made[k] = old[k];
      } else {
        U::update(scalars, old, made);
      }
      new_p.x[j] = To<P>::of(made[0]);
#pragma unroll
      for (int k = 0; k < kIn - 2; ++k) new_m[k].x[j] = To<M>::of(made[k + 1]);
    }
    store(static_cast<P*>(operands.made[0].data) + at[kIn], new_p);
#pragma unroll
    for (int k = 0; k < kIn - 2; ++k) {
      store(static_cast<M*>(operands.made[k + 1].data) + at[kIn + k + 1], new_m[k]);
    }
  }
}

// Operands of any types that lie in any way.
template <class U, class S>
__global__ void __launch_bounds__(kThreads)
    update_elements(U update, Operands<U> operands, Loops<U::kIn + U::kOut> loops) {
  const bool skipped = get<S>(update.clip, 0) < 0;
  if (skipped && operands.in_place) return;
  const typename U::Scalars scalars = shared_scalars(update);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < loops.count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    int64_t at[U::kIn + U::kOut];
    loops.offsets(i, at);
    S old[U::kIn], made[U::kOut];
    for (int k = 0; k < U::kIn; ++k) old[k] = get<S>(operands.old[k], at[k]);
    if (skipped) {
      for (int k = 0; k < U::kOut; ++k) made[k] = old[k];
    } else {
      U::update(scalars, old, made);
    }
    for (int k = 0; k < U::kOut; ++k) set(operands.made[k], at[U::kIn + k], made[k]);
  }
}

// --- Launchers -----------------------------------------------------------------------------------

cudaStream_t stream_of(const KernelArgs& args) { return static_cast<cudaStream_t>(args.stream); }

// `old` of U as inputs of the op; its outputs are the new ones in order.
template <class U, class S>
void launch_update(const KernelArgs& args, const U& update, const int (&old)[U::kIn]) {
  constexpr int kAll = U::kIn + U::kOut;
  std::array<Shape, kAll> strides;
  std::array<const void*, kAll> data;
  Operands<U> operands;
  operands.in_place = true;
  for (int k = 0; k < U::kIn; ++k) {
    const auto i = static_cast<size_t>(old[k]);
    strides[static_cast<size_t>(k)] = in_strides(args, i);
    data[static_cast<size_t>(k)] = args.in[i].data;
    operands.old[k] = any_float(args.in[i]);
  }
  for (int k = 0; k < U::kOut; ++k) {
    const auto o = static_cast<size_t>(k);
    strides[U::kIn + o] = out_strides(args, o);
    data[U::kIn + o] = args.out[o].data;
    operands.made[k] = any_float(args.out[o]);
    operands.in_place &= args.out[o].data == operands.old[k].data;
  }
  const auto nest = nest_over<kAll>(args, factors_of(args.signature.inputs()[0]), strides);
  const DType p = operands.old[0].dtype, m = operands.old[1].dtype,
              g = operands.old[U::kIn - 1].dtype;
  bool one_type = true;  // of the moments
  for (int k = 1; k < U::kIn - 1; ++k) one_type &= operands.old[k].dtype == m;
  bool launched = false;
  const auto vectors = [&]<class P, class M, class G>(P, M, G) {
    constexpr int kVector = 16 / static_cast<int>(sizeof(P));
    if (!wide_loops(nest, data, kVector)) return;
    const auto loops = loops_of(in_vectors(nest, kVector));
    const unsigned blocks = blocks_for(loops.count, kThreads, kUpdateBlocks);
    if (blocks > 0) {
      update_vectors<U, S, P, M, G, kVector>
          <<<blocks, kThreads, 0, stream_of(args)>>>(update, operands, loops);
    }
    launched = true;
  };
  // Of the types that an update may have, those that training uses.
  const auto halves = [&]<class P>(P zero) {
    if (m == p && g == p) return vectors(zero, zero, zero);
    if (m == p && g == DType::kF32) return vectors(zero, zero, float{});
    if (m == DType::kF32 && g == p) return vectors(zero, float{}, zero);
    if (m == DType::kF32 && g == DType::kF32) return vectors(zero, float{}, float{});
  };
  if (one_type) {
    if constexpr (std::is_same_v<S, double>) {
      vectors(double{}, double{}, double{});
    } else if (p == DType::kF32) {
      vectors(float{}, float{}, float{});
    } else if (p == DType::kBF16) {
      halves(bf16{});
    } else {
      halves(f16{});
    }
  }
  if (!launched) {
    const auto loops = loops_of(nest);
    const unsigned blocks = blocks_for(loops.count, kThreads, kUpdateBlocks);
    if (blocks > 0) {
      update_elements<U, S><<<blocks, kThreads, 0, stream_of(args)>>>(update, operands, loops);
    }
  }
  cuda_check(cudaGetLastError());
}

}  // namespace

void sum_squares_cuda(const KernelArgs& args) {
  auto* const parts = static_cast<double*>(args.workspace);
  const auto nest =
      nest_over<1>(args, factors_of(args.signature.inputs()[0]), {in_strides(args, 0)});
  unsigned blocks = 0;
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    constexpr int kVector = 16 / static_cast<int>(sizeof(T));
    const T* const x = args.in[0].as<const T>();
    const bool vectors = wide_loops<1>(nest, {x}, kVector);
    const auto loops = loops_of(in_vectors(nest, vectors ? kVector : 1));
    blocks = blocks_for(loops.count, kThreads, kSumSquaresBlocks);
    if (blocks == 0) return;
    if (vectors) {
      square_parts<T, kVector><<<blocks, kThreads, 0, stream_of(args)>>>(x, loops, parts);
    } else {
      square_parts<T, 1><<<blocks, kThreads, 0, stream_of(args)>>>(x, loops, parts);
    }
  });
  cuda_check(cudaGetLastError());
  add_parts<<<1, kThreads, 0, stream_of(args)>>>(parts, static_cast<int>(blocks),
                                                 any_float(args.out[0]));
  cuda_check(cudaGetLastError());
}

void clip_coefficient_cuda(const KernelArgs& args) {
  Judged judged{any_float(args.in[0]), any_float(args.in[1]), {}, {}, args.in.size() == 4};
  if (judged.limits) {
    judged.loss_limit = any_float(args.in[2]), judged.norm_limit = any_float(args.in[3]);
  }
  with_sum_type(args.in[0].dtype, [&]<class S>(S) {
    coefficient<S><<<1, 1, 0, stream_of(args)>>>(judged,
                                                 static_cast<S>(args.attrs.real("max_norm")),
                                                 any_float(args.out[0]), any_float(args.out[1]));
  });
  cuda_check(cudaGetLastError());
}

void increment_cuda(const KernelArgs& args) {
  count_up<<<1, 1, 0, stream_of(args)>>>(args.in[0].as<const int>(), args.out[0].as<int>());
  cuda_check(cudaGetLastError());
}

void count_update_cuda(const KernelArgs& args) {
  count_if_made<<<1, 1, 0, stream_of(args)>>>(args.in[0].as<const int>(), any_float(args.in[1]),
                                              args.out[0].as<int>());
  cuda_check(cudaGetLastError());
}

void learning_rate_cuda(const KernelArgs& args) {
  Schedule s;
  s.base = args.attrs.real("base");
  s.warmup = args.attrs.integer_or("warmup", 0);
  s.cosine = args.attrs.text("kind") == "cosine";
  if (s.cosine) s.min = args.attrs.real("min"), s.total = args.attrs.integer("total");
  rate<<<1, 1, 0, stream_of(args)>>>(s, args.in[0].as<const int>(), any_float(args.out[0]));
  cuda_check(cudaGetLastError());
}

void adamw_cuda(const KernelArgs& args) {
  with_sum_type(args.in[0].dtype, [&]<class S>(S) {
    const AdamW<S> update = {args.attrs.real("beta1"),  args.attrs.real("beta2"),
                             args.attrs.real("eps"),    args.attrs.real("weight_decay"),
                             any_float(args.in[4]),     any_float(args.in[5]),
                             args.in[6].as<const int>()};
    launch_update<AdamW<S>, S>(args, update, {0, 2, 3, 1});
  });
}

void sgd_cuda(const KernelArgs& args) {
  with_sum_type(args.in[0].dtype, [&]<class S>(S) {
    const Sgd<S> update = {args.attrs.real("momentum"), args.attrs.real("weight_decay"),
                           any_float(args.in[3]), any_float(args.in[4])};
    launch_update<Sgd<S>, S>(args, update, {0, 2, 1});
  });
}

}  // namespace cleave
