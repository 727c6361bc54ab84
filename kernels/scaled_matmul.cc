// A product of floats of 8 bits, with what their numbers are to be multiplied by; a bias, a
// residual, or both may be added, as ops::linear does. Sums are in f32.
//
//   a, b, scale of a, scale of b [, bias] [, residual] -> c
#include <array>
#include <string>
#include <vector>

#include "graph/f8.h"
#include "kernels/contraction.h"
#include "kernels/cuda/product_operands.h"
#include "kernels/cuda_kernel.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"

namespace cleave {

void scaled_matmul_cuda(const KernelArgs& args);  // cuda/scaled_matmul.cc

namespace {

std::vector<TensorType> infer_scaled_matmul(const OpCall& call) {
  const DType dtype = dtype_named(call.attrs.text("dtype"));
  const size_t more = static_cast<size_t>(call.attrs.integer_or("bias", 0) != 0) +
                      static_cast<size_t>(call.attrs.integer_or("residual", 0) != 0);
  if (call.in.size() != 4 + more) {
    fail("scaled_matmul: {} operands, and its attributes say {}", call.in.size(), 4 + more);
  }
  for (size_t i = 0; i < call.in.size(); ++i) {
    const DType got = call.in[i].dtype;
    if (i < 2 ? !is_f8(got) : got != (i < 4 ? DType::kF32 : dtype)) {
      fail("scaled_matmul: operand {} is {}", i + 1, to_string(call.in[i]));
    }
  }
  if (call.in[0].dtype == DType::kF8E5M2 && call.in[1].dtype == DType::kF8E5M2) {
    fail("scaled_matmul: one operand at least must be f8e4m3");
  }
  if (!is_float(dtype)) fail("scaled_matmul: a product is not stored as {}", name_of(dtype));
  return {output_type(call, 0, dtype)};
}

double scaled_matmul_flops(const OpCall& call) {
  double flops = 2;
  for (const int64_t extent : call.extents) flops *= static_cast<double>(extent);
  return flops;
}

// The numbers of operand i, row-major.
template <class T>
std::vector<T> numbers(const KernelArgs& args, size_t i) {
  const TensorView& t = args.in[i];
  const T scale = static_cast<T>(args.in[i + 2].as<const float>()[0]);
  std::array<T, 256> number_of;
  for (size_t code = 0; code < 256; ++code) {
    number_of[code] = static_cast<T>(f8_number(static_cast<uint8_t>(code), t.dtype)) * scale;
  }
  std::vector<T> result;
  result.reserve(static_cast<size_t>(t.numel()));
  for_each_element(
      nest_over<1>(args, factors_of(args.signature.inputs()[i]), {in_strides(args, i)}),
      [&](const auto& at) { result.push_back(number_of[t.as<uint8_t>()[at[0]]]); });
  return result;
}

void scaled_matmul_cpu(const KernelArgs& args) {
  SignatureParts factors = args.signature.parts();
  factors.inputs.erase(factors.inputs.begin() + 2, factors.inputs.begin() + 4);  // the scales
  const Signature& plain = Signature::get(factors);
  with_float(args.out[0].dtype, [&]<class T>(T) {
    std::array<std::vector<T>, 2> operands = {numbers<T>(args, 0), numbers<T>(args, 1)};
    std::vector<TensorView> in;
    for (size_t i = 0; i < 2; ++i) {
      const Shape& shape = args.in[i].shape;
      in.push_back({operands[i].data(), args.out[0].dtype, shape, contiguous_strides(shape)});
    }
    in.insert(in.end(), args.in.begin() + 4, args.in.end());
    std::vector<Extent> extents;
    for (const Factor& f : plain.factors()) extents.push_back(args.extent(f.letter));
    ops::linear.cpu({.signature = plain,
                     .attrs = args.attrs,
                     .in = in,
                     .out = args.out,
                     .extents = extents,
                     .workspace = args.workspace,
                     .seed = args.seed,
                     .team = args.team});
  });
}

}  // namespace

constinit const OpDef ops::scaled_matmul = {
    .name = "scaled_matmul",
    .factors = "...k,nk,,->...n",
    .infer = infer_scaled_matmul,
    .flops = scaled_matmul_flops,
    .cpu = scaled_matmul_cpu,
    .cuda = cuda_kernel<scaled_matmul_cuda>(),
    .cuda_workspace = scaled_matmul_cuda_workspace,
};

}  // namespace cleave
