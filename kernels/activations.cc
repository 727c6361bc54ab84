// Activation functions and their derivatives.
#include "kernels/cuda/workspace.h"
#include "kernels/cuda_kernel.h"
#include "kernels/letters.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"
#include "kernels/pointwise.h"
#include "kernels/run_part.h"
#include "kernels/vector_math.h"

namespace cleave {

void gelu_backward_cuda(const KernelArgs& args);  // cuda/gelu_sum.cu

namespace {

// One backward op on (a, dy), where a is the forward's input or its output.
std::vector<Value> backward(GradContext& ctx, const OpDef& op, Value a) {
  const std::string x = ctx.signature().input_text(0);
  return {add_backward(ctx, op, {a, ctx.grad(0)}, x + "," + x + "->" + x)};
}

std::vector<Value> relu_grad(GradContext& ctx) {
  return backward(ctx, ops::relu_backward, ctx.in(0));
}
std::vector<Value> tanh_grad(GradContext& ctx) {
  return backward(ctx, ops::tanh_backward, ctx.out(0));
}
std::vector<Value> sigmoid_grad(GradContext& ctx) {
  return backward(ctx, ops::sigmoid_backward, ctx.out(0));
}
std::vector<Value> silu_grad(GradContext& ctx) {
  return backward(ctx, ops::silu_backward, ctx.in(0));
}
std::vector<Value> gelu_grad(GradContext& ctx) {
  return backward(ctx, ops::gelu_backward, ctx.in(0));
}

std::vector<Value> swiglu_grad(GradContext& ctx) {
  const std::string x = ctx.signature().input_text(0);
  const std::string factors = x + "," + x + "," + x + "->" + x + "," + x;
  return ctx.add(ops::swiglu_backward, {ctx.in(0), ctx.in(1), ctx.grad(0)}, factors,
                 with_compound_sizes(ctx, factors, {}));
}

// gelu in its tanh form: x/2 (1 + tanh(u)) with u = c (x + a x^3). As (1 + tanh(u))/2 is
// sigmoid(2u), that is x sigmoid(2u).
constexpr double kGelu2C = 2 * 0.7978845608028654;  // 2 sqrt(2 / pi)
constexpr double kGeluA = 0.044715;

template <class T>
T gelu_of(T x) {
  return x * sigmoid_of(static_cast<T>(kGelu2C) * (x + static_cast<T>(kGeluA) * x * x * x));
}

template <class T>
T gelu_slope(T x) {
  const T square = x * x;
  const T s = sigmoid_of(static_cast<T>(kGelu2C) * (x + static_cast<T>(kGeluA) * x * square));
  const T slope = static_cast<T>(kGelu2C) * (1 + static_cast<T>(3 * kGeluA) * square);
  return s + x * s * (1 - s) * slope;
}

template <class T>
T silu_slope(T x) {
  const T s = sigmoid_of(x);
  return s * (1 + x * (1 - s));
}

template <class T>
void swiglu_backward_typed(const KernelArgs& args) {
  const auto order = factors_of(args.signature.outputs()[0]);
  const auto nest = nest_over<5>(args, order,
                                 {out_strides(args, 0), out_strides(args, 1), in_strides(args, 0),
                                  in_strides(args, 1), in_strides(args, 2)});
  parallel_rows(args, nest, [&](const auto& at, int64_t n, const auto& step) {
    T* const dgate = args.out[0].as<T>() + at[0];
    T* const dup = args.out[1].as<T>() + at[1];
    const T* const gate = args.in[0].as<const T>() + at[2];
    const T* const up = args.in[1].as<const T>() + at[3];
    const T* const dy = args.in[2].as<const T>() + at[4];
    const auto both = [](T g, T u, T d, T& to_gate, T& to_up) {
      const T s = sigmoid_of(g);
      to_gate = d * u * s * (1 + g * (1 - s));
      to_up = d * g * s;
    };
    if (step == std::array<int64_t, 5>{1, 1, 1, 1, 1}) {
#pragma GCC ivdep
      for (int64_t j = 0; j < n; ++j) both(gate[j], up[j], dy[j], dgate[j], dup[j]);
    } else {
      for (int64_t j = 0; j < n; ++j) {
        both(gate[j * step[2]], up[j * step[3]], dy[j * step[4]], dgate[j * step[0]],
             dup[j * step[1]]);
      }
    }
  });
}

void swiglu_backward_cpu(const KernelArgs& args) {
  with_float(args.out[0].dtype, [&]<class T>(T) { swiglu_backward_typed<T>(args); });
}

// With the attribute `sum` a second result is the sum of the first over rows, the gradient of a
// bias in front of GELU (executor/fuse_norms.cc); with bit 1 of `wide`, that of halves is in f32.
std::vector<TensorType> gelu_backward_infer(const OpCall& call) {
  std::vector<TensorType> out = same_shape_infer(call);
  if (call.attrs.integer_or("sum", 0) == 0) return out;
  const OperandDims &dx = call.signature.outputs()[0], &sum = call.signature.outputs()[1];
  if (sum.size() != 1 || dx.empty() || sum[0] != dx.back() || sum[0].size() != 1) {
    fail("'{}' does not sum over all but the last dimension", call.signature.text());
  }
  out.resize(1);
  out.push_back(output_type(call, 1, out[0].dtype));
  if ((call.attrs.integer_or("wide", 0) & 2) != 0) out[1].dtype = statistics_dtype(out[1].dtype);
  return out;
}

void gelu_backward_cpu(const KernelArgs& args) {
  binary_cpu<[](auto x, auto dy) { return dy * gelu_slope(x); }>(args);
  if (args.out.size() == 1) return;
  const Signature& s = args.signature;
  run_part(ops::sum, s.output_text(0) + "->" + s.output_text(1), args, {args.out[0]}, args.out[1]);
}

}  // namespace

constinit const OpDef ops::relu = {
    .name = "relu",
    .factors = "...->...",
    .infer = pointwise_infer,
    .grad = relu_grad,
    .cpu = unary_cpu<[](auto x) { return x < 0 ? decltype(x){0} : x; }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "a < 0 ? decltype(a){} : a",
};

constinit const OpDef ops::relu_backward = {
    .name = "relu_backward",
    .factors = "...,...->...",
    .infer = same_shape_infer,
    .cpu = binary_cpu<[](auto x, auto dy) { return (x > 0) ? dy : decltype(dy){0}; }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "a > 0 ? b : decltype(b){}",
};

constinit const OpDef ops::tanh = {
    .name = "tanh",
    .factors = "...->...",
    .infer = pointwise_infer,
    .grad = tanh_grad,
    .cpu = unary_cpu<[](auto x) { return tanh_of(x); }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "tanh_of(a)",
};

constinit const OpDef ops::tanh_backward = {
    .name = "tanh_backward",
    .factors = "...,...->...",
    .infer = same_shape_infer,
    .cpu = binary_cpu<[](auto y, auto dy) { return dy * (1 - y * y); }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "b * (1 - a * a)",
};

constinit const OpDef ops::sigmoid = {
    .name = "sigmoid",
    .factors = "...->...",
    .infer = pointwise_infer,
    .grad = sigmoid_grad,
    .cpu = unary_cpu<[](auto x) { return sigmoid_of(x); }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "sigmoid(a)",
};

constinit const OpDef ops::sigmoid_backward = {
    .name = "sigmoid_backward",
    .factors = "...,...->...",
    .infer = same_shape_infer,
    .cpu = binary_cpu<[](auto y, auto dy) { return dy * y * (1 - y); }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "b * a * (1 - a)",
};

constinit const OpDef ops::silu = {
    .name = "silu",
    .factors = "...->...",
    .infer = pointwise_infer,
    .grad = silu_grad,
    .cpu = unary_cpu<[](auto x) { return x * sigmoid_of(x); }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "silu(a)",
};

constinit const OpDef ops::silu_backward = {
    .name = "silu_backward",
    .factors = "...,...->...",
    .infer = same_shape_infer,
    .cpu = binary_cpu<[](auto x, auto dy) { return dy * silu_slope(x); }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "b * silu_slope(a)",
};

constinit const OpDef ops::gelu = {
    .name = "gelu",
    .factors = "...->...",
    .infer = pointwise_infer,
    .grad = gelu_grad,
    .cpu = unary_cpu<[](auto x) { return gelu_of(x); }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "gelu(a)",
};

constinit const OpDef ops::gelu_backward = {
    .name = "gelu_backward",
    .factors = "...,...->...",
    .infer = gelu_backward_infer,
    .cpu = gelu_backward_cpu,
    .cuda = cuda_kernel<gelu_backward_cuda>(),
    .cuda_workspace = gelu_backward_workspace,
    .element = "b * gelu_slope(a)",
};

constinit const OpDef ops::swiglu = {
    .name = "swiglu",
    .factors = "...,...->...",
    .infer = same_shape_infer,
    .grad = swiglu_grad,
    .cpu = binary_cpu<[](auto gate, auto up) { return gate * sigmoid_of(gate) * up; }>,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "silu(a) * b",
};

constinit const OpDef ops::swiglu_backward = {
    .name = "swiglu_backward",
    .factors = "...,...,...->...,...",
    .infer = same_shape_infer,
    .cpu = swiglu_backward_cpu,
    .cuda = cuda_kernel<generated_cuda>(),
    .element = "c * b * silu_slope(a); c * silu(a)",
};

}  // namespace cleave
