// Dropout: y = x / (1 - p) where the mask keeps the element, else 0. The backward draws the same
// mask, for it has the same name and step.
#include "kernels/cuda_kernel.h"
#include "kernels/dropout_mask.h"
#include "kernels/loops.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"

namespace cleave {

void dropout_cuda(const KernelArgs&);  // kernels/cuda/dropout.cu

namespace {

std::vector<TensorType> infer_dropout(const OpCall& call) {
  expect_types(call, "xi");
  const double p = call.attrs.real("p");
  if (!(p >= 0 && p < 1)) fail("dropout: the rate must be in [0, 1), got {}", p);
  for (const Factor& f : call.signature.factors()) {
    CLEAVE_ASSERT(f.indexed, "dropout: factor {} of '{}' must be indexed", f.letter,
                  call.signature.text());
  }
  return infer_from_factors(call);
}

int64_t dropout_workspace(const OpCall& call) {
  const int64_t row = call.in[0].shape.empty() ? 1 : call.in[0].shape.back();
  return row * size_of(call.in[0].dtype);
}

void dropout_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const DropoutMask mask(args.seed, args.attrs.text("name"), args.in[1].as<const int32_t>()[0],
                           args.attrs.real("p"));
    const T* x = args.in[0].as<const T>();
    T* y = args.out[0].as<T>();
    std::vector<int8_t> factors = factors_of(args.signature.inputs()[0]);
    if (factors.empty()) {
      y[0] = x[0] * static_cast<T>(mask.at(0));
      return;
    }
    const size_t rank = factors.size();
    const Shape x_strides = in_strides(args, 0), y_strides = out_strides(args, 0);
    std::vector<std::vector<int64_t>> positions;
    std::vector<int64_t> weights(rank, 1), index(rank, 0);  // weights: whole strides
    for (const int8_t f : factors) {
      positions.push_back(args.extents[static_cast<size_t>(f)].positions());
      if (positions.back().empty()) return;
    }
    for (size_t d = rank - 1; d-- > 0;) {
      weights[d] = weights[d + 1] * args.extents[static_cast<size_t>(factors[d + 1])].global;
    }
    const std::vector<int64_t>& inner = positions.back();
    const int64_t n = static_cast<int64_t>(inner.size());
    const bool run = inner.back() - inner.front() == n - 1;
    const int64_t x_step = x_strides[static_cast<size_t>(factors.back())];
    const int64_t y_step = y_strides[static_cast<size_t>(factors.back())];
    T* const keep = static_cast<T*>(args.workspace);
    while (true) {
      int64_t first = 0, x_at = 0, y_at = 0;
      for (size_t d = 0; d + 1 < rank; ++d) {
        const size_t i = static_cast<size_t>(index[d]), f = static_cast<size_t>(factors[d]);
        first += positions[d][i] * weights[d];
        x_at += index[d] * x_strides[f];
        y_at += index[d] * y_strides[f];
      }
      if (run) {
        mask.fill(static_cast<uint64_t>(first + inner[0]), n, keep);
      } else {
        for (int64_t i = 0; i < n; ++i) {
          keep[i] =
              static_cast<T>(mask.at(static_cast<uint64_t>(first + inner[static_cast<size_t>(i)])));
        }
      }
      for (int64_t i = 0; i < n; ++i) y[y_at + i * y_step] = x[x_at + i * x_step] * keep[i];
      size_t d = rank - 1;
      while (d > 0 && ++index[d - 1] == static_cast<int64_t>(positions[d - 1].size())) {
        index[--d] = 0;
      }
      if (d == 0) return;
    }
  });
}

std::vector<Value> dropout_grad(GradContext& g) {
  return {g.add1(ops::dropout, {g.grad(0), g.in(1)}, g.signature().text(), g.attrs()), kNoValue};
}

}  // namespace

constinit const OpDef ops::dropout = {
    .name = "dropout",
    .factors = "...,->...",  // callers give a full string that marks every factor as indexed
    .infer = infer_dropout,
    .flops = flops_each<8>,
    .grad = dropout_grad,
    .workspace = dropout_workspace,
    .linear = true,
    .cpu = dropout_cpu,
    .cuda = cuda_kernel<dropout_cuda>(),
};

}  // namespace cleave
