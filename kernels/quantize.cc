// Tensors as floats of 8 bits for products (scaled_matmul.cc): the codes as they lie, those of the
// transposed tensor, or both, and what the codes are to be multiplied by; and the memory of how
// large tensors were. No model writes these ops: executor/fuse_f8.cc does.
//
//   x [, history, largest] -> [codes,] [transposed codes,] inverse [, largest]
//
// The codes are x times a power of two (f8_scale) of the largest size in x, or, with a history, in
// its row `index`: then x is read once. A history of zeros says nothing, and x itself is asked.
// `largest` collects the size of this x, in its place `index`, for the history.
#include <algorithm>
#include <bit>
#include <cmath>

#include "graph/f8.h"
#include "kernels/cuda/workspace.h"
#include "kernels/cuda_kernel.h"
#include "kernels/loops.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"

namespace cleave {

void quantize_cuda(const KernelArgs&);  // cuda/quantize.cu
void size_history_cuda(const KernelArgs&);

namespace {

// Whether the output has the input's dimensions in another order: the last ones first.
bool is_rotation(OperandDims in, const OperandDims& out) {
  for (size_t turn = 0; turn < in.size(); ++turn) {
    if (in == out) return true;
    std::rotate(in.begin(), in.end() - 1, in.end());
  }
  return in == out;
}

std::vector<TensorType> infer_quantize(const OpCall& call) {
  const size_t outputs = call.signature.outputs().size(), delayed = call.in.size() == 3 ? 1 : 0;
  if (call.in.size() != 1 + 2 * delayed) {
    fail("quantize: a tensor, or with its history and sizes; got {} operands", call.in.size());
  }
  if (!is_float(call.in[0].dtype)) fail("quantize: {} is no float", to_string(call.in[0]));
  for (size_t i = 1; i < call.in.size(); ++i) {
    if (call.in[i].dtype != DType::kF32) fail("quantize: {} must be f32", to_string(call.in[i]));
  }
  const DType dtype = dtype_named(call.attrs.text("dtype"));
  if (!is_f8(dtype)) fail("quantize: {} is no float of 8 bits", name_of(dtype));
  if (outputs < 2 + delayed || outputs > 3 + delayed) {
    fail("quantize: '{}' has {} results", call.signature.text(), outputs);
  }
  std::vector<TensorType> types;
  for (size_t o = 0; o < outputs; ++o) {
    const bool codes = o + 1 + delayed < outputs;
    if (codes && !is_rotation(call.signature.inputs()[0], call.signature.outputs()[o])) {
      fail("quantize: '{}' does more than to turn dimensions", call.signature.text());
    }
    types.push_back(output_type(call, o, codes ? dtype : DType::kF32));
  }
  return types;
}

// The bits of a size are in its order, those of NaN above all others.
uint32_t size_bits(float x) { return std::bit_cast<uint32_t>(std::abs(x)); }

float largest_size(const KernelArgs& args) {
  uint32_t largest = 0;
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const T* const x = args.in[0].as<const T>();
    for_each_element(
        nest_over<1>(args, factors_of(args.signature.inputs()[0]), {in_strides(args, 0)}),
        [&](const auto& at) {
          largest = std::max(largest, size_bits(static_cast<float>(x[at[0]])));
        });
  });
  return std::bit_cast<float>(largest);
}

// The largest size of the history's row; 0 when it has none.
float remembered(const KernelArgs& args, int64_t index) {
  const TensorView& history = args.in[1];
  float largest = 0;
  for (int64_t i = 0; i < history.shape[1]; ++i) {
    largest = std::max(
        largest, history.as<const float>()[index * history.strides[0] + i * history.strides[1]]);
  }
  return largest;
}

void quantize_cpu(const KernelArgs& args) {
  const bool delayed = args.in.size() == 3;
  const size_t tensors = args.out.size() - 1 - (delayed ? 1 : 0);
  const DType dtype = args.out[0].dtype;
  const int64_t index = args.attrs.integer_or("index", 0);
  const float own = largest_size(args);
  const float past = delayed ? remembered(args, index) : 0;
  const float scale = f8_scale(past > 0 ? past : own, dtype);
  const auto order = factors_of(args.signature.inputs()[0]);
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const T* const x = args.in[0].as<const T>();
    for (size_t o = 0; o < tensors; ++o) {
      for_each_element(nest_over<2>(args, order, {in_strides(args, 0), out_strides(args, o)}),
                       [&](const auto& at) {
                         args.out[o].as<uint8_t>()[at[1]] =
                             f8_code(static_cast<float>(x[at[0]]) * scale, dtype);
                       });
    }
  });
  args.out[tensors].as<float>()[0] = 1 / scale;
  if (!delayed) return;
  const TensorView &before = args.in[2], &after = args.out[tensors + 1];
  for (int64_t i = 0; i < after.shape[0]; ++i) {
    const float size = before.as<const float>()[i * before.strides[0]];
    const uint32_t larger = std::max(size_bits(size), i == index ? size_bits(own) : 0);
    after.as<float>()[i * after.strides[0]] = std::bit_cast<float>(larger);
  }
}

// Of each tensor the newest size comes first and the oldest is forgotten; one that is not finite is
// not remembered, as its step is not made.
std::vector<TensorType> infer_size_history(const OpCall& call) {
  if (call.in.size() != 2) fail("size_history: a history and the newest sizes");
  for (const TensorType& t : call.in) {
    if (t.dtype != DType::kF32) fail("size_history: {} must be f32", to_string(t));
  }
  return {call.in[0]};
}

void size_history_cpu(const KernelArgs& args) {
  const TensorView &old = args.in[0], &sizes = args.in[1], &out = args.out[0];
  const auto at = [](const TensorView& v, int64_t t, int64_t h) -> float& {
    return v.as<float>()[t * v.strides[0] + h * v.strides[1]];
  };
  for (int64_t t = 0; t < old.shape[0]; ++t) {
    const float newest = sizes.as<const float>()[t * sizes.strides[0]];
    const int64_t turn = std::isfinite(newest) ? 1 : 0;
    for (int64_t h = old.shape[1] - 1; h >= turn; --h) at(out, t, h) = at(old, t, h - turn);
    if (turn == 1) at(out, t, 0) = newest;
  }
}

}  // namespace

constinit const OpDef ops::quantize = {
    .name = "quantize",
    .factors = "AB->AB,BA,",
    .infer = infer_quantize,
    .flops = flops_each<2>,
    .cpu = quantize_cpu,
    .cuda = cuda_kernel<quantize_cuda>(),
    .cuda_workspace = quantize_workspace,
};

constinit const OpDef ops::size_history = {
    .name = "size_history",
    .factors = "TH,T->TH",
    .infer = infer_size_history,
    .flops = no_flops,
    .cpu = size_history_cpu,
    .cuda = cuda_kernel<size_history_cuda>(),
};

}  // namespace cleave
