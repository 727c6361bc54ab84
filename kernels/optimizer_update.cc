// The updates of parameters by AdamW and SGD, with the formulas of torch.optim. Moments of 16 bits
// are read and computed with as floats, and rounded stochastically as they are stored: to the
// nearest, the small steps of a slow mean would be lost every time. A parameter may come as its
// bf16 and the rest of its bits (graph/bf16_rest.h), two operands and two results.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <optional>
#include <span>

#include "graph/bf16_rest.h"
#include "graph/half.h"
#include "kernels/cuda_kernel.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"
#include "kernels/parallel.h"
#include "kernels/random_stream.h"
#include "kernels/stochastic.h"
#include "kernels/whole_index.h"

namespace cleave {

// kernels/cuda/optimizer_update.cu
void adamw_cuda(const KernelArgs&);
void adamw_cuda_many(std::span<const KernelArgs>);
void sgd_cuda(const KernelArgs&);
void sgd_cuda_many(std::span<const KernelArgs>);

namespace {

// --- Types ---------------------------------------------------------------------------------------

// With the attribute `rest`, 1, the parameter is an f32 that comes and goes as its bf16, in its
// place, and the rest of its bits as one more operand and result, the last.
bool has_rest(const Attrs& attrs) { return attrs.integer_or("rest", 0) != 0; }

// So many operands, and the rest.
void expect_operands(const OpCall& call, size_t operands) {
  if (!has_rest(call.attrs)) {
    if (call.in.size() != operands) fail("{} operands, not {}", call.in.size(), operands);
    return;
  }
  if (call.in.size() != operands + 1) fail("{} operands, not {}", call.in.size(), operands + 1);
  const TensorType &p = call.in[0], &rest = call.in.back();
  if (p.dtype != DType::kBF16 || rest != TensorType{DType::kI16, p.shape}) {
    fail("the parameter is {}, and the rest of its bits {}", to_string(p), to_string(rest));
  }
  if (call.attrs.has("dtype")) fail("a parameter with a rest has no other copy");
}

// Operands: the parameter, its gradient, `moments`, the rate and the clipping coefficient.
// Parameters of 16 bits may have their moments, and the scalars, in another float type; gradients
// may be narrower than the parameter, and moments bf16. With the attribute `name`, that of a random
// stream, moments are rounded stochastically, else to the nearest.
void expect_update_types(const OpCall& call, size_t moments) {
  const DType p = has_rest(call.attrs) ? DType::kF32 : call.in[0].dtype;
  const auto is_moment = [&](size_t i) { return i >= 2 && i < 2 + moments; };
  for (size_t i = has_rest(call.attrs) ? 1 : 0; i < moments + 4; ++i) {
    const DType t = call.in[i].dtype;
    const bool narrow =
        (i == 1 && is_float(t) && size_of(t) < size_of(p)) || (is_moment(i) && t == DType::kBF16);
    if (!is_float(t) || (t != p && !is_half(p) && !narrow)) {
      fail("operand {} must be {}, got {}", i + 1, name_of(p), to_string(call.in[i]));
    }
    if (is_moment(i) && t != call.in[2].dtype && !is_half(p)) {
      fail("moments of {} and {}", name_of(call.in[2].dtype), name_of(t));
    }
  }
  if (!call.attrs.has("name")) return;
  for (size_t i = 2; i < 2 + moments; ++i) {
    if (call.in[i].dtype != DType::kBF16) {
      fail("moments of {} are not rounded stochastically", name_of(call.in[i].dtype));
    }
  }
  for (const Factor& f : call.signature.factors()) {
    CLEAVE_ASSERT(f.indexed, "factor {} of '{}' must be indexed", f.letter, call.signature.text());
  }
}

void expect_step(const OpCall& call, size_t i) {
  expect_operands(call, i + 1);
  if (call.in[i].dtype != DType::kI32) {
    fail("the step must be an i32, got {}", to_string(call.in[i]));
  }
}

// With the attribute `dtype` the last result is the new parameter in that type.
std::vector<TensorType> with_copy(const OpCall& call, std::vector<TensorType> results) {
  if (has_rest(call.attrs)) results.push_back(call.in.back());
  if (!call.attrs.has("dtype")) return results;
  const DType copy = dtype_named(call.attrs.text("dtype"));
  if (!is_float(copy)) fail("a copy of the parameter in {}", name_of(copy));
  results.push_back({copy, call.in[0].shape});
  return results;
}

std::vector<TensorType> infer_adamw(const OpCall& call) {
  expect_step(call, 6);
  expect_update_types(call, 2);
  return with_copy(call, {call.in[0], call.in[2], call.in[3]});
}

// The step is there when moments are rounded stochastically.
std::vector<TensorType> infer_sgd(const OpCall& call) {
  if (call.attrs.has("name")) {
    expect_step(call, 5);
  } else {
    expect_operands(call, 5);
  }
  expect_update_types(call, 1);
  return with_copy(call, {call.in[0], call.in[2]});
}

// --- Moments of 16 bits --------------------------------------------------------------------------

// A bf16 as it lies in memory.
struct Bf16 {
  uint16_t bits;
};
float number(Bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

template <class T>
Bf16 nearest(T x) {
  return {bf16_bits(static_cast<double>(x))};
}
template <class T>
Bf16 stochastic(T x, uint32_t random) {
  return {stochastic_bf16(std::bit_cast<uint32_t>(static_cast<float>(x)), random)};
}

// How this update rounds them. Moment k gets half k of the element's random number.
class Rounding {
 public:
  Rounding(const KernelArgs& args, size_t step) : where_(args, args.signature.inputs()[0]) {
    if (!args.attrs.has("name")) return;
    stream_.emplace(args.seed, args.attrs.text("name"), args.in[step].as<const int32_t>()[0]);
  }

  const WholeIndex& where() const { return where_; }

  // The random numbers of n elements of the shard from this row-major index on.
  void draw(int64_t local, int64_t n, uint32_t* random) const {
    if (!stream_) return;
    for (int64_t i = 0; i < n;) {
      const int64_t in_run = (local + i) % where_.run();
      const int64_t count = std::min(where_.run() - in_run, n - i);
      uint32_t* const to = random + i;
      stream_->each(static_cast<uint64_t>(where_.at(local + i)), count,
                    [&](int64_t j, uint32_t bits) { to[j] = bits; });
      i += count;
    }
  }

  bool stochastic() const { return stream_.has_value(); }

 private:
  std::optional<RandomStream> stream_;  // none: to the nearest
  WholeIndex where_;
};

// --- Updates -------------------------------------------------------------------------------------

// The parameter's type, that of the gradient, and what to do.
template <class Fn>
void with_update_types(const KernelArgs& args, const Fn& fn) {
  with_float(args.in[0].dtype, [&]<class T>(T zero) {
    with_float(args.in[1].dtype, [&]<class G>(G gradient) { fn(zero, gradient); });
  });
}

// Result `copy`, if there is one, becomes the new parameter, result 0, in its own type.
void copy_parameter(const KernelArgs& args, size_t copy) {
  if (args.out.size() <= copy) return;
  const auto nest = nest_over<2>(args, factors_of(args.signature.inputs()[0]),
                                 {out_strides(args, 0), out_strides(args, copy)});
  with_float(args.out[0].dtype, [&]<class T>(T) {
    with_float(args.out[copy].dtype, [&]<class C>(C) {
      parallel_rows(args, nest, [&](const auto& at, int64_t n, const auto& s) {
        const T* from = args.out[0].as<const T>() + at[0];
        C* to = args.out[copy].as<C>() + at[1];
        for (int64_t i = 0; i < n; ++i) to[i * s[1]] = static_cast<C>(from[i * s[0]]);
      });
    });
  });
}

// Whether the update is not made; then outputs become what the operands are. Output o and input
// `kept[o]` have the same dimensions, those of input 0.
template <class T, size_t n>
bool skipped(const KernelArgs& args, size_t coefficient, const size_t (&kept)[n]) {
  if (!(args.in[coefficient].as<const T>()[0] < 0)) return false;
  for (size_t o = 0; o < n; ++o) {
    if (args.in[kept[o]].data == args.out[o].data) continue;
    const auto nest = nest_over<2>(args, factors_of(args.signature.inputs()[0]),
                                   {in_strides(args, kept[o]), out_strides(args, o)});
    if (args.out[o].dtype == DType::kBF16) {
      copy_rows(nest, args.in[kept[o]].template as<const Bf16>(), args.out[o].template as<Bf16>());
    } else {
      copy_rows(nest, args.in[kept[o]].template as<const T>(), args.out[o].template as<T>());
    }
  }
  return true;
}

// Of n elements of moments of 16 bits: new[0..kMoments] of old[0..kMoments] and the gradient, the
// parameter first. `step` is the operand with the step's number.
template <class T, class G, size_t kMoments, class Update>
void update_halves(const KernelArgs& args, size_t step, const Update& update) {
  constexpr size_t kStates = kMoments + 1;  // the parameter and its moments
  constexpr size_t kGradient = 2 * kStates, kPlace = kGradient + 1;
  const Rounding rounding(args, step);
  std::array<Shape, kPlace + 1> strides;
  for (size_t k = 0; k < kStates; ++k) {
    strides[k] = in_strides(args, k == 0 ? 0 : k + 1);
    strides[kStates + k] = out_strides(args, k);
  }
  strides[kGradient] = in_strides(args, 1);
  strides[kPlace] = rounding.where().local_strides();
  const auto nest = nest_over<kPlace + 1>(args, factors_of(args.signature.inputs()[0]), strides);
  parallel_rows(args, nest, [&](const auto& at, int64_t n, const auto& s) {
    const T* const p = args.in[0].template as<const T>() + at[0];
    const G* const g = args.in[1].template as<const G>() + at[kGradient];
    T* const new_p = args.out[0].template as<T>() + at[kStates];
    const Bf16* m[kMoments];
    Bf16* new_m[kMoments];
    for (size_t k = 0; k < kMoments; ++k) {
      m[k] = args.in[k + 2].template as<const Bf16>() + at[k + 1];
      new_m[k] = args.out[k + 1].template as<Bf16>() + at[kStates + k + 1];
    }
    // Some elements at a time: their moments as numbers, the update, and the moments as they are
    // stored, each in a loop that vector code can be made of.
    constexpr int64_t kTurn = 256;
    uint32_t random[kTurn];
    T wide[kMoments][kTurn];
    for (int64_t begin = 0; begin < n; begin += kTurn) {
      const int64_t count = std::min(n - begin, kTurn);
      rounding.draw(at[kPlace] + begin, count, random);
      for (size_t k = 0; k < kMoments; ++k) {
        const int64_t step = s[k + 1];
        const Bf16* const from = m[k] + begin * step;
        for (int64_t i = 0; i < count; ++i) wide[k][i] = number(from[i * step]);
      }
      // The new parameter may be the old one's memory, but only at the same index.
      const auto renew = [&](int64_t of_p, int64_t of_g, int64_t of_new) {
#pragma GCC ivdep
        for (int64_t i = 0; i < count; ++i) {
          const int64_t j = begin + i;
          T old[kStates], made[kStates];
          old[0] = p[j * of_p];
          for (size_t k = 0; k < kMoments; ++k) old[k + 1] = wide[k][i];
          update(old, static_cast<T>(g[j * of_g]), made);
          new_p[j * of_new] = made[0];
          for (size_t k = 0; k < kMoments; ++k) wide[k][i] = made[k + 1];
        }
      };
      if (s[0] == 1 && s[kGradient] == 1 && s[kStates] == 1) {
        renew(1, 1, 1);
      } else {
        renew(s[0], s[kGradient], s[kStates]);
      }
      for (size_t k = 0; k < kMoments; ++k) {
        const int64_t step = s[kStates + k + 1];
        Bf16* const to = new_m[k] + begin * step;
        const int half = 16 * static_cast<int>(k);
        if (rounding.stochastic()) {
          for (int64_t i = 0; i < count; ++i) {
            to[i * step] = stochastic(wide[k][i], random[i] >> half);
          }
        } else {
          for (int64_t i = 0; i < count; ++i) to[i * step] = nearest(wide[k][i]);
        }
      }
    }
  });
}

// --- Parameters with a rest ----------------------------------------------------------------------

int64_t update_workspace(const OpCall& call) {
  return has_rest(call.attrs) ? numel(call.in[0].shape) * size_of(DType::kF32) : 0;
}

// Calls each(bf16, rest, f32) for the elements of a parameter in two and in one.
template <class Each>
void for_halves(const KernelArgs& args, const TensorView& bf16, const Shape& bf16_strides,
                const TensorView& rest, const Shape& rest_strides, const TensorView& whole,
                const Shape& whole_strides, const Each& each) {
  const auto nest = nest_over<3>(args, factors_of(args.signature.inputs()[0]),
                                 {bf16_strides, rest_strides, whole_strides});
  parallel_rows(args, nest, [&](const auto& at, int64_t n, const auto& s) {
    Bf16* const b = bf16.as<Bf16>() + at[0];
    int16_t* const r = rest.as<int16_t>() + at[1];
    uint32_t* const x = whole.as<uint32_t>() + at[2];
    for (int64_t i = 0; i < n; ++i) each(b[i * s[0]], r[i * s[1]], x[i * s[2]]);
  });
}

// The update of the parameter as an f32, which lies in the workspace meanwhile.
void update_with_rest(const KernelArgs& args, void (*update)(const KernelArgs&)) {
  const size_t last_in = args.in.size() - 1, last_out = args.out.size() - 1;
  const Shape& shape = args.in[0].shape;
  const TensorView whole{args.workspace, DType::kF32, shape, contiguous_strides(shape)};
  std::vector<TensorView> in(args.in.begin(), args.in.end() - 1);
  std::vector<TensorView> out(args.out.begin(), args.out.end() - 1);
  in[0] = out[0] = whole;
  const KernelArgs inner{.signature = args.signature,
                         .attrs = args.attrs,
                         .in = in,
                         .out = out,
                         .extents = args.extents,
                         .seed = args.seed,
                         .team = args.team};
  const Shape strides = in_strides(inner, 0);
  for_halves(args, args.in[0], in_strides(args, 0), args.in[last_in], in_strides(args, last_in),
             whole, strides, [](Bf16 upper, int16_t rest, uint32_t& x) {
               x = f32_bits({upper.bits, rest});
             });
  update(inner);
  for_halves(args, args.out[0], out_strides(args, 0), args.out[last_out],
             out_strides(args, last_out), whole, strides,
             [](Bf16& upper, int16_t& rest, uint32_t x) {
               const Bf16AndRest both = bf16_and_rest(x);
               upper.bits = both.bf16;
               rest = both.rest;
             });
}

// One step of AdamW, with the step's scalars worked out. 1 - beta and lr * weight_decay are rounded
// to T, and no beta or 1 - lr * weight_decay, which would lose their digits: what a scalar is off
// by moves all elements the same way at every step, and does not average out as their own roundings
// do.
template <class T>
struct AdamW {
  T decay, clip, gain1, gain2, step_size, root_correction, eps;

  void update(T p, T g, T m, T v, T& new_p, T& new_m, T& new_v) const {
    g *= clip;
    m = (m - m * gain1) + g * gain1;
    v = (v - v * gain2) + g * g * gain2;
    new_p = p - (p * decay + step_size * (m / (std::sqrt(v) / root_correction + eps)));
    new_m = m;
    new_v = v;
  }
};

void update_adamw(const KernelArgs& args) {
  with_update_types(args, [&]<class T, class G>(T, G) {
    if (skipped<T>(args, 5, {0, 2, 3})) return;
    const auto scalar = [&](size_t i) { return args.in[i].as<const T>()[0]; };
    const double beta1 = args.attrs.real("beta1"), beta2 = args.attrs.real("beta2");
    const double lr = static_cast<double>(scalar(4)), step = args.in[6].as<const int32_t>()[0];
    const AdamW<T> adam = {
        .decay = static_cast<T>(lr * args.attrs.real("weight_decay")),
        .clip = scalar(5),
        .gain1 = static_cast<T>(1 - beta1),
        .gain2 = static_cast<T>(1 - beta2),
        .step_size = static_cast<T>(lr / (1 - std::pow(beta1, step))),
        .root_correction = static_cast<T>(std::sqrt(1 - std::pow(beta2, step))),
        .eps = static_cast<T>(args.attrs.real("eps")),
    };
    if (args.in[2].dtype == DType::kBF16) {
      return update_halves<T, G, 2>(args, 6, [&](const T(&old)[3], T g, T(&made)[3]) {
        adam.update(old[0], g, old[1], old[2], made[0], made[1], made[2]);
      });
    }
    const auto nest = nest_over<7>(
        args, factors_of(args.signature.inputs()[0]),
        {in_strides(args, 0), in_strides(args, 1), in_strides(args, 2), in_strides(args, 3),
         out_strides(args, 0), out_strides(args, 1), out_strides(args, 2)});
    parallel_rows(args, nest, [&](const auto& at, int64_t n, const auto& s) {
      const T* p = args.in[0].as<const T>() + at[0];
      const G* g = args.in[1].as<const G>() + at[1];
      const T* m = args.in[2].as<const T>() + at[2];
      const T* v = args.in[3].as<const T>() + at[3];
      T* new_p = args.out[0].as<T>() + at[4];
      T* new_m = args.out[1].as<T>() + at[5];
      T* new_v = args.out[2].as<T>() + at[6];
      if (std::all_of(s.begin(), s.end(), [](int64_t stride) { return stride == 1; })) {
        // Outputs may be the inputs' memory, but only at the same index.
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) {
          adam.update(p[i], static_cast<T>(g[i]), m[i], v[i], new_p[i], new_m[i], new_v[i]);
        }
      } else {
        for (int64_t i = 0; i < n; ++i) {
          adam.update(p[i * s[0]], static_cast<T>(g[i * s[1]]), m[i * s[2]], v[i * s[3]],
                      new_p[i * s[4]], new_m[i * s[5]], new_v[i * s[6]]);
        }
      }
    });
  });
}

void adamw_cpu(const KernelArgs& args) {
  if (has_rest(args.attrs)) return update_with_rest(args, update_adamw);
  update_adamw(args);
  copy_parameter(args, 3);
}

void update_sgd(const KernelArgs& args) {
  with_update_types(args, [&]<class T, class G>(T, G) {
    if (skipped<T>(args, 4, {0, 2})) return;
    const T lr = args.in[3].as<const T>()[0], clip = args.in[4].as<const T>()[0];
    const T momentum = static_cast<T>(args.attrs.real("momentum"));
    const T decay = static_cast<T>(args.attrs.real("weight_decay"));
    if (args.in[2].dtype == DType::kBF16) {
      return update_halves<T, G, 1>(args, 5, [&](const T(&old)[2], T g, T(&made)[2]) {
        made[1] = momentum * old[1] + (g * clip + decay * old[0]);
        made[0] = old[0] - lr * made[1];
      });
    }
    const auto nest = nest_over<5>(args, factors_of(args.signature.inputs()[0]),
                                   {in_strides(args, 0), in_strides(args, 1), in_strides(args, 2),
                                    out_strides(args, 0), out_strides(args, 1)});
    parallel_rows(args, nest, [&](const auto& at, int64_t n, const auto& s) {
      const T* p = args.in[0].as<const T>() + at[0];
      const G* g = args.in[1].as<const G>() + at[1];
      const T* buffer = args.in[2].as<const T>() + at[2];
      T* new_p = args.out[0].as<T>() + at[3];
      T* new_buffer = args.out[1].as<T>() + at[4];
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) {
        const T weight = p[i * s[0]];
        const T b =
            momentum * buffer[i * s[2]] + (static_cast<T>(g[i * s[1]]) * clip + decay * weight);
        new_buffer[i * s[4]] = b;
        new_p[i * s[3]] = weight - lr * b;
      }
    });
  });
}

void sgd_cpu(const KernelArgs& args) {
  if (has_rest(args.attrs)) return update_with_rest(args, update_sgd);
  update_sgd(args);
  copy_parameter(args, 2);
}

// So many an element, and a random number for it.
template <int kOperations>
double flops_of_update(const OpCall& call) {
  return call.attrs.has("name") ? flops_each<kOperations + 8>(call) : flops_each<kOperations>(call);
}

}  // namespace

constinit const OpDef ops::adamw = {
    .name = "adamw",
    .factors = "ab,ab,ab,ab,,,->ab,ab,ab",
    .infer = infer_adamw,
    .flops = flops_of_update<14>,
    .workspace = update_workspace,
    .cpu = adamw_cpu,
    .cuda = cuda_kernel<adamw_cuda>(),
    .cuda_many = cuda_kernels<adamw_cuda_many>(),
};

constinit const OpDef ops::sgd = {
    .name = "sgd",
    .factors = "ab,ab,ab,,->ab,ab",
    .infer = infer_sgd,
    .flops = flops_of_update<6>,
    .workspace = update_workspace,
    .cpu = sgd_cpu,
    .cuda = cuda_kernel<sgd_cuda>(),
    .cuda_many = cuda_kernels<sgd_cuda_many>(),
};

}  // namespace cleave
