// Element-by-element kernels with broadcasting, shared by pointwise.cc and activations.cc.
#pragma once

#include "graph/op.h"
#include "kernels/loops.h"
#include "kernels/parallel.h"

namespace cleave {

// Every operand floating and of one element type (bf16 and f32 may mix when planning), every factor
// of an input in the output. The result has the type of operand 0.
std::vector<TensorType> pointwise_infer(const OpCall& call);
// The same, and all operands of one shape.
std::vector<TensorType> same_shape_infer(const OpCall& call);

// A gradient of the node's output, summed over the dimensions along which input i was broadcast.
Value sum_to_input(GradContext& ctx, Value grad, size_t i);

// out[0] = fn(in[0]). In place is allowed: an element depends only on those at its own place, which
// is what ivdep tells the compiler.
template <class T, class Fn>
void map1(const KernelArgs& args, Fn fn) {
  const auto order = factors_of(args.signature.outputs()[0]);
  const auto nest = nest_over<2>(args, order, {out_strides(args, 0), in_strides(args, 0)});
  parallel_rows(args, nest, [&, fn](const auto& at, int64_t n, const auto& step) {
    T* const y = args.out[0].as<T>() + at[0];
    const T* const x = args.in[0].as<const T>() + at[1];
    if (step[0] == 1 && step[1] == 1) {
#pragma GCC ivdep
      for (int64_t j = 0; j < n; ++j) y[j] = fn(x[j]);
    } else {
      for (int64_t j = 0; j < n; ++j) y[j * step[0]] = fn(x[j * step[1]]);
    }
  });
}

// out[0] = fn(in[0], in[1]).
template <class T, class Fn>
void map2(const KernelArgs& args, Fn fn) {
  const auto order = factors_of(args.signature.outputs()[0]);
  const auto nest =
      nest_over<3>(args, order, {out_strides(args, 0), in_strides(args, 0), in_strides(args, 1)});
  parallel_rows(args, nest, [&, fn](const auto& at, int64_t n, const auto& step) {
    T* const y = args.out[0].as<T>() + at[0];
    const T* const a = args.in[0].as<const T>() + at[1];
    const T* const b = args.in[1].as<const T>() + at[2];
    if (step[0] == 1 && step[1] == 1 && step[2] == 1) {
#pragma GCC ivdep
      for (int64_t j = 0; j < n; ++j) y[j] = fn(a[j], b[j]);
    } else if (step[0] == 1 && step[1] == 1 && step[2] == 0) {
      const T scalar = *b;
#pragma GCC ivdep
      for (int64_t j = 0; j < n; ++j) y[j] = fn(a[j], scalar);
    } else {
      for (int64_t j = 0; j < n; ++j) y[j * step[0]] = fn(a[j * step[1]], b[j * step[2]]);
    }
  });
}

// A kernel that applies Fn, a stateless generic function, to one or two operands.
template <auto Fn>
void unary_cpu(const KernelArgs& args) {
  with_float(args.out[0].dtype, [&]<class T>(T) { map1<T>(args, Fn); });
}
template <auto Fn>
void binary_cpu(const KernelArgs& args) {
  with_float(args.out[0].dtype, [&]<class T>(T) { map2<T>(args, Fn); });
}

}  // namespace cleave
