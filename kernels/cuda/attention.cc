// Attention, forward and backward, on the GPU: which kernel, and how it is told what to do.
#include "kernels/attention.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/cuda/attention_cudnn.h"
#include "kernels/cuda/attention_hopper.h"
#include "kernels/cuda/attention_room.h"
#include "kernels/cuda/attention_work.h"
#include "kernels/cuda/context.h"

namespace cleave {
namespace {

struct Placed {
  AttentionWork::Operand which;
  const TensorView& view;
  Shape strides;
};

// `step`: which input holds the step, when there is dropout.
AttentionWork work_of(const KernelArgs& args, const AttentionFactors& f,
                      const std::vector<Placed>& operands, size_t step) {
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
  w.query_positions = shard_of(extent(f.s));
  w.key_positions = shard_of(extent(f.t));

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
  for (const int8_t factor : independent) {
    const int d = w.loops.dims;
    w.loops.add(extent(factor).local);
    w.positions[d] = shard_of(extent(factor));
    w.mask_steps[d] = mask_steps[static_cast<size_t>(factor)];
    w.key_steps[d] = key_steps[static_cast<size_t>(factor)];
  }
  if (f.r >= 0) {
    w.r = extent(f.r).local;
    w.r_positions = shard_of(extent(f.r));
    w.r_mask_step = mask_steps[static_cast<size_t>(f.r)];
  }
  for (const auto& [which, view, strides] : operands) {
    const auto stride = [&strides = strides](int8_t factor) {
      return strides[static_cast<size_t>(factor)];
    };
    // Each carries the queries or the keys, and one of the widths or, the log-sum-exp, none.
    w.matrices[which] = {view.data, stride(f.s) + stride(f.t), stride(f.e) + stride(f.v)};
    for (size_t d = 0; d < independent.size(); ++d) {
      w.loops.step[d][which] = stride(independent[d]);
    }
    if (f.r >= 0) w.r_steps[which] = stride(f.r);
    if (which == AttentionWork::kQ) w.dtype = view.dtype;
    if (which == AttentionWork::kLse) w.lse_dtype = view.dtype;
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

AttentionSizes sizes_of(const AttentionShape& s) {
  return {.b = s.b, .g = s.g, .r = s.r, .s = s.s, .t = s.t, .e = s.e, .v = s.v};
}

// Those kernels are made of instructions that only this generation has.
bool has_tensor_core_attention(const DeviceContext& device) {
  return device.tensor_core_attention && device.properties().major == 9;
}

}  // namespace

void attention_cuda(const KernelArgs& args) {
  using W = AttentionWork;
  const Signature& s = args.signature;
  const AttentionFactors factors = {s.inputs()[0], s.inputs()[2], s.outputs()[0]};
  const AttentionWork work = work_of(args, factors,
                                     {{W::kQ, args.in[0], in_strides(args, 0)},
                                      {W::kK, args.in[1], in_strides(args, 1)},
                                      {W::kV, args.in[2], in_strides(args, 2)},
                                      {W::kO, args.out[0], out_strides(args, 0)},
                                      {W::kLse, args.out[1], out_strides(args, 1)}},
                                     3);
  const auto stream = static_cast<cudaStream_t>(args.stream);
  DeviceContext& device = *args.device;
  const std::optional<AttentionShape> shape = shape_of(work, mask_of(args, factors), false);
  const auto ours = [&] {
    return has_tensor_core_attention(device) &&
           attend_on_tensor_cores(*shape, work, device.multiprocessors(), stream);
  };
  const auto cudnn = [&] {
    return device.cudnn_attention &&
           device.attention().attend(*shape, work, args.workspace, device, stream);
  };
  if (shape) {
    // Of the widest heads with many keys, cuDNN's forward is faster (benchmarks/gpu_attention.cc).
    const bool wide = shape->e == 128 && shape->t > 1024;
    if (wide ? cudnn() || ours() : ours() || cudnn()) return;
  }
  attend(work, stream);
}

void attention_backward_cuda(const KernelArgs& args) {
  using W = AttentionWork;
  const Signature& s = args.signature;
  const AttentionFactors factors = {s.inputs()[1], s.inputs()[3], s.inputs()[4]};
  AttentionWork work = work_of(args, factors,
                               {{W::kDo, args.in[0], in_strides(args, 0)},
                                {W::kQ, args.in[1], in_strides(args, 1)},
                                {W::kK, args.in[2], in_strides(args, 2)},
                                {W::kV, args.in[3], in_strides(args, 3)},
                                {W::kO, args.in[4], in_strides(args, 4)},
                                {W::kLse, args.in[5], in_strides(args, 5)},
                                {W::kDq, args.out[0], out_strides(args, 0)},
                                {W::kDk, args.out[1], out_strides(args, 1)},
                                {W::kDv, args.out[2], out_strides(args, 2)}},
                               6);
  const auto stream = static_cast<cudaStream_t>(args.stream);
  DeviceContext& device = *args.device;
  std::optional<AttentionShape> shape = shape_of(work, mask_of(args, factors), true);
  const bool sums = args.out.size() > 3;
  if (shape && has_tensor_core_attention(device)) {
    const AttentionSizes n = sizes_of(*shape);
    float* const kept =
        sums && keeps_attention_sums(n)
            ? reinterpret_cast<float*>(static_cast<char*>(args.workspace) + attention_sums_at(n))
            : nullptr;
    if (attend_backward_on_tensor_cores(*shape, work, args.workspace, kept,
                                        device.multiprocessors(), stream)) {
      if (kept != nullptr) {
        add_attention_sums(kept, attention_sum_parts(n), n.g * n.e, args.out[3], stream);
      } else if (sums) {
        sum_attention_results(args, factors);
      }
      return;
    }
  }
  if (shape) shape->deterministic = device.deterministic_attention;
  if (!(shape && device.cudnn_attention &&
        device.attention().attend(*shape, work, args.workspace, device, stream))) {
    work.delta = args.workspace;
    attend_backward(work, stream);
  }
  if (sums) sum_attention_results(args, factors);
}

}  // namespace cleave
