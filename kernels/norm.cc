// Layer norm and RMS norm over the last dimension. Split along it, they are sums of a row that
// shards combine, and pointwise ops.
#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/cuda/workspace.h"
#include "kernels/cuda_kernel.h"
#include "kernels/lanes.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"
#include "kernels/parallel.h"
#include "kernels/rows.h"

namespace cleave {

void layer_norm_cuda(const KernelArgs&);  // cuda/norm.cu
void layer_norm_backward_cuda(const KernelArgs&);
void rms_norm_cuda(const KernelArgs&);
void rms_norm_backward_cuda(const KernelArgs&);

namespace {

// --- Layer norm ----------------------------------------------------------------------------------

std::vector<TensorType> infer_layer_norm(const OpCall& call) {
  expect_types(call, "xxx");
  const DType x = call.in[0].dtype, s = statistics_dtype(x);
  return {output_type(call, 0, x), output_type(call, 1, s), output_type(call, 2, s)};
}

// The gradients of a norm, and what fusion adds to them (executor/fuse_norms.cc): with the
// attribute `residual` a last operand is added to dx; with `sum` a last result is the sum of dx
// over its rows; `wide` has a bit for each result that is stored in f32, of halves.
std::vector<TensorType> infer_norm_backward(const OpCall& call, std::string kinds) {
  if (call.attrs.integer_or("residual", 0) != 0) kinds += 'x';
  expect_types(call, kinds);
  std::vector<TensorType> out = infer_from_factors(call);
  for (size_t o = 0; o < out.size(); ++o) {
    if ((call.attrs.integer_or("wide", 0) >> o & 1) != 0) {
      out[o].dtype = statistics_dtype(out[o].dtype);
    }
  }
  return out;
}

std::vector<TensorType> infer_layer_norm_backward(const OpCall& call) {
  return infer_norm_backward(call, "xxxss");
}

// The rows of what is added to dx, where there is such an operand: then it is the last.
template <class T>
struct Residual {
  Residual(const KernelArgs& args, int f) {
    if (args.attrs.integer_or("residual", 0) != 0) rows.emplace(args, args.in.size() - 1, f);
  }
  // Row strides; those of dx where there is none.
  Shape strides(const Shape& dx) const { return rows ? rows->strides() : dx; }
  std::optional<RowInput<T>> rows;
};

template <class T>
void add_row(const T* __restrict from, T* __restrict to, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

// Sums over rows of the results after the first, one after the other in `sums`.
template <class T>
void put_sums(const KernelArgs& args, int f, const std::vector<T>& sums) {
  const int64_t n = args.extents[static_cast<size_t>(f)].local;
  for (size_t o = 1; o < args.out.size(); ++o) {
    const RowOutput<T> to(args, o, f);
    std::copy_n(sums.begin() + static_cast<int64_t>(o - 1) * n, n, to.data());
  }
}

void layer_norm_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const int f = whole_factor(args.signature);
    CLEAVE_ASSERT(f >= 0, "'{}' has no whole factor", args.signature.text());
    const int64_t n = args.extents[static_cast<size_t>(f)].local;
    const T eps = static_cast<T>(args.attrs.real("eps"));
    const RowInput<T> x_rows(args, 0, f), gammas(args, 1, f), betas(args, 2, f);
    const RowOutput<T> y_rows(args, 0, f);
    const T* gamma = gammas.data();
    const T* beta = betas.data();
    const auto rows = nest_over<4>(
        args, factors_without(args.signature.outputs()[0], f),
        {x_rows.strides(), y_rows.strides(), out_strides(args, 1), out_strides(args, 2)});
    parallel_elements(args, rows, n, [&](const auto& at) {
      const T* x = x_rows.data() + at[0];
      T* __restrict y = y_rows.data() + at[1];
      const T mean = lane_sum<T>(n, [=](int64_t i) { return x[i]; }) / static_cast<T>(n);
      const T variance = lane_sum<T>(n, [=](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) /
                         static_cast<T>(n);
      const T rstd = 1 / std::sqrt(variance + eps);
      for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * rstd * gamma[i] + beta[i];
      args.out[1].as<T>()[at[2]] = mean;
      args.out[2].as<T>()[at[3]] = rstd;
    });
  });
}

// With h = (x - mean) rstd and g = dy gamma: dx = rstd (g - mean(g) - h mean(g h)).
void layer_norm_backward_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const int f = whole_factor(args.signature);
    CLEAVE_ASSERT(f >= 0, "'{}' has no whole factor", args.signature.text());
    const int64_t n = args.extents[static_cast<size_t>(f)].local;
    const RowInput<T> dy_rows(args, 0, f), x_rows(args, 1, f), gammas(args, 2, f);
    const Residual<T> residual(args, f);
    const RowOutput<T> dx_rows(args, 0, f);
    const T* gamma = gammas.data();
    const bool sum = args.out.size() > 3;
    const auto rows =
        nest_over<6>(args, factors_without(args.signature.outputs()[0], f),
                     {dy_rows.strides(), x_rows.strides(), in_strides(args, 3), in_strides(args, 4),
                      dx_rows.strides(), residual.strides(dx_rows.strides())});
    const auto walk = [&](int64_t begin, int64_t end, T* __restrict dgamma) {
      T* __restrict dbeta = dgamma + n;
      T* __restrict dx_sum = dbeta + n;
      for_each_element(rows, begin, end, [&](const auto& at) {
        const T* __restrict dy = dy_rows.data() + at[0];
        const T* __restrict x = x_rows.data() + at[1];
        const T mean = args.in[3].as<const T>()[at[2]], rstd = args.in[4].as<const T>()[at[3]];
        T* __restrict dx = dx_rows.data() + at[4];
        const T count = static_cast<T>(n);
        const T g_mean = lane_sum<T>(n, [=](int64_t i) { return dy[i] * gamma[i]; }) / count;
        const T gh_mean =
            lane_sum<T>(n, [=](int64_t i) { return dy[i] * gamma[i] * ((x[i] - mean) * rstd); }) /
            count;
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) {
          const T h = (x[i] - mean) * rstd;
          dx[i] = rstd * (dy[i] * gamma[i] - g_mean - h * gh_mean);
          dgamma[i] += dy[i] * h;
          dbeta[i] += dy[i];
        }
        if (residual.rows) add_row(residual.rows->data() + at[5], dx, n);
        if (sum) add_row(dx, dx_sum, n);
      });
    };
    put_sums<T>(args, f, sum_over_rows<T>(args, rows.count(), (sum ? 3 : 2) * n, walk));
  });
}

