// Rows of tokens moved into numbered slots of buffers, and back:
//
//   dispatch  x "bsd", slots "bsk" -> y "ebcd": row s of group b into slot slots[b, s, k]
//   collect   y, slots -> x: each token's rows added up; the transpose of dispatch
//   combine   y, slots, weights "bsk" -> x: the same, each row times its weight
//
// The factors that only the buffers have (e and c here, any number of them) together number a
// group's slots, the outermost first; a shard of them keeps its own slots. Slot -1 is nowhere: a
// token dropped. Two rows in one slot would add up.
#include <algorithm>

#include "kernels/cuda/workspace.h"
#include "kernels/cuda_kernel.h"
#include "kernels/lanes.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"
#include "kernels/parallel.h"
#include "kernels/rows.h"
#include "kernels/shard_index.h"

namespace cleave {

void dispatch_cuda(const KernelArgs&);  // cuda/dispatch.cu
void collect_cuda(const KernelArgs&);
void combine_cuda(const KernelArgs&);
void combine_backward_cuda(const KernelArgs&);

namespace {

std::vector<TensorType> infer_moved(const OpCall& call) {
  expect_types(call, "xi");
  return infer_from_factors(call);
}

std::vector<TensorType> infer_combine(const OpCall& call) {
  expect_types(call, "xix");
  return infer_from_factors(call);
}

std::vector<TensorType> infer_combine_backward(const OpCall& call) {
  expect_types(call, "xxix");
  return infer_from_factors(call);
}

// --- Costs: rows that move, whatever the number of slots that they might move to -----------------

// How many rows of these buffers can come from, or go to, tokens with these slots.
double moved_rows(const TensorType& buffers, const TensorType& slots) {
  return static_cast<double>(
      std::min(numel(buffers.shape) / buffers.shape.back(), numel(slots.shape)));
}

double moved_bytes(const TensorType& buffers, const TensorType& slots) {
  return moved_rows(buffers, slots) *
             static_cast<double>(buffers.shape.back() * size_of(buffers.dtype)) +
         static_cast<double>(numel(slots.shape) * size_of(slots.dtype));
}

double bytes_of(const TensorType& t) {
  return static_cast<double>(numel(t.shape) * size_of(t.dtype));
}

double dispatch_bytes(const OpCall& call, std::span<const TensorType> out) {
  return moved_bytes(out[0], call.in[1]) + bytes_of(out[0]);
}

double collect_bytes(const OpCall& call, std::span<const TensorType> out) {
  return moved_bytes(call.in[0], call.in[1]) + bytes_of(out[0]);
}

double combine_backward_bytes(const OpCall& call, std::span<const TensorType> out) {
  return 2 * moved_bytes(call.in[1], call.in[2]) + bytes_of(call.in[0]) + bytes_of(out[0]);
}

// How many elements move.
double moved(const TensorType& buffers, const TensorType& slots) {
  return moved_rows(buffers, slots) * static_cast<double>(buffers.shape.back());
}
double dispatch_flops(const OpCall& call) { return moved(infer_moved(call)[0], call.in[1]); }
double collect_flops(const OpCall& call) { return moved(call.in[0], call.in[1]); }
double combine_flops(const OpCall& call) { return 2 * moved(call.in[0], call.in[1]); }
double combine_backward_flops(const OpCall& call) { return 4 * moved(call.in[1], call.in[2]); }

// --- Kernels -------------------------------------------------------------------------------------

// Where in this shard's buffers each slot of a group lies.
class SlotOffsets {
 public:
  // `strides`: of the buffers, one a factor.
  SlotOffsets(const KernelArgs& args, const std::vector<int8_t>& slot_factors,
              const Shape& strides) {
    offsets_ = {0};
    for (const int8_t factor : slot_factors) {
      const Extent& extent = args.extents[static_cast<size_t>(factor)];
      std::vector<int64_t> inner;
      for (const int64_t outer : offsets_) {
        for (int64_t p = 0; p < extent.global; ++p) {
          const int64_t own = outer < 0 ? -1 : local_index(extent, p);
          inner.push_back(own < 0 ? -1 : outer + own * strides[static_cast<size_t>(factor)]);
        }
      }
      offsets_ = std::move(inner);
    }
  }
  // From the group's first element; -1 when another shard has the slot, or nobody.
  int64_t operator[](int32_t slot) const {
    if (slot == -1) return -1;
    if (slot < 0 || slot >= std::ssize(offsets_)) refuse(slot);
    return offsets_[static_cast<size_t>(slot)];
  }

