// The loss of class scores against class indices, per token. Over split classes it is a log-sum-exp
// that shards combine, and the target's score, which one shard has.
#include <cmath>

#include "kernels/cuda/workspace.h"
#include "kernels/cuda_kernel.h"
#include "kernels/lanes.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"
#include "kernels/parallel.h"
#include "kernels/rows.h"
#include "kernels/run_part.h"
#include "kernels/shard_index.h"

namespace cleave {

void cross_entropy_cuda(const KernelArgs&);  // cuda/cross_entropy.cu
void cross_entropy_backward_cuda(const KernelArgs&);
void cross_entropy_both_cuda(const KernelArgs&);
void pick_cuda(const KernelArgs&);

namespace {

std::vector<TensorType> infer_cross_entropy(const OpCall& call) {
  expect_types(call, "xi");
  const DType s = statistics_dtype(call.in[0].dtype);
  return {output_type(call, 0, s), output_type(call, 1, s)};
}

std::vector<TensorType> infer_cross_entropy_backward(const OpCall& call) {
  expect_types(call, "xiss");
  return infer_from_factors(call);
}

std::vector<TensorType> infer_cross_entropy_both(const OpCall& call) {
  expect_types(call, "xis");
  const DType s = statistics_dtype(call.in[0].dtype);
  return {output_type(call, 0, s), output_type(call, 1, s), output_type(call, 2, call.in[0].dtype)};
}

std::vector<TensorType> infer_pick(const OpCall& call) {
  expect_types(call, "xi");
  const Signature& s = call.signature;
  int reduced = 0;
  for (size_t f = 0; f < s.factors().size(); ++f) reduced += s.reduced_in(static_cast<int>(f), 0);
  CLEAVE_ASSERT(reduced == 1, "pick: '{}' picks along {} factors", s.text(), reduced);
  return {output_type(call, 0, statistics_dtype(call.in[0].dtype))};
}

// The factor of the classes: the one that the targets lack.
int class_factor(const KernelArgs& args) {
  const Signature& s = args.signature;
  for (const int8_t f : factors_of(s.inputs()[0])) {
    if (!Signature::carries(s.inputs()[1], f)) return f;
  }
  CLEAVE_ASSERT(false, "'{}': the targets carry every factor", s.text());
}

// This shard's index of the target; -1 when it is elsewhere.
[[gnu::noinline]] int64_t class_of(const Extent& classes, int32_t target) {
  if (target < 0 || target >= classes.global) {
    fail("cross_entropy: target {} is not one of {} classes", target, classes.global);
  }
  return local_index(classes, target);
}

void cross_entropy_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const int f = class_factor(args);
    const Extent& classes = args.extents[static_cast<size_t>(f)];
    const int64_t n = classes.local, ignore = args.attrs.integer_or("ignore", ops::kIgnoredTarget);
    const RowInput<T> logits(args, 0, f);
    const int32_t* targets = args.in[1].as<const int32_t>();
    T* const losses = args.out[0].as<T>();
    T* const lses = args.out[1].as<T>();
    const auto rows = nest_over<4>(
        args, factors_of(args.signature.inputs()[1]),
        {logits.strides(), in_strides(args, 1), out_strides(args, 0), out_strides(args, 1)});
    parallel_elements(args, rows, n, [&](const auto& at) {
      const T* x = logits.data() + at[0];
      const int32_t target = targets[at[1]];
      const T top = lane_max(x, n);
      const T lse = top + std::log(lane_sum<T>(n, [=](int64_t i) { return exp_of(x[i] - top); }));
      losses[at[2]] = target == ignore ? T{0} : lse - x[class_of(classes, target)];
      lses[at[3]] = lse;
    });
  });
}

// dlogits = (softmax - onehot(target)) dloss; nothing for an ignored target.
void cross_entropy_backward_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const int f = class_factor(args);
    const Extent& classes = args.extents[static_cast<size_t>(f)];
    const int64_t n = classes.local, ignore = args.attrs.integer_or("ignore", ops::kIgnoredTarget);
    const RowInput<T> logits(args, 0, f);
    const RowOutput<T> dlogits(args, 0, f);
    const int32_t* targets = args.in[1].as<const int32_t>();
    const T* const lses = args.in[2].as<const T>();
    const T* const dlosses = args.in[3].as<const T>();
    const auto rows = nest_over<5>(args, factors_of(args.signature.inputs()[1]),
                                   {logits.strides(), in_strides(args, 1), in_strides(args, 2),
                                    in_strides(args, 3), dlogits.strides()});
    parallel_elements(args, rows, n, [&](const auto& at) {
      const T* x = logits.data() + at[0];
      T* dx = dlogits.data() + at[4];
      const int32_t target = targets[at[1]];
      if (target == ignore) {
        std::fill(dx, dx + n, T{0});
        return;
      }
      const T lse = lses[at[2]], dloss = dlosses[at[3]];
      for (int64_t i = 0; i < n; ++i) dx[i] = exp_of(x[i] - lse) * dloss;
      const int64_t own = class_of(classes, target);
      if (own >= 0) dx[own] -= dloss;
    });
  });
}

// The element that the index names, along the factor that the result lacks; 0 when this shard does
// not have it.
void pick_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    size_t f = 0;
    while (!args.signature.reduced_in(static_cast<int>(f), 0)) ++f;
    const Extent& along = args.extents[f];
    const Shape strides = in_strides(args, 0);
    const T* x = args.in[0].as<const T>();
    const int32_t* indices = args.in[1].as<const int32_t>();
    T* const out = args.out[0].as<T>();
    const auto results = nest_over<3>(args, factors_of(args.signature.outputs()[0]),
                                      {strides, in_strides(args, 1), out_strides(args, 0)});
    for_each_element(results, [&](const auto& at) {
      const int32_t index = indices[at[1]];
      const bool exists = index >= 0 && index < along.global;
      const int64_t own = exists ? local_index(along, index) : -1;
      out[at[2]] = own < 0 ? T{0} : x[at[0] + own * strides[f]];
    });
  });
}