std::vector<Value> layer_norm_grad(GradContext& g) {
  const Signature& s = g.signature();
  CLEAVE_ASSERT(g.grad(1) == kNoValue && g.grad(2) == kNoValue,
                "layer_norm: the statistics have no gradient");
  const std::string x = s.input_text(0), d = s.input_text(1), rows = s.output_text(1);
  return g.add(ops::layer_norm_backward, {g.grad(0), g.in(0), g.in(1), g.out(1), g.out(2)},
               fmt::format("{0},{0},{1},{2},{2}->{0},{1},{1}", x, d, rows));
}

std::vector<Value> layer_norm_split(const SplitRequest& request) {
  const Decomposition d(request);
  const std::string all = d.in(0), row = d.out(1), width = d.in(1);
  const Value mean = d.mean(d.input(0), all, row);
  const Value centred = d.zip(ops::sub, d.input(0), all, mean, row);
  const Value variance = d.mean(d.map(ops::square, centred, all), all, row);
  const Value shifted =
      d.map(ops::add_scalar, variance, row, {{"value", request.call.attrs.real("eps")}});
  const Value rstd = d.map(ops::reciprocal, d.map(ops::sqrt, shifted, row), row);
  const Value h = d.zip(ops::mul, centred, all, rstd, row);
  const Value y =
      d.zip(ops::add, d.zip(ops::mul, h, all, d.input(1), width), all, d.input(2), width);
  return d.finish({y, mean, rstd}, infer_layer_norm);
}

// With what fusion has added.
std::vector<Value> finish_norm_backward(const Decomposition& d, const SplitRequest& request,
                                        std::vector<Value> out, InferFn infer) {
  const std::string all = d.in(0), width = d.in(2);
  if (request.call.attrs.integer_or("residual", 0) != 0) {
    out[0] = d.zip(ops::add, out[0], all, request.inputs.back(), all);
  }
  if (request.call.signature.outputs().size() > out.size()) {
    out.push_back(d.sum(out[0], all, width));
  }
  return d.finish(std::move(out), infer);
}

