// Reductions over any factors: sum, max and log-sum-exp. The order of additions depends on the
// shapes only, so the same bits come out every time.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "kernels/cuda/workspace.h"
#include "kernels/cuda_kernel.h"
#include "kernels/letters.h"
#include "kernels/loops.h"
#include "kernels/ops.h"
#include "kernels/parallel.h"
#include "kernels/vector_math.h"

namespace cleave {

void sum_cuda(const KernelArgs&);  // cuda/reduce.cu
void max_cuda(const KernelArgs&);
void logsumexp_cuda(const KernelArgs&);

namespace {

std::vector<TensorType> reduce_infer(const OpCall& call) {
  if (!is_float(call.in[0].dtype)) fail("a reduction of {}", to_string(call.in[0]));
  const Signature& s = call.signature;
  for (const int8_t f : factors_of(s.outputs()[0])) {
    if (!s.in_inputs(f)) {
      fail("'{}' makes factor '{}'; expand does that", s.text(),
           s.factors()[static_cast<size_t>(f)].letter);
    }
  }
  return infer_from_factors(call);
}

// With the attribute `dtype`, "f32", sums of halves are stored as they are summed.
std::vector<TensorType> sum_infer(const OpCall& call) {
  std::vector<TensorType> out = reduce_infer(call);
  if (!call.attrs.has("dtype")) return out;
  const DType dtype = dtype_named(call.attrs.text("dtype"));
  if (dtype != out[0].dtype && (dtype != DType::kF32 || !is_half(out[0].dtype))) {
    fail("a sum of {} is not stored as {}", name_of(out[0].dtype), name_of(dtype));
  }
  out[0].dtype = dtype;
  return out;
}

// What is summed in f32 in a bf16 graph stays in f32.
std::vector<TensorType> logsumexp_infer(const OpCall& call) {
  std::vector<TensorType> out = reduce_infer(call);
  if (is_half(out[0].dtype)) out[0].dtype = DType::kF32;
  return out;
}

double one_flop_an_element(const OpCall& call) {
  return static_cast<double>(numel(call.in[0].shape));
}
double three_flops_an_element(const OpCall& call) { return 3 * one_flop_an_element(call); }

// --- Gradients -----------------------------------------------------------------------------------

std::vector<Value> sum_grad(GradContext& ctx) {
  const Signature& s = ctx.signature();
  const OperandDims &in = s.inputs()[0], &out = s.outputs()[0];
  const auto letter = [&](int8_t f) { return s.factors()[static_cast<size_t>(f)].letter; };
  Attrs made;  // sizes of the factors that were reduced
  bool inside_compound = false;
  for (const DimFactors& dim : in) {
    size_t reduced = 0;
    for (const int8_t f : dim) {
      if (Signature::carries(out, f)) continue;
      made = with_size(std::move(made), letter(f), ctx.extent(letter(f)));
      ++reduced;
    }
    const bool stays = std::find(out.begin(), out.end(), dim) != out.end();
    inside_compound |= dim.size() > 1 && reduced != dim.size() && !stays;
  }
  const std::string from = s.output_text(0), to = s.input_text(0);
  if (!inside_compound)
    return {add_backward(ctx, ops::expand, {ctx.grad(0)}, from + "->" + to, made)};
  // A compound of old and new factors has no stride: take all apart, expand, and put together.
  std::string apart, apart_to;
  for (const int8_t f : factors_of(out)) apart += letter(f);
  for (const int8_t f : factors_of(in)) apart_to += letter(f);
  const Value flat = add_backward(ctx, ops::reshape, {ctx.grad(0)}, from + "->" + apart, made);
  const Value wide = add_backward(ctx, ops::expand, {flat}, apart + "->" + apart_to, made);
  return {add_backward(ctx, ops::reshape, {wide}, apart_to + "->" + to)};
}

// y = log sum exp(x): dx = dy exp(x - y).
std::vector<Value> logsumexp_grad(GradContext& ctx) {
  const std::string x = ctx.signature().input_text(0), y = ctx.signature().output_text(0);
  const Value shifted =
      add_backward(ctx, ops::sub, {ctx.in(0), ctx.out(0)}, x + "," + y + "->" + x);
  const Value shares = add_backward(ctx, ops::exp, {shifted}, x + "->" + x);
  return {add_backward(ctx, ops::mul, {shares, ctx.grad(0)}, x + "," + y + "->" + x)};
}

// --- Kernels -------------------------------------------------------------------------------------

struct Reduce {
  LoopNest<2> kept;     // output, input
  LoopNest<1> reduced;  // input
  bool rows = false;    // the reduced factors are the input's fastest
};

Reduce reduce_of(const KernelArgs& args) {
  const OperandDims &in = args.signature.inputs()[0], &out = args.signature.outputs()[0];
  std::vector<int8_t> gone;
  for (const int8_t f : factors_of(in)) {
    if (!Signature::carries(out, f)) gone.push_back(f);
  }
  const Shape from = in_strides(args, 0);
  Reduce r{nest_over<2>(args, factors_of(out), {out_strides(args, 0), from}),
           nest_over<1>(args, gone, {from})};
  const auto inner = [](const auto& nest, size_t operand) {
    return nest.sizes.empty() ? std::numeric_limits<int64_t>::max() : nest.steps.back()[operand];
  };
  r.rows = inner(r.reduced, 0) < inner(r.kept, 1);
  return r;
}

constexpr auto kAdd = [](auto a, auto b) { return a + b; };
constexpr auto kGreater = [](auto a, auto b) { return a < b ? b : a; };

// A row in eight lanes, which vectorizes; fn combines two numbers.
template <class T, class Fn>
T fold_row(const T* x, int64_t n, int64_t step, T start, Fn fn) {
  std::array<T, 8> lanes;
  lanes.fill(start);
  int64_t j = 0;
  if (step == 1) {
    for (; j + 8 <= n; j += 8) {
      for (int64_t lane = 0; lane < 8; ++lane) {
        T& to = lanes[static_cast<size_t>(lane)];
        to = fn(to, x[j + lane]);
      }
    }
  }
  for (; j < n; ++j) {
    T& to = lanes[static_cast<size_t>(j % 8)];
    to = fn(to, x[j * step]);
  }
  return fn(fn(fn(lanes[0], lanes[4]), fn(lanes[2], lanes[6])),
            fn(fn(lanes[1], lanes[5]), fn(lanes[3], lanes[7])));
}

// Pairwise above a bottom in lanes: rounds less than a running sum.
template <class T>
T sum_row(const T* x, int64_t n, int64_t step) {
  if (n <= 512) return fold_row(x, n, step, T{0}, kAdd);
  const int64_t half = n / 16 * 8;
  return sum_row(x, half, step) + sum_row(x + half * step, n - half, step);
}

constexpr int64_t kTile = 64;
template <class T>
using Tile = std::array<T, kTile>;

// Calls fn(out, out step, in, in step, n) for stretches of at most kTile kept elements.
template <class T, class Fn>
void for_each_tile(const KernelArgs& args, const Reduce& r, Fn fn) {
  const int64_t n = r.kept.inner(), tiles = (n + kTile - 1) / kTile;
  if (n == 0) return;
  const auto step = r.kept.inner_steps();
  run_tasks(args, r.kept.count() / n * tiles, [&](int64_t task, int) {
    const auto at = r.kept.offsets_of_row(task / tiles);
    const int64_t start = task % tiles * kTile;
    widest([&] {
      fn(args.out[0].as<T>() + at[0] + start * step[0], step[0],
         args.in[0].as<const T>() + at[1] + start * step[1], step[1], std::min(kTile, n - start));
    });
  });
}

// tile[j] = fn(tile[j], x[j * step]).
template <class T, class Fn>
void fold(Tile<T>& tile, const T* x, int64_t step, int64_t n, Fn fn) {
  T* const t = tile.data();
  if (step == 1) {
#pragma GCC ivdep
    for (int64_t j = 0; j < n; ++j) t[j] = fn(t[j], x[j]);
  } else {
    for (int64_t j = 0; j < n; ++j) t[j] = fn(t[j], x[j * step]);
  }
}

template <class T>
void sum_typed(const KernelArgs& args) {
  const Reduce r = reduce_of(args);
  if (r.rows) {
    parallel_elements(args, r.kept, r.reduced.count(), [&](const auto& at) {
      const T* const x = args.in[0].as<const T>() + at[1];
      T total = 0;
      for_each_row(r.reduced, [&](const auto& row, int64_t n, const auto& step) {
        total += sum_row(x + row[0], n, step[0]);
      });
      args.out[0].as<T>()[at[0]] = total;
    });
    return;
  }
  // Down the columns, in partial sums of as many rows as there are such sums: rounding grows with
  // the square root of the number of rows.
  int64_t count = 1;
  for (const int64_t size : r.reduced.sizes) count *= size;
  const int64_t block = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(count))));
  for_each_tile<T>(args, r, [&](T* y, int64_t y_step, const T* x, int64_t x_step, int64_t n) {
    Tile<T> total{}, partial{};
    int64_t rows = 0;
    for_each_element(r.reduced, [&](const auto& at) {
      fold(partial, x + at[0], x_step, n, kAdd);
      if (++rows % block != 0) return;
      fold(total, partial.data(), 1, n, kAdd);
      partial.fill(0);
    });
    fold(total, partial.data(), 1, n, kAdd);
    for (int64_t j = 0; j < n; ++j) y[j * y_step] = total[static_cast<size_t>(j)];
  });
}