 private:
  [[gnu::noinline]] void refuse(int32_t slot) const {
    fail("slot {} is not one of {}", slot, offsets_.size());
  }

  std::vector<int64_t> offsets_;
};

// The factors of a call by their role.
struct Roles {
  std::vector<int8_t> group;   // of all operands
  std::vector<int8_t> token;   // of the tokens and their slots
  std::vector<int8_t> choice;  // of the slots only
  std::vector<int8_t> slot;    // of the buffers only
  int width;                   // of the tokens and the buffers, the last of both

  Roles(const OperandDims& tokens, const OperandDims& buffers, const OperandDims& slots) {
    width = tokens.back()[0];
    for (const int8_t f : factors_of(slots)) {
      const bool of_tokens = Signature::carries(tokens, f);
      const bool of_buffers = Signature::carries(buffers, f);
      (of_buffers ? group : of_tokens ? token : choice).push_back(f);
    }
    for (const int8_t f : factors_of(buffers)) {
      if (f != width && !Signature::carries(slots, f)) slot.push_back(f);
    }
  }
};

// The slots of every token's choices, and their weights when there are some.
struct Choices {
  const int32_t* slots;
  Shape slot_strides;
  const void* weights;  // null: all 1
  Shape weight_strides;
};

// A row is moved in pieces of so many elements by one thread.
constexpr int64_t kWidthPiece = 1024;

// y[slot] = sum of x[token], times its weight, for buffers that may start uninitialised.
template <class T>
void scatter_rows(const KernelArgs& args, const Roles& roles, const RowInput<T>& x,
                  const Choices& choices, const RowOutput<T>& y) {
  const int64_t width = args.extents[static_cast<size_t>(roles.width)].local;
  const int64_t pieces = std::max<int64_t>(1, (width + kWidthPiece - 1) / kWidthPiece);
  const SlotOffsets offsets(args, roles.slot, y.strides());
  std::vector<int8_t> moved = roles.token;
  moved.insert(moved.end(), roles.choice.begin(), roles.choice.end());
  const std::array<Shape, 4> strides = {x.strides(), y.strides(), choices.slot_strides,
                                        choices.weight_strides};
  const auto groups = nest_over<4>(args, roles.group, strides);
  const auto rows = nest_over<4>(args, moved, strides);
  const auto slots = nest_over<1>(args, roles.slot, {y.strides()});
  const T* const weights = static_cast<const T*>(choices.weights);
  run_tasks(args, groups.count() * pieces, [&](int64_t task, int) {
    const auto base = groups.offsets_of(task / pieces);
    const int64_t first = task % pieces * kWidthPiece;
    const int64_t n = std::min(kWidthPiece, width - first);
    T* const to = y.data() + base[1] + first;
    const T* const from = x.data() + base[0] + first;
    widest([&] {
      for_each_element(slots, [&](const auto& at) { std::fill_n(to + at[0], n, T{0}); });
      for_each_element(rows, [&](const auto& at) {
        const int64_t offset = offsets[choices.slots[base[2] + at[2]]];
        if (offset < 0) return;
        const T weight = weights == nullptr ? T{1} : weights[base[3] + at[3]];
        const T* __restrict row = from + at[0];
        T* __restrict slot = to + offset;
        for (int64_t i = 0; i < n; ++i) slot[i] += weight * row[i];
      });
    });
  });
}

// x[token] = sum of y[slot], times its weight.
template <class T>
void gather_rows(const KernelArgs& args, const Roles& roles, const RowInput<T>& y,
                 const Choices& choices, const RowOutput<T>& x) {
  const int64_t width = args.extents[static_cast<size_t>(roles.width)].local;
  const SlotOffsets offsets(args, roles.slot, y.strides());
  std::vector<int8_t> tokens = roles.group;
  tokens.insert(tokens.end(), roles.token.begin(), roles.token.end());
  const auto rows = nest_over<4>(
      args, tokens, {x.strides(), y.strides(), choices.slot_strides, choices.weight_strides});
  const auto each =
      nest_over<2>(args, roles.choice, {choices.slot_strides, choices.weight_strides});
  const T* const weights = static_cast<const T*>(choices.weights);
  parallel_elements(args, rows, width, [&](const auto& at) {
    T* __restrict to = x.data() + at[0];
    std::fill_n(to, width, T{0});
    for_each_element(each, [&](const auto& choice) {
      const int64_t offset = offsets[choices.slots[at[2] + choice[0]]];
      if (offset < 0) return;
      const T weight = weights == nullptr ? T{1} : weights[at[3] + choice[1]];
      const T* __restrict from = y.data() + at[1] + offset;
      for (int64_t i = 0; i < width; ++i) to[i] += weight * from[i];
    });
  });
}

// dweights[token, choice] = dx[token] . y[slot].
template <class T>
void slot_products(const KernelArgs& args, const Roles& roles, const RowInput<T>& dx,
                   const RowInput<T>& y, const Choices& choices, T* dweights,
                   const Shape& dweight_strides) {
  const int64_t width = args.extents[static_cast<size_t>(roles.width)].local;
  const SlotOffsets offsets(args, roles.slot, y.strides());
  const auto each =
      nest_over<4>(args, factors_of(args.signature.outputs()[1]),
                   {dx.strides(), y.strides(), choices.slot_strides, dweight_strides});
  parallel_elements(args, each, width, [&](const auto& at) {
    const int64_t offset = offsets[choices.slots[at[2]]];
    const T* a = dx.data() + at[0];
    const T* b = y.data() + at[1] + offset;
    dweights[at[3]] =
        offset < 0 ? T{0} : lane_sum<T>(width, [=](int64_t i) { return a[i] * b[i]; });
  });
}

void dispatch_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const Signature& s = args.signature;
    const Roles roles(s.inputs()[0], s.outputs()[0], s.inputs()[1]);
    const RowInput<T> x(args, 0, roles.width);
    const RowOutput<T> y(args, 0, roles.width);
    const Shape strides = in_strides(args, 1);
    scatter_rows<T>(args, roles, x, {args.in[1].as<const int32_t>(), strides, nullptr, strides}, y);
  });
}