std::vector<Value> layer_norm_backward_split(const SplitRequest& request) {
  const Decomposition d(request);
  const std::string all = d.in(0), row = d.in(3), width = d.in(2);
  const Value dy = d.input(0), rstd = d.input(4);
  const Value h =
      d.zip(ops::mul, d.zip(ops::sub, d.input(1), all, d.input(3), row), all, rstd, row);
  const Value g = d.zip(ops::mul, dy, all, d.input(2), width);
  const Value g_mean = d.mean(g, all, row);
  const Value gh_mean = d.mean(d.zip(ops::mul, g, all, h, all), all, row);
  const Value spread = d.zip(ops::sub, d.zip(ops::sub, g, all, g_mean, row), all,
                             d.zip(ops::mul, h, all, gh_mean, row), all);
  std::vector<Value> out = {d.zip(ops::mul, spread, all, rstd, row),
                            d.sum(d.zip(ops::mul, dy, all, h, all), all, width),
                            d.sum(dy, all, width)};
  return finish_norm_backward(d, request, std::move(out), infer_layer_norm_backward);
}

// --- RMS norm ------------------------------------------------------------------------------------

std::vector<TensorType> infer_rms_norm(const OpCall& call) {
  expect_types(call, "xx");
  const DType x = call.in[0].dtype;
  return {output_type(call, 0, x), output_type(call, 1, statistics_dtype(x))};
}

std::vector<TensorType> infer_rms_norm_backward(const OpCall& call) {
  return infer_norm_backward(call, "xxxs");
}

void rms_norm_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const int f = whole_factor(args.signature);
    CLEAVE_ASSERT(f >= 0, "'{}' has no whole factor", args.signature.text());
    const int64_t n = args.extents[static_cast<size_t>(f)].local;
    const T eps = static_cast<T>(args.attrs.real("eps"));
    const RowInput<T> x_rows(args, 0, f), gammas(args, 1, f);
    const RowOutput<T> y_rows(args, 0, f);
    const T* gamma = gammas.data();
    const auto rows = nest_over<3>(args, factors_without(args.signature.outputs()[0], f),
                                   {x_rows.strides(), y_rows.strides(), out_strides(args, 1)});
    parallel_elements(args, rows, n, [&](const auto& at) {
      const T* x = x_rows.data() + at[0];
      T* __restrict y = y_rows.data() + at[1];
      const T squares = lane_sum<T>(n, [=](int64_t i) { return x[i] * x[i]; });
      const T rstd = 1 / std::sqrt(squares / static_cast<T>(n) + eps);
      for (int64_t i = 0; i < n; ++i) y[i] = x[i] * rstd * gamma[i];
      args.out[1].as<T>()[at[2]] = rstd;
    });
  });
}

// With h = x rstd and g = dy gamma: dx = rstd (g - h mean(g h)).
void rms_norm_backward_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const int f = whole_factor(args.signature);
    CLEAVE_ASSERT(f >= 0, "'{}' has no whole factor", args.signature.text());
    const int64_t n = args.extents[static_cast<size_t>(f)].local;
    const RowInput<T> dy_rows(args, 0, f), x_rows(args, 1, f), gammas(args, 2, f);
    const Residual<T> residual(args, f);
    const RowOutput<T> dx_rows(args, 0, f);
    const T* gamma = gammas.data();
    const bool sum = args.out.size() > 2;
    const auto rows = nest_over<5>(args, factors_without(args.signature.outputs()[0], f),
                                   {dy_rows.strides(), x_rows.strides(), in_strides(args, 3),
                                    dx_rows.strides(), residual.strides(dx_rows.strides())});
    const auto walk = [&](int64_t begin, int64_t end, T* __restrict dgamma) {
      T* __restrict dx_sum = dgamma + n;
      for_each_element(rows, begin, end, [&](const auto& at) {
        const T* __restrict dy = dy_rows.data() + at[0];
        const T* __restrict x = x_rows.data() + at[1];
        const T rstd = args.in[3].as<const T>()[at[2]];
        T* __restrict dx = dx_rows.data() + at[3];
        const T gh_mean =
            lane_sum<T>(n, [=](int64_t i) { return dy[i] * gamma[i] * (x[i] * rstd); }) /
            static_cast<T>(n);
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) {
          const T h = x[i] * rstd;
          dx[i] = rstd * (dy[i] * gamma[i] - h * gh_mean);
          dgamma[i] += dy[i] * h;
        }
        if (residual.rows) add_row(residual.rows->data() + at[4], dx, n);
        if (sum) add_row(dx, dx_sum, n);
      });
    };
    put_sums<T>(args, f, sum_over_rows<T>(args, rows.count(), (sum ? 2 : 1) * n, walk));
  });
}