template <class T>
T max_of_row(const LoopNest<1>& reduced, const T* x) {
  T highest = -std::numeric_limits<T>::infinity();
  for_each_row(reduced, [&](const auto& row, int64_t n, const auto& step) {
    highest = fold_row(x + row[0], n, step[0], highest, kGreater);
  });
  return highest;
}

template <class T>
void max_typed(const KernelArgs& args) {
  const Reduce r = reduce_of(args);
  if (r.rows) {
    for_each_element(r.kept, [&](const auto& at) {
      args.out[0].as<T>()[at[0]] = max_of_row(r.reduced, args.in[0].as<const T>() + at[1]);
    });
    return;
  }
  for_each_tile<T>(args, r, [&](T* y, int64_t y_step, const T* x, int64_t x_step, int64_t n) {
    Tile<T> highest;
    highest.fill(-std::numeric_limits<T>::infinity());
    for_each_element(r.reduced,
                     [&](const auto& at) { fold(highest, x + at[0], x_step, n, kGreater); });
    for (int64_t j = 0; j < n; ++j) y[j * y_step] = highest[static_cast<size_t>(j)];
  });
}

// What is subtracted before exp: the maximum, or 0 where all elements are -infinity.
template <class T>
T shift_of(T highest) {
  return std::isinf(highest) && highest < 0 ? T{0} : highest;
}

