// Rotary position embedding, in the convention of Hugging Face's Llama: the pair (i, i + E/2) of a
// head turns by position * theta^(-2i/E). With attribute `start`, the numbers before it stay as
// they are, and the rest of the head turns as if it were all of it.
#include <algorithm>
#include <cmath>

#include "kernels/cuda_kernel.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"
#include "kernels/parallel.h"
#include "kernels/rows.h"

namespace cleave {

// cuda/rotary.cu
void rotary_cuda(const KernelArgs&);
void rotary_cuda_many(std::span<const KernelArgs>);

namespace {

std::vector<TensorType> infer_rotary(const OpCall& call) {
  expect_types(call, "x");
  if (call.in[0].shape.empty()) fail("rotary: a scalar has no pairs to rotate");
  const int64_t start = call.attrs.integer_or("start", 0), size = call.in[0].shape.back() - start;
  if (start < 0 || size < 2 || size % 2 != 0) {
    fail("rotary: the size of what turns must be even, got {}", size);
  }
  return infer_from_factors(call);
}

// The factor along which positions count.
size_t position_factor(const Signature& s) {
  size_t found = s.factors().size();
  for (size_t f = 0; f < s.factors().size(); ++f) {
    if (s.factors()[f].indexed) found = f;
  }
  CLEAVE_ASSERT(found < s.factors().size(), "rotary: '{}' has no indexed factor", s.text());
  return found;
}

int64_t rotary_workspace(const OpCall& call) {
  return call.extents[position_factor(call.signature)] * call.in[0].shape.back() *
         size_of(call.in[0].dtype);
}

void rotary_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const OperandDims& dims = args.signature.inputs()[0];
    const size_t s = position_factor(args.signature);
    const int e = dims.back()[0];
    const int64_t start = args.attrs.integer_or("start", 0);
    const int64_t size = args.extents[static_cast<size_t>(e)].local - start, half = size / 2;
    const std::vector<int64_t> positions = args.extents[s].positions();
    // Cosines, then sines, of every position.
    T* const table = static_cast<T*>(args.workspace);
    const double sign = args.attrs.integer_or("inverse", 0) != 0 ? -1 : 1;
    for (int64_t i = 0; i < half; ++i) {
      const double frequency = std::pow(args.attrs.real("theta"),
                                        -2.0 * static_cast<double>(i) / static_cast<double>(size));
      for (size_t p = 0; p < positions.size(); ++p) {
        const double angle = static_cast<double>(positions[p]) * frequency;
        T* row = table + static_cast<int64_t>(p) * size;
        row[i] = static_cast<T>(std::cos(angle));
        row[half + i] = static_cast<T>(sign * std::sin(angle));
      }
    }
    const RowInput<T> x(args, 0, e);
    const RowOutput<T> y(args, 0, e);
    std::vector<int8_t> others = factors_without(dims, e);
    std::erase(others, static_cast<int8_t>(s));
    const auto rows = nest_over<2>(args, others, {x.strides(), y.strides()});
    const int64_t heads = rows.count();
    const auto rotate = [&](int64_t p) {
      const T* __restrict cosine = table + p * size;
      const T* __restrict sine = cosine + half;
      for_each_element(rows, [&](const auto& at) {
        const T* __restrict from = x.data() + at[0] + p * x.strides()[s];
        T* __restrict to = y.data() + at[1] + p * y.strides()[s];
        std::copy(from, from + start, to);
        from += start, to += start;
        for (int64_t i = 0; i < half; ++i) {
          to[i] = from[i] * cosine[i] - from[half + i] * sine[i];
          to[half + i] = from[half + i] * cosine[i] + from[i] * sine[i];
        }
      });
    };
    parallel_for(args, static_cast<int64_t>(positions.size()), rows_a_piece(heads * size),
                 [&](int64_t begin, int64_t end, int) {
                   widest([&] {
                     for (int64_t p = begin; p < end; ++p) rotate(p);
                   });
                 });
  });
}

std::vector<Value> rotary_grad(GradContext& g) {
  const Signature& s = g.signature();
  Attrs attrs = g.attrs();
  attrs.set("inverse", int64_t{attrs.integer_or("inverse", 0) == 0});
  return {g.add1(ops::rotary, {g.grad(0)}, s.text(), std::move(attrs))};
}

}  // namespace

constinit const OpDef ops::rotary = {
    .name = "rotary",
    .factors = "bshE->bshE|s:indexed",
    .infer = infer_rotary,
    .flops = flops_each<3>,
    .grad = rotary_grad,
    .workspace = rotary_workspace,
    .linear = true,
    .cpu = rotary_cpu,
    .cuda = cuda_kernel<rotary_cuda>(),
    .cuda_many = cuda_kernels<rotary_cuda_many>(),
    .together = true,
};

}  // namespace cleave
