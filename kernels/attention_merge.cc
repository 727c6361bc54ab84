// What the same queries found in two sets of keys, made what they find in both: each result weighs
// as much as its keys' sum of exponentials.
#include <cmath>
#include <limits>

#include "kernels/cuda_kernel.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"
#include "kernels/parallel.h"
#include "kernels/rows.h"

namespace cleave {

void attention_merge_cuda(const KernelArgs&);  // kernels/cuda/attention_merge.cu

namespace {

enum Operand : size_t { kO, kLse, kOtherO, kOtherLse };

std::vector<TensorType> infer_attention_merge(const OpCall& call) {
  expect_types(call, "xsxs");
  return {call.in[kO], call.in[kLse]};
}

// A row's results are read before they are written: each may lie on an operand of its shape.
void attention_merge_cpu(const KernelArgs& args) {
  with_float(args.in[kO].dtype, [&]<class T>(T) {
    const int8_t v = factors_of(args.signature.outputs()[kO]).back();
    const int64_t n = args.extents[static_cast<size_t>(v)].local;
    const Shape o = in_strides(args, kO), other = in_strides(args, kOtherO),
                out = out_strides(args, kO);
    const auto step = [&](const Shape& strides) { return strides[static_cast<size_t>(v)]; };
    const auto rows = nest_over<6>(args, factors_of(args.signature.outputs()[kLse]),
                                   {o, in_strides(args, kLse), other, in_strides(args, kOtherLse),
                                    out, out_strides(args, kLse)});
    parallel_elements(args, rows, n, [&](const auto& at) {
      const T a = args.in[kLse].as<const T>()[at[1]], b = args.in[kOtherLse].as<const T>()[at[3]];
      const T top = std::max(a, b);
      constexpr T kNothing = -std::numeric_limits<T>::infinity();
      // No key seen so far at all: nothing to weigh.
      const T of_a = top == kNothing ? 0 : std::exp(a - top);
      const T of_b = top == kNothing ? 0 : std::exp(b - top);
      const T sum = of_a + of_b;
      const T x = top == kNothing ? 0 : of_a / sum, y = top == kNothing ? 0 : of_b / sum;
      const T* from = args.in[kO].as<const T>() + at[0];
      const T* from_other = args.in[kOtherO].as<const T>() + at[2];
      T* to = args.out[kO].as<T>() + at[4];
      for (int64_t i = 0; i < n; ++i) {
        to[i * step(out)] = x * from[i * step(o)] + y * from_other[i * step(other)];
      }
      args.out[kLse].as<T>()[at[5]] = top == kNothing ? kNothing : top + std::log(sum);
    });
  });
}

}  // namespace

constinit const OpDef ops::attention_merge = {
    .name = "attention_merge",
    .factors = "bshV,bsh,bshV,bsh->bshV,bsh",
    .infer = infer_attention_merge,
    .flops = flops_each<3>,
    .cpu = attention_merge_cpu,
    .cuda = cuda_kernel<attention_merge_cuda>(),
};

}  // namespace cleave