template <class T>
void logsumexp_typed(const KernelArgs& args) {
  const Reduce r = reduce_of(args);
  if (r.rows) {
    std::array<T, 256> shares;
    for_each_element(r.kept, [&](const auto& at) {
      const T* const x = args.in[0].as<const T>() + at[1];
      const T shift = shift_of(max_of_row(r.reduced, x));
      T total = 0;
      for_each_row(r.reduced, [&](const auto& row, int64_t n, const auto& step) {
        for (int64_t start = 0; start < n; start += 256) {
          const int64_t count = std::min<int64_t>(256, n - start);
          const T* const from = x + row[0] + start * step[0];
          for (int64_t j = 0; j < count; ++j) {
            shares[static_cast<size_t>(j)] = exp_of(from[j * step[0]] - shift);
          }
          total += sum_row(shares.data(), count, 1);
        }
      });
      args.out[0].as<T>()[at[0]] = shift + std::log(total);
    });
    return;
  }
  for_each_tile<T>(args, r, [&](T* y, int64_t y_step, const T* x, int64_t x_step, int64_t n) {
    Tile<T> shift, total{}, shares;
    shift.fill(-std::numeric_limits<T>::infinity());
    for_each_element(r.reduced,
                     [&](const auto& at) { fold(shift, x + at[0], x_step, n, kGreater); });
    for (T& s : shift) s = shift_of(s);
    for_each_element(r.reduced, [&](const auto& at) {
      shares = shift;
      fold(shares, x + at[0], x_step, n, [](T s, T v) { return exp_of(v - s); });
      fold(total, shares.data(), 1, n, kAdd);
    });
    for (int64_t j = 0; j < n; ++j) {
      y[j * y_step] = shift[static_cast<size_t>(j)] + std::log(total[static_cast<size_t>(j)]);
    }
  });
}

void sum_cpu(const KernelArgs& args) {
  with_float(args.out[0].dtype, [&]<class T>(T) { sum_typed<T>(args); });
}
void max_cpu(const KernelArgs& args) {
  with_float(args.out[0].dtype, [&]<class T>(T) { max_typed<T>(args); });
}
void logsumexp_cpu(const KernelArgs& args) {
  with_float(args.out[0].dtype, [&]<class T>(T) { logsumexp_typed<T>(args); });
}

}  // namespace

constinit const OpDef ops::sum = {
    .name = "sum",
    .factors = "...x->...",
    .infer = sum_infer,
    .flops = one_flop_an_element,
    .grad = sum_grad,
    .linear = true,
    .cpu = sum_cpu,
    .cuda = cuda_kernel<sum_cuda>(),
    .cuda_workspace = reduce_workspace,
};

constinit const OpDef ops::max = {
    .name = "max",
    .factors = "...x->...|x:max",
    .infer = reduce_infer,
    .flops = one_flop_an_element,
    .cpu = max_cpu,
    .cuda = cuda_kernel<max_cuda>(),
    .cuda_workspace = reduce_workspace,
};

constinit const OpDef ops::logsumexp = {
    .name = "logsumexp",
    .factors = "...x->...|x:lse",
    .infer = logsumexp_infer,
    .flops = three_flops_an_element,
    .grad = logsumexp_grad,
    .cpu = logsumexp_cpu,
    .cuda = cuda_kernel<logsumexp_cuda>(),
    .cuda_workspace = reduce_workspace,
};

}  // namespace cleave
