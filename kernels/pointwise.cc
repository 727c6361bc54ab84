// Arithmetic element by element, with numpy's broadcasting; copies, casts and constants.
#include "kernels/pointwise.h"

#include <cmath>
#include <deque>

#include "kernels/cuda_kernel.h"
#include "kernels/letters.h"
#include "kernels/ops.h"
#include "kernels/vector_math.h"

namespace cleave {

std::vector<TensorType> pointwise_infer(const OpCall& call) {
  const DType first = call.in[0].dtype;
  for (const TensorType& t : call.in) {
    if (!is_float(t.dtype)) fail("operands must be floating, got {}", to_string(t));
    if (t.dtype != first && (t.dtype == DType::kF64 || first == DType::kF64)) {
      fail("operands must have one element type, got {} and {}", name_of(first), name_of(t.dtype));
    }
  }
  const Signature& s = call.signature;
  for (size_t f = 0; f < s.factors().size(); ++f) {
    if (s.reduced_in(static_cast<int>(f), 0)) {
      fail("factor '{}' of '{}' is not in the output", s.factors()[f].letter, s.text());
    }
  }
  return infer_from_factors(call);
}

std::vector<TensorType> same_shape_infer(const OpCall& call) {
  for (const TensorType& t : call.in) {
    if (t.shape != call.in[0].shape) {
      fail("operands must have one shape, got {} and {}", to_string(call.in[0].shape),
           to_string(t.shape));
    }
  }
  return pointwise_infer(call);
}

Value sum_to_input(GradContext& ctx, Value grad, size_t i) {
  const std::string from = ctx.signature().output_text(0), to = ctx.signature().input_text(i);
  return from == to ? grad : add_backward(ctx, ops::sum, {grad}, from + "->" + to);
}

namespace {

// "out,in1->out": the gradient of an output meets operand i.
std::string meets_input(const GradContext& ctx, size_t i) {
  const std::string out = ctx.signature().output_text(0);
  return out + "," + ctx.signature().input_text(i) + "->" + out;
}

// The factor string of an op on operands that all lie as output 0.
std::string like_output(const GradContext& ctx, int operands) {
  const std::string out = ctx.signature().output_text(0);
  return out + (operands == 2 ? "," + out : "") + "->" + out;
}

std::vector<Value> add_grad(GradContext& ctx) {
  return {sum_to_input(ctx, ctx.grad(0), 0), sum_to_input(ctx, ctx.grad(0), 1)};
}

std::vector<Value> sub_grad(GradContext& ctx) {
  const Value db = sum_to_input(ctx, ctx.grad(0), 1);
  const std::string b = ctx.signature().input_text(1);
  return {sum_to_input(ctx, ctx.grad(0), 0), add_backward(ctx, ops::neg, {db}, b + "->" + b)};
}

std::vector<Value> mul_grad(GradContext& ctx) {
  const Value da = add_backward(ctx, ops::mul, {ctx.grad(0), ctx.in(1)}, meets_input(ctx, 1));
  const Value db = add_backward(ctx, ops::mul, {ctx.grad(0), ctx.in(0)}, meets_input(ctx, 0));
  return {sum_to_input(ctx, da, 0), sum_to_input(ctx, db, 1)};
}

// y = a / b: da = dy / b, db = -(dy y) / b.
std::vector<Value> div_grad(GradContext& ctx) {
  const std::string b = ctx.signature().input_text(1);
  const Value da = add_backward(ctx, ops::div, {ctx.grad(0), ctx.in(1)}, meets_input(ctx, 1));
  const Value dy_y = add_backward(ctx, ops::mul, {ctx.grad(0), ctx.out(0)}, like_output(ctx, 2));
  const Value quotient =
      add_backward(ctx, ops::div, {sum_to_input(ctx, dy_y, 1), ctx.in(1)}, b + "," + b + "->" + b);
  return {sum_to_input(ctx, da, 0), add_backward(ctx, ops::neg, {quotient}, b + "->" + b)};
}

std::vector<Value> add_n_grad(GradContext& ctx) {
  return std::vector<Value>(ctx.signature().inputs().size(), ctx.grad(0));
}

std::vector<Value> same_grad(GradContext& ctx) { return {ctx.grad(0)}; }

std::vector<Value> scale_grad(GradContext& ctx) {
  return {add_backward(ctx, ops::scale, {ctx.grad(0)}, like_output(ctx, 1),
                       {{"value", ctx.attrs().real("value")}})};
}

std::vector<Value> neg_grad(GradContext& ctx) {
  return {add_backward(ctx, ops::neg, {ctx.grad(0)}, like_output(ctx, 1))};
}

std::vector<Value> exp_grad(GradContext& ctx) {
  return {add_backward(ctx, ops::mul, {ctx.grad(0), ctx.out(0)}, like_output(ctx, 2))};
}

std::vector<Value> log_grad(GradContext& ctx) {
  return {add_backward(ctx, ops::div, {ctx.grad(0), ctx.in(0)}, like_output(ctx, 2))};
}

std::vector<Value> sqrt_grad(GradContext& ctx) {
  const Value quotient =
      add_backward(ctx, ops::div, {ctx.grad(0), ctx.out(0)}, like_output(ctx, 2));
  return {add_backward(ctx, ops::scale, {quotient}, like_output(ctx, 1), {{"value", 0.5}})};
}

std::vector<Value> square_grad(GradContext& ctx) {
  const Value product = add_backward(ctx, ops::mul, {ctx.grad(0), ctx.in(0)}, like_output(ctx, 2));
  return {add_backward(ctx, ops::scale, {product}, like_output(ctx, 1), {{"value", 2.0}})};
}

// y = 1 / x: dx = -dy y^2.
std::vector<Value> reciprocal_grad(GradContext& ctx) {
  const Value squared = add_backward(ctx, ops::square, {ctx.out(0)}, like_output(ctx, 1));
  const Value product = add_backward(ctx, ops::mul, {ctx.grad(0), squared}, like_output(ctx, 2));
  return {add_backward(ctx, ops::neg, {product}, like_output(ctx, 1))};
}

std::vector<Value> cast_grad(GradContext& ctx) {
  const DType from = ctx.in_type(0).dtype;
  if (!is_float(from)) return {kNoValue};
  return {add_backward(ctx, ops::cast, {ctx.grad(0)}, like_output(ctx, 1),
                       {{"dtype", std::string(name_of(from))}})};
}

void scale_cpu(const KernelArgs& args) {
  with_float(args.out[0].dtype, [&]<class T>(T) {
    const T value = static_cast<T>(args.attrs.real("value"));
    map1<T>(args, [value](T x) { return x * value; });
  });
}

void add_scalar_cpu(const KernelArgs& args) {
  with_float(args.out[0].dtype, [&]<class T>(T) {
    const T value = static_cast<T>(args.attrs.real("value"));
    map1<T>(args, [value](T x) { return x + value; });
  });
}

// Sums a stretch of every operand before the next stretch, so that the partial sums stay in cache
// and the output may share memory with any operand.
void add_n_cpu(const KernelArgs& args) {
  with_float(args.out[0].dtype, [&]<class T>(T) {
    std::deque<ContiguousInput<T>> in;
    for (const TensorView& t : args.in) in.emplace_back(t);
    const ContiguousOutput<T> out(args.out[0]);
    const auto stretches = [&](int64_t begin, int64_t end) {
      constexpr int64_t kStretch = 1024;
      std::array<T, kStretch> sum;
      for (int64_t start = begin; start < end; start += kStretch) {
        const int64_t n = std::min(kStretch, end - start);
        std::copy_n(in[0].data() + start, n, sum.data());
        for (size_t i = 1; i < in.size(); ++i) {
          const T* x = in[i].data() + start;
          for (int64_t j = 0; j < n; ++j) sum[static_cast<size_t>(j)] += x[j];
        }
        std::copy_n(sum.data(), n, out.data() + start);
      }
    };
    parallel_for(args, args.out[0].numel(), kPieceElements,
                 [&](int64_t begin, int64_t end, int) { widest([&] { stretches(begin, end); }); });
  });
}

// Each element as To; the loops are those of map1 for two element types.
template <class From, class To, class Fn>
void convert(const KernelArgs& args, Fn fn) {
  const auto order = factors_of(args.signature.outputs()[0]);
  const auto nest = nest_over<2>(args, order, {out_strides(args, 0), in_strides(args, 0)});
  parallel_rows(args, nest, [&, fn](const auto& at, int64_t n, const auto& step) {
    To* const y = args.out[0].as<To>() + at[0];
    const From* const x = args.in[0].as<const From>() + at[1];
    for (int64_t j = 0; j < n; ++j) y[j * step[0]] = fn(x[j * step[1]]);
  });
}

void copy_cpu(const KernelArgs& args) {
  with_element(args.out[0].dtype, [&]<class T>(T) {
    const auto order = factors_of(args.signature.outputs()[0]);
    parallel_copy(args, nest_over<2>(args, order, {in_strides(args, 0), out_strides(args, 0)}),
                  args.in[0].as<const T>(), args.out[0].as<T>());
  });
}

std::vector<TensorType> cast_infer(const OpCall& call) {
  const DType to = dtype_named(call.attrs.text("dtype"));
  if (!is_float(to)) fail("a cast to {} would lose what training needs", name_of(to));
  std::vector<TensorType> out = infer_from_factors(call);
  out[0].dtype = to;
  return out;
}

void cast_cpu(const KernelArgs& args) {
  with_element(args.in[0].dtype, [&]<class From>(From) {
    with_float(args.out[0].dtype, [&]<class To>(To) {
      convert<From, To>(args, [](From x) { return static_cast<To>(x); });
    });
  });
}

std::vector<TensorType> fill_infer(const OpCall& call) {
  return {
      {dtype_named(call.attrs.text("dtype")), shape_of(call.signature.outputs()[0], call.extents)}};
}

void fill_cpu(const KernelArgs& args) {
  with_element(args.out[0].dtype, [&]<class T>(T) {
    const T value = static_cast<T>(args.attrs.real("value"));
    const auto order = factors_of(args.signature.outputs()[0]);
    parallel_rows(args, nest_over<1>(args, order, {out_strides(args, 0)}),
                  [&](const auto& at, int64_t n, const auto& step) {
                    T* const y = args.out[0].as<T>() + at[0];
                    if (step[0] == 1) {
                      std::fill(y, y + n, value);
                    } else {
                      for (int64_t j = 0; j < n; ++j) y[j * step[0]] = value;
                    }
                  });
  });
}

std::vector<TensorType> not_equal_infer(const OpCall& call) {
  if (call.in[0].dtype != DType::kI32) {
    fail("not_equal compares i32, got {}", to_string(call.in[0]));
  }
  return cast_infer(call);
}

void not_equal_cpu(const KernelArgs& args) {
  with_float(args.out[0].dtype, [&]<class T>(T) {
    const int64_t value = args.attrs.integer("value");
    convert<int32_t, T>(args, [value](int32_t x) { return x != value ? T{1} : T{0}; });
  });
}

}  // namespace

constinit const OpDef ops::add = {
    .name = "add",
    .factors = "...,...->...",
    .infer = pointwise_infer,
    .grad = add_grad,
    .linear = true,
    .cpu = binary_cpu<[](auto a, auto b) { return a + b; }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "a + b",
};

constinit const OpDef ops::sub = {
    .name = "sub",
    .factors = "...,...->...",
    .infer = pointwise_infer,
    .grad = sub_grad,
    .linear = true,
    .cpu = binary_cpu<[](auto a, auto b) { return a - b; }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "a - b",
};

constinit const OpDef ops::mul = {
    .name = "mul",
    .factors = "...,...->...",
    .infer = pointwise_infer,
    .grad = mul_grad,
    .cpu = binary_cpu<[](auto a, auto b) { return a * b; }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "a * b",
};

constinit const OpDef ops::div = {
    .name = "div",
    .factors = "...,...->...",
    .infer = pointwise_infer,
    .grad = div_grad,
    .cpu = binary_cpu<[](auto a, auto b) { return a / b; }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "a / b",
};

constinit const OpDef ops::add_n = {
    .name = "add_n",
    .factors = "...,...->...",  // of two; the caller spells out more
    .infer = same_shape_infer,
    .grad = add_n_grad,
    .linear = true,
    .sums = true,
    .cpu = add_n_cpu,
    .cuda = cuda_kernel<add_n_cuda>(),
};

constinit const OpDef ops::scale = {
    .name = "scale",
    .factors = "...->...",
    .infer = pointwise_infer,
    .grad = scale_grad,
    .linear = true,
    .cpu = scale_cpu,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "a * $value",
};

constinit const OpDef ops::add_scalar = {
    .name = "add_scalar",
    .factors = "...->...",
    .infer = pointwise_infer,
    .grad = same_grad,
    .cpu = add_scalar_cpu,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "a + $value",
};

constinit const OpDef ops::neg = {
    .name = "neg",
    .factors = "...->...",
    .infer = pointwise_infer,
    .grad = neg_grad,
    .linear = true,
    .cpu = unary_cpu<[](auto x) { return -x; }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "-a",
};

constinit const OpDef ops::exp = {
    .name = "exp",
    .factors = "...->...",
    .infer = pointwise_infer,
    .grad = exp_grad,
    .cpu = unary_cpu<[](auto x) { return exp_of(x); }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "exp_of(a)",
};

constinit const OpDef ops::log = {
    .name = "log",
    .factors = "...->...",
    .infer = pointwise_infer,
    .grad = log_grad,
    .cpu = unary_cpu<[](auto x) { return std::log(x); }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "log_of(a)",
};

constinit const OpDef ops::sqrt = {
    .name = "sqrt",
    .factors = "...->...",
    .infer = pointwise_infer,
    .grad = sqrt_grad,
    .cpu = unary_cpu<[](auto x) { return std::sqrt(x); }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "sqrt_of(a)",
};

constinit const OpDef ops::square = {
    .name = "square",
    .factors = "...->...",
    .infer = pointwise_infer,
    .grad = square_grad,
    .cpu = unary_cpu<[](auto x) { return x * x; }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "a * a",
};

constinit const OpDef ops::reciprocal = {
    .name = "reciprocal",
    .factors = "...->...",
    .infer = pointwise_infer,
    .grad = reciprocal_grad,
    .cpu = unary_cpu<[](auto x) { return 1 / x; }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "1 / a",
};

constinit const OpDef ops::copy = {
    .name = "copy",
    .factors = "...->...",
    .flops = no_flops,
    .grad = same_grad,
    .linear = true,
    .cpu = copy_cpu,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "a",
};

constinit const OpDef ops::cast = {
    .name = "cast",
    .factors = "...->...",
    .infer = cast_infer,
    .flops = no_flops,
    .grad = cast_grad,
    .linear = true,
    .cpu = cast_cpu,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "a",
};

constinit const OpDef ops::fill = {
    .name = "fill",
    .factors = "->",
    .infer = fill_infer,
    .flops = no_flops,
    .cpu = fill_cpu,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "$value",
};

constinit const OpDef ops::not_equal = {
    .name = "not_equal",
    .factors = "...->...",
    .infer = not_equal_infer,
    .cpu = not_equal_cpu,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "a != $value",
};

}  // namespace cleave
