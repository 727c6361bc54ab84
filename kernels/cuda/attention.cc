// Attention, forward and backward, on the GPU: which kernel, and how it is told what to do.
#include "kernels/attention.h"

#include <utility>
#include <vector>

#include "kernels/cuda/attention_cudnn.h"
#include "kernels/cuda/attention_work.h"
#include "kernels/cuda/context.h"

namespace cleave {
namespace {

using Operands = std::vector<std::pair<AttentionWork::Operand, OperandRef>>;

// `step`: which input holds the step, when there is dropout.
AttentionWork work_of(const KernelArgs& args, const AttentionFactors& f, const Operands& operands,
                      size_t step) {
  const auto extent = [&](int8_t factor) -> const Extent& {
    return args.extents[static_cast<size_t>(factor)];
  };
  AttentionWork w;
  w.s = extent(f.s).local, w.t = extent(f.t).local;
  w.e = extent(f.e).local, w.v = extent(f.v).local;
  if (w.e > kWidestHead || w.v > kWidestHead) {
    fail("attention on a GPU has heads of at most {} numbers, not {}", kWidestHead,
         std::max(w.e, w.v));
  }
  w.causal = args.attrs.integer_or("causal", 0) != 0;
  w.scale = args.attrs.real("scale");
  const double rate = args.attrs.real_or("dropout", 0);
  w.dropout = rate > 0;
  if (w.dropout) {
    w.rule = DropoutRule(args.seed, args.attrs.text("name"), rate);
    w.step = args.in[step].as<const int>();
  }
  w.query_positions = positions_of(extent(f.s));
  w.key_positions = positions_of(extent(f.t));

  // The mask's index is that of the weight in the whole [batch, g, r, s, keys].
  std::vector<int64_t> mask_steps(args.extents.size(), 0), key_steps(args.extents.size(), 0);
  int64_t mask = 1, keys = 1;
  for (size_t i = f.key_dim.size(); i-- > 0;) {
    key_steps[static_cast<size_t>(f.key_dim[i])] = keys;
    keys *= extent(f.key_dim[i]).global;
  }
  mask = keys;
  std::vector<int8_t> rows = f.batch;
  rows.push_back(f.g);
  if (f.r >= 0) rows.push_back(f.r);
  rows.push_back(f.s);
  for (size_t i = rows.size(); i-- > 0;) {
    mask_steps[static_cast<size_t>(rows[i])] = mask;
    mask *= extent(rows[i]).global;
  }
  w.query_mask_step = mask_steps[static_cast<size_t>(f.s)];

  std::vector<int8_t> independent = f.outer;
  independent.push_back(f.g);
  CLEAVE_ASSERT(independent.size() <= static_cast<size_t>(kMostLoops), "attention over {} factors",
                independent.size());
  for (const int8_t factor : independent) {
    const int d = w.loops.rank++;
    w.loops.sizes[d] = extent(factor).local;
    w.loops.count *= extent(factor).local;
    w.positions[d] = positions_of(extent(factor));
    w.mask_steps[d] = mask_steps[static_cast<size_t>(factor)];
    w.key_steps[d] = key_steps[static_cast<size_t>(factor)];
  }
  w.loops.small = w.loops.count <= INT32_MAX;
  if (f.r >= 0) {
    w.r = extent(f.r).local;
    w.r_positions = positions_of(extent(f.r));
    w.r_mask_step = mask_steps[static_cast<size_t>(f.r)];
  }
  for (const auto& [which, ref] : operands) {
    const Shape strides = factor_strides(args, *ref.dims, *ref.view);
    const auto stride = [&](int8_t factor) { return strides[static_cast<size_t>(factor)]; };
    // Each carries the queries or the keys, and one of the widths or, the log-sum-exp, none.
    w.matrices[which] = {ref.view->data, stride(f.s) + stride(f.t), stride(f.e) + stride(f.v)};
    for (size_t d = 0; d < independent.size(); ++d) {
      w.loops.steps[d][which] = stride(independent[d]);
    }
    if (f.r >= 0) w.r_steps[which] = stride(f.r);
    if (which == AttentionWork::kQ) w.dtype = ref.view->dtype;
    if (which == AttentionWork::kLse) w.lse_dtype = ref.view->dtype;
  }
  return w;
}

// Positions ascend, so that the first and the last tell.
AttentionMask mask_of(const KernelArgs& args, const AttentionFactors& f) {
  if (args.attrs.integer_or("causal", 0) == 0) return AttentionMask::kNone;
  const Extent &queries = args.extents[static_cast<size_t>(f.s)],
               &keys = args.extents[static_cast<size_t>(f.t)];
  if (f.key_dim.size() > 1 || queries.local == 0 || keys.local == 0) return AttentionMask::kOther;
  const auto in_a_row = [](const Extent& e) {
    return e.position(e.local - 1) - e.position(0) == e.local - 1;
  };
  if (keys.position(keys.local - 1) <= queries.position(0)) return AttentionMask::kNone;
  return in_a_row(queries) && in_a_row(keys) && queries.position(0) == keys.position(0)
             ? AttentionMask::kCausal
             : AttentionMask::kOther;
}

}  // namespace

void attention_cuda(const KernelArgs& args) {
  using W = AttentionWork;
  const Signature& s = args.signature;
  const AttentionFactors factors = {s.inputs()[0], s.inputs()[2], s.outputs()[0]};
  const AttentionWork work = work_of(args, factors,
                                     {{W::kQ, input(args, 0)},
                                      {W::kK, input(args, 1)},
                                      {W::kV, input(args, 2)},
                                      {W::kO, output(args, 0)},
                                      {W::kLse, output(args, 1)}},
                                     3);
  const auto stream = static_cast<cudaStream_t>(args.stream);
  DeviceContext& device = *args.device;
  if (device.cudnn_attention &&
      device.attention().attend(work, mask_of(args, factors), device, stream)) {
    return;
  }
  attend(work, stream);
}

int64_t attention_backward_cuda_workspace(const OpCall& call) {
  return numel(call.in[5].shape) *
         size_of(call.in[0].dtype == DType::kF64 ? DType::kF64 : DType::kF32);
}

void attention_backward_cuda(const KernelArgs& args) {
  using W = AttentionWork;
  const Signature& s = args.signature;
  const AttentionFactors factors = {s.inputs()[1], s.inputs()[3], s.inputs()[4]};
  AttentionWork work = work_of(args, factors,
                               {{W::kDo, input(args, 0)},
                                {W::kQ, input(args, 1)},
                                {W::kK, input(args, 2)},
                                {W::kV, input(args, 3)},
                                {W::kO, input(args, 4)},
                                {W::kLse, input(args, 5)},
                                {W::kDq, output(args, 0)},
                                {W::kDk, output(args, 1)},
                                {W::kDv, output(args, 2)}},
                               6);
  const auto stream = static_cast<cudaStream_t>(args.stream);
  DeviceContext& device = *args.device;
  if (device.cudnn_attention &&
      device.attention().attend_backward(work, mask_of(args, factors), device, stream)) {
    return;
  }
  work.delta = args.workspace;
  attend_backward(work, stream);
}

}  // namespace cleave