// collect, and combine with weights.
void gather_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const Signature& s = args.signature;
    const Roles roles(s.outputs()[0], s.inputs()[0], s.inputs()[1]);
    const RowInput<T> y(args, 0, roles.width);
    const RowOutput<T> x(args, 0, roles.width);
    const bool weighted = args.in.size() == 3;
    gather_rows<T>(args, roles, y,
                   {args.in[1].as<const int32_t>(), in_strides(args, 1),
                    weighted ? args.in[2].data : nullptr, in_strides(args, weighted ? 2 : 1)},
                   x);
  });
}

void combine_backward_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const Signature& s = args.signature;
    const Roles roles(s.inputs()[0], s.inputs()[1], s.inputs()[2]);
    const RowInput<T> dx(args, 0, roles.width), y(args, 1, roles.width);
    const RowOutput<T> dy(args, 0, roles.width);
    const Choices choices = {args.in[2].as<const int32_t>(), in_strides(args, 2), args.in[3].data,
                             in_strides(args, 3)};
    scatter_rows<T>(args, roles, dx, choices, dy);
    slot_products<T>(args, roles, dx, y, choices, args.out[1].as<T>(), out_strides(args, 1));
  });
}

// --- Gradients -----------------------------------------------------------------------------------

// The sizes of the factors that only these buffers have.
Attrs slot_sizes(const GradContext& g, const OperandDims& buffers, const OperandDims& slots,
                 const OperandDims& tokens) {
  Attrs attrs;
  for (const int8_t f : factors_of(buffers)) {
    if (Signature::carries(slots, f) || Signature::carries(tokens, f)) continue;
    const char letter = g.signature().factors()[static_cast<size_t>(f)].letter;
    attrs.set(std::string_view(&letter, 1), g.extent(letter));
  }
  return attrs;
}