// The indices, and the elements that are picked.
double pick_bytes(const OpCall& call, std::span<const TensorType> out) {
  return static_cast<double>(numel(out[0].shape) * 2 * size_of(call.in[0].dtype) +
                             numel(call.in[1].shape) * size_of(DType::kI32));
}

std::vector<Value> cross_entropy_grad(GradContext& g) {
  const Signature& s = g.signature();
  const int f = whole_factor(s);
  const char whole = f < 0 ? 0 : s.factors()[static_cast<size_t>(f)].letter;
  const char v = lower(whole);
  const std::string all = with_letter(s.input_text(0), whole, v), row = s.input_text(1);
  std::vector<Value> parts;
  if (g.grad(0) != kNoValue) {
    parts.push_back(g.add1(ops::cross_entropy_backward, {g.in(0), g.in(1), g.out(1), g.grad(0)},
                           fmt::format("{0},{1},{1},{1}->{0}|{2}:indexed", all, row, v),
                           {{"ignore", g.attrs().integer_or("ignore", ops::kIgnoredTarget)}}));
  }
  if (g.grad(1) != kNoValue) {  // of the log-sum-exp: the softmax
    const std::string with_row = all + "," + row + "->" + all;
    const Value shifted = g.add1(ops::sub, {g.in(0), g.out(1)}, with_row);
    parts.push_back(
        g.add1(ops::mul, {g.add1(ops::exp, {shifted}, all + "->" + all), g.grad(1)}, with_row));
  }
  if (parts.size() == 1) return {parts[0], kNoValue};
  return {g.add1(ops::add_n, parts, all + "," + all + "->" + all), kNoValue};
}

std::vector<Value> cross_entropy_split(const SplitRequest& request) {
  const Decomposition d(request);
  const std::string all = d.in(0), row = d.in(1);
  const DType dtype = infer_cross_entropy(request.call)[0].dtype;
  const Value lse =
      d.add(ops::logsumexp, {d.input(0)}, all + "->" + row + "|" + d.letter() + ":lse");
  const Value score = d.add(ops::pick, {d.input(0), d.input(1)},
                            all + "," + row + "->" + row + "|" + d.letter() + ":indexed");
  const Value counts =
      d.map(ops::not_equal, d.input(1), row,
            {{"value", request.call.attrs.integer_or("ignore", ops::kIgnoredTarget)},
             {"dtype", std::string(name_of(dtype))}});
  const Value difference = d.zip(ops::sub, d.cast(lse, row, dtype), row, score, row);
  return d.finish({d.zip(ops::mul, difference, row, counts, row), lse}, infer_cross_entropy);
}

// Of rows that are too long to be kept, the scores are read twice.
double cross_entropy_both_bytes(const OpCall& call, std::span<const TensorType> out) {
  const auto scores = static_cast<double>(numel(call.in[0].shape) * size_of(call.in[0].dtype));
  const auto rows = static_cast<double>(numel(call.in[1].shape));
  const double once = bytes_from_factors(call, out);
  return scores > rows * kBothRowBytes ? once + scores : once;
}

// The loss and its gradient.
void cross_entropy_both_cpu(const KernelArgs& args) {
  const Signature& s = args.signature;
  const std::string scores = s.input_text(0), rows = s.input_text(1), each = "," + rows;
  run_part(ops::cross_entropy, scores + each + "->" + rows + each, args, {args.in[0], args.in[1]},
           args.out.first(2));
  run_part(ops::cross_entropy_backward, scores + each + each + each + "->" + scores, args,
           {args.in[0], args.in[1], args.out[1], args.in[2]}, args.out[2]);
}

}  // namespace

constinit const OpDef ops::cross_entropy = {
    .name = "cross_entropy",
    .factors = "...V,...->...,...|V:indexed",
    .infer = infer_cross_entropy,
    .flops = flops_each<4>,
    .grad = cross_entropy_grad,
    .split = cross_entropy_split,
    .cpu = cross_entropy_cpu,
    .cuda = cuda_kernel<cross_entropy_cuda>(),
};

constinit const OpDef ops::cross_entropy_backward = {
    .name = "cross_entropy_backward",
    .factors = "bsv,bs,bs,bs->bsv|v:indexed",
    .infer = infer_cross_entropy_backward,
    .flops = flops_each<4>,
    .cpu = cross_entropy_backward_cpu,
    .cuda = cuda_kernel<cross_entropy_backward_cuda>(),
};

// Both, in one pass over the scores where a row fits into the shared memory of a GPU's cluster of
// blocks: what fusion makes of a loss and its gradient (executor/fuse_loss.cc).
//
//   scores, targets, dlosses -> losses, log-sum-exps, dscores
constinit const OpDef ops::cross_entropy_both = {
    .name = "cross_entropy_both",
    .factors = "bsV,bs,bs->bs,bs,bsV|V:indexed",
    .infer = infer_cross_entropy_both,
    .flops = flops_each<8>,
    .bytes = cross_entropy_both_bytes,
    .cpu = cross_entropy_both_cpu,
    .cuda = cuda_kernel<cross_entropy_both_cuda>(),
};

constinit const OpDef ops::pick = {
    .name = "pick",
    .factors = "bsv,bs->bs|v:indexed",
    .infer = infer_pick,
    .flops = no_flops,
    .bytes = pick_bytes,
    .cpu = pick_cpu,
    .cuda = cuda_kernel<pick_cuda>(),
};

}  // namespace cleave