std::vector<Value> rms_norm_grad(GradContext& g) {
  const Signature& s = g.signature();
  CLEAVE_ASSERT(g.grad(1) == kNoValue, "rms_norm: the statistics have no gradient");
  const std::string x = s.input_text(0), d = s.input_text(1), rows = s.output_text(1);
  return g.add(ops::rms_norm_backward, {g.grad(0), g.in(0), g.in(1), g.out(1)},
               fmt::format("{0},{0},{1},{2}->{0},{1}", x, d, rows));
}

std::vector<Value> rms_norm_split(const SplitRequest& request) {
  const Decomposition d(request);
  const std::string all = d.in(0), row = d.out(1), width = d.in(1);
  const Value squares = d.mean(d.map(ops::square, d.input(0), all), all, row);
  const Value shifted =
      d.map(ops::add_scalar, squares, row, {{"value", request.call.attrs.real("eps")}});
  const Value rstd = d.map(ops::reciprocal, d.map(ops::sqrt, shifted, row), row);
  const Value h = d.zip(ops::mul, d.input(0), all, rstd, row);
  return d.finish({d.zip(ops::mul, h, all, d.input(1), width), rstd}, infer_rms_norm);
}

std::vector<Value> rms_norm_backward_split(const SplitRequest& request) {
  const Decomposition d(request);
  const std::string all = d.in(0), row = d.in(3), width = d.in(2);
  const Value dy = d.input(0), rstd = d.input(3);
  const Value h = d.zip(ops::mul, d.input(1), all, rstd, row);
  const Value g = d.zip(ops::mul, dy, all, d.input(2), width);
  const Value gh_mean = d.mean(d.zip(ops::mul, g, all, h, all), all, row);
  const Value spread = d.zip(ops::sub, g, all, d.zip(ops::mul, h, all, gh_mean, row), all);
  std::vector<Value> out = {d.zip(ops::mul, spread, all, rstd, row),
                            d.sum(d.zip(ops::mul, dy, all, h, all), all, width)};
  return finish_norm_backward(d, request, std::move(out), infer_rms_norm_backward);
}

}  // namespace

constinit const OpDef ops::layer_norm = {
    .name = "layer_norm",
    .factors = "...D,D,D->...D,...,...",
    .infer = infer_layer_norm,
    .flops = flops_each<8>,
    .grad = layer_norm_grad,
    .split = layer_norm_split,
    .cpu = layer_norm_cpu,
    .cuda = cuda_kernel<layer_norm_cuda>(),
};

constinit const OpDef ops::layer_norm_backward = {
    .name = "layer_norm_backward",
    .factors = "...D,...D,D,...,...->...D,D,D",
    .infer = infer_layer_norm_backward,
    .flops = flops_each<14>,
    .split = layer_norm_backward_split,
    .cpu = layer_norm_backward_cpu,
    .cuda = cuda_kernel<layer_norm_backward_cuda>(),
    .cuda_workspace = norm_backward_workspace,
};

constinit const OpDef ops::rms_norm = {
    .name = "rms_norm",
    .factors = "...D,D->...D,...",
    .infer = infer_rms_norm,
    .flops = flops_each<4>,
    .grad = rms_norm_grad,
    .split = rms_norm_split,
    .cpu = rms_norm_cpu,
    .cuda = cuda_kernel<rms_norm_cuda>(),
};

constinit const OpDef ops::rms_norm_backward = {
    .name = "rms_norm_backward",
    .factors = "...D,...D,D,...->...D,D",
    .infer = infer_rms_norm_backward,
    .flops = flops_each<10>,
    .split = rms_norm_backward_split,
    .cpu = rms_norm_backward_cpu,
    .cuda = cuda_kernel<rms_norm_backward_cuda>(),
    .cuda_workspace = norm_backward_workspace,
};

}  // namespace cleave