std::vector<Value> dispatch_grad(GradContext& g) {
  const Signature& s = g.signature();
  return {g.add1(ops::collect, {g.grad(0), g.in(1)},
                 fmt::format("{},{}->{}{}", s.output_text(0), s.input_text(1), s.input_text(0),
                             indexed_notes(s))),
          kNoValue};
}

std::vector<Value> collect_grad(GradContext& g) {
  const Signature& s = g.signature();
  return {g.add1(ops::dispatch, {g.grad(0), g.in(1)},
                 fmt::format("{},{}->{}{}", s.output_text(0), s.input_text(1), s.input_text(0),
                             indexed_notes(s)),
                 slot_sizes(g, s.inputs()[0], s.inputs()[1], s.outputs()[0])),
          kNoValue};
}

std::vector<Value> combine_grad(GradContext& g) {
  const Signature& s = g.signature();
  const std::string y = s.input_text(0), slots = s.input_text(1), x = s.output_text(0);
  const std::vector<Value> grads =
      g.add(ops::combine_backward, {g.grad(0), g.in(0), g.in(1), g.in(2)},
            fmt::format("{0},{1},{2},{2}->{1},{2}{3}", x, y, slots, indexed_notes(s)));
  return {grads[0], kNoValue, grads[1]};
}

}  // namespace

constinit const OpDef ops::dispatch = {
    .name = "dispatch",
    .factors = "bsd,bsk->ebcd|e:indexed,c:indexed",  // e and c are attributes
    .infer = infer_moved,
    .flops = dispatch_flops,
    .bytes = dispatch_bytes,
    .grad = dispatch_grad,
    .linear = true,
    .cpu = dispatch_cpu,
    .cuda = cuda_kernel<dispatch_cuda>(),
    .cuda_workspace = dispatch_workspace,
};

constinit const OpDef ops::collect = {
    .name = "collect",
    .factors = "ebcd,bsk->bsd|e:indexed,c:indexed",
    .infer = infer_moved,
    .flops = collect_flops,
    .bytes = collect_bytes,
    .grad = collect_grad,
    .linear = true,
    .cpu = gather_cpu,
    .cuda = cuda_kernel<collect_cuda>(),
};

constinit const OpDef ops::combine = {
    .name = "combine",
    .factors = "ebcd,bsk,bsk->bsd|e:indexed,c:indexed",
    .infer = infer_combine,
    .flops = combine_flops,
    .bytes = collect_bytes,
    .grad = combine_grad,
    .cpu = gather_cpu,
    .cuda = cuda_kernel<combine_cuda>(),
};

constinit const OpDef ops::combine_backward = {
    .name = "combine_backward",
    .factors = "bsd,ebcd,bsk,bsk->ebcd,bsk|e:indexed,c:indexed",
    .infer = infer_combine_backward,
    .flops = combine_backward_flops,
    .bytes = combine_backward_bytes,
    .cpu = combine_backward_cpu,
    .cuda = cuda_kernel<combine_backward_cuda>(),
    .cuda_workspace = dispatch_workspace,
};

}  // namespace cleave
