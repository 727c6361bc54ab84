// Softmax over one dimension, which is whole in one kernel; split, it is a log-sum-exp that shards
// combine, and exponentials.
#include "kernels/cuda_kernel.h"
#include "kernels/lanes.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"
#include "kernels/parallel.h"
#include "kernels/rows.h"

namespace cleave {

void softmax_cuda(const KernelArgs&);  // cuda/softmax.cu
void softmax_backward_cuda(const KernelArgs&);

namespace {

void softmax_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const int f = whole_factor(args.signature);
    CLEAVE_ASSERT(f >= 0, "'{}' has no whole factor", args.signature.text());
    const int64_t n = args.extents[static_cast<size_t>(f)].local;
    const RowInput<T> x(args, 0, f);
    const RowOutput<T> y(args, 0, f);
    const auto rows = nest_over<2>(args, factors_without(args.signature.outputs()[0], f),
                                   {x.strides(), y.strides()});
    parallel_elements(args, rows, n, [&](const auto& at) {
      const T* from = x.data() + at[0];
      T* to = y.data() + at[1];
      const T scale = 1 / exp_and_sum(from, lane_max(from, n), to, n);
      for (int64_t i = 0; i < n; ++i) to[i] *= scale;
    });
  });
}

// dx = y (dy - sum(y dy)).
void softmax_backward_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const int f = whole_factor(args.signature);
    CLEAVE_ASSERT(f >= 0, "'{}' has no whole factor", args.signature.text());
    const int64_t n = args.extents[static_cast<size_t>(f)].local;
    const RowInput<T> y_rows(args, 0, f), dy_rows(args, 1, f);
    const RowOutput<T> dx_rows(args, 0, f);
    const auto rows = nest_over<3>(args, factors_without(args.signature.outputs()[0], f),
                                   {y_rows.strides(), dy_rows.strides(), dx_rows.strides()});
    parallel_elements(args, rows, n, [&](const auto& at) {
      const T* y = y_rows.data() + at[0];
      const T* dy = dy_rows.data() + at[1];
      T* __restrict dx = dx_rows.data() + at[2];
      const T dot = lane_sum<T>(n, [=](int64_t i) { return y[i] * dy[i]; });
      for (int64_t i = 0; i < n; ++i) dx[i] = y[i] * (dy[i] - dot);
    });
  });
}

std::vector<Value> softmax_grad(GradContext& g) {
  const std::string text = g.signature().output_text(0);
  return {g.add1(ops::softmax_backward, {g.out(0), g.grad(0)}, text + "," + text + "->" + text)};
}

std::vector<Value> softmax_split(const SplitRequest& request) {
  const Decomposition d(request);
  const std::string all = d.in(0), reduced = d.without(all);
  const Value lse =
      d.add(ops::logsumexp, {d.input(0)}, all + "->" + reduced + "|" + d.letter() + ":lse");
  return d.finish({d.map(ops::exp, d.zip(ops::sub, d.input(0), all, lse, reduced), all)},
                  infer_from_factors);
}

std::vector<Value> softmax_backward_split(const SplitRequest& request) {
  const Decomposition d(request);
  const std::string all = d.in(0), reduced = d.without(all);
  const Value y = d.input(0), dy = d.input(1);
  const Value dot = d.sum(d.zip(ops::mul, y, all, dy, all), all, reduced);
  return d.finish({d.zip(ops::mul, y, all, d.zip(ops::sub, dy, all, dot, reduced), all)},
                  infer_from_factors);
}

}  // namespace

constinit const OpDef ops::softmax = {
    .name = "softmax",
    .factors = "...S->...S",
    .flops = flops_each<5>,
    .grad = softmax_grad,
    .split = softmax_split,
    .cpu = softmax_cpu,
    .cuda = cuda_kernel<softmax_cuda>(),
};

constinit const OpDef ops::softmax_backward = {
    .name = "softmax_backward",
    .factors = "...S,...S->...S",
    .flops = flops_each<4>,
    .split = softmax_backward_split,
    .cpu = softmax_backward_cpu,
    .cuda = cuda_kernel<softmax_backward_cuda>(),
};

}  // namespace cleave
