// From the experts that tokens chose to places in the experts' buffers. Every group of tokens (the
// leading dimensions) has buffers of its own; within a group, earlier tokens go first, and of one
// token's choices the first, so that nothing depends on later tokens.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda_kernel.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"
#include "kernels/parallel.h"
#include "kernels/shard_index.h"

namespace cleave {

void capacity_slots_cuda(const KernelArgs&);  // cuda/slots.cu
void sorted_slots_cuda(const KernelArgs&);
void histogram_cuda(const KernelArgs&);

namespace {

void expect_choices(const OpCall& call) {
  if (call.in.size() != 1 || call.in[0].dtype != DType::kI32 || call.in[0].shape.size() < 2) {
    fail("the operand holds i32 numbers of experts, [..., tokens, choices]");
  }
}

// The attribute `experts`, which together with what each has must be countable.
int64_t experts_of(const OpCall& call, int64_t each) {
  const int64_t experts = call.attrs.integer("experts");
  if (experts < 1 || each < 1 || experts > INT32_MAX / each) {
    fail("{} experts with {} slots each cannot be numbered", experts, each);
  }
  return experts;
}

int32_t checked_expert(int32_t expert, int64_t experts) {
  if (expert < 0 || expert >= experts) fail("expert {} is not one of {}", expert, experts);
  return expert;
}

// The choices of every group in order: calls fn(group, choices) with `choices` calling its own
// function for each choice, with its offsets in the input and in output 0.
template <class Fn>
void for_each_group(const KernelArgs& args, const Fn& fn) {
  const OperandDims& dims = args.signature.inputs()[0];
  std::vector<int8_t> factors = factors_of(dims);
  const std::vector<int8_t> inner(factors.end() - 2, factors.end());
  factors.resize(factors.size() - 2);
  const std::array<Shape, 2> strides = {in_strides(args, 0), out_strides(args, 0)};
  const auto groups = nest_over<2>(args, factors, strides);
  const auto choices = nest_over<2>(args, inner, strides);
  run_tasks(args, groups.count(), [&](int64_t group, int) {
    const auto base = groups.offsets_of(group);
    fn(group, [&](auto&& each) {
      for_each_element(choices, [&](const auto& at) { each(base[0] + at[0], base[1] + at[1]); });
    });
  });
}

// --- With capacity -------------------------------------------------------------------------------

std::vector<TensorType> infer_capacity_slots(const OpCall& call) {
  expect_choices(call);
  experts_of(call, call.attrs.integer("capacity"));
  return {output_type(call, 0, DType::kI32)};
}

void capacity_slots_cpu(const KernelArgs& args) {
  const int64_t experts = args.attrs.integer("experts"), capacity = args.attrs.integer("capacity");
  const int32_t* const chosen = args.in[0].as<const int32_t>();
  int32_t* const slots = args.out[0].as<int32_t>();
  for_each_group(args, [&](int64_t, const auto& choices) {
    std::vector<int64_t> taken(static_cast<size_t>(experts), 0);
    choices([&](int64_t from, int64_t to) {
      const int32_t expert = checked_expert(chosen[from], experts);
      int64_t& place = taken[static_cast<size_t>(expert)];
      slots[to] = place < capacity ? static_cast<int32_t>(expert * capacity + place) : -1;
      ++place;
    });
  });
}

// --- Without -------------------------------------------------------------------------------------

std::vector<TensorType> infer_sorted_slots(const OpCall& call) {
  expect_choices(call);
  experts_of(call, 1);
  const Shape& in = call.in[0].shape;
  const int64_t rows = call.extents[static_cast<size_t>(call.signature.outputs()[1].back()[0])];
  if (rows != in[in.size() - 2] * in.back()) {
    fail("sorted_slots: {} rows for {} tokens with {} choices", rows, in[in.size() - 2], in.back());
  }
  return {output_type(call, 0, DType::kI32), output_type(call, 1, DType::kI32)};
}

void sorted_slots_cpu(const KernelArgs& args) {
  const int64_t experts = args.attrs.integer("experts");
  const int32_t* const chosen = args.in[0].as<const int32_t>();
  int32_t* const slots = args.out[0].as<int32_t>();
  int32_t* const sorted = args.out[1].as<int32_t>();
  const OperandDims& dims = args.signature.outputs()[1];
  std::vector<int8_t> factors = factors_of(dims);
  const size_t row = static_cast<size_t>(factors.back());
  factors.pop_back();
  const Shape strides = out_strides(args, 1);
  const auto groups = nest_over<1>(args, factors, {strides});
  for_each_group(args, [&](int64_t group, const auto& choices) {
    std::vector<int64_t> next(static_cast<size_t>(experts) + 1, 0);  // by expert: its next row
    choices([&](int64_t from, int64_t) {
      ++next[static_cast<size_t>(checked_expert(chosen[from], experts)) + 1];
    });
    for (size_t e = 1; e < next.size(); ++e) next[e] += next[e - 1];
    const int64_t base = groups.offsets_of(group)[0];
    choices([&](int64_t from, int64_t to) {
      const int64_t place = next[static_cast<size_t>(chosen[from])]++;
      slots[to] = static_cast<int32_t>(place);
      sorted[base + place * strides[row]] = chosen[from];
    });
  });
}

// --- How many ------------------------------------------------------------------------------------

std::vector<TensorType> infer_histogram(const OpCall& call) {
  if (call.in.size() != 1 || call.in[0].dtype != DType::kI32) {
    fail("histogram: the operand holds i32 numbers of classes");
  }
  return {output_type(call, 0, dtype_named(call.attrs.text("dtype")))};
}

// out[..., e]: how often e occurs in the dimensions that the output lacks.
void histogram_cpu(const KernelArgs& args) {
  with_float(args.out[0].dtype, [&]<class T>(T) {
    const std::vector<int8_t> in = factors_of(args.signature.inputs()[0]);
    std::vector<int8_t> kept = factors_of(args.signature.outputs()[0]), counted;
    const size_t e = static_cast<size_t>(kept.back());
    kept.pop_back();
    for (const int8_t f : in) {
      if (std::find(kept.begin(), kept.end(), f) == kept.end()) counted.push_back(f);
    }
    const Extent& classes = args.extents[e];
    const Shape strides = out_strides(args, 0);
    const auto rows = nest_over<2>(args, kept, {in_strides(args, 0), strides});
    const auto each = nest_over<1>(args, counted, {in_strides(args, 0)});
    const int32_t* const numbers = args.in[0].as<const int32_t>();
    T* const out = args.out[0].as<T>();
    for_each_element(rows, [&](const auto& at) {
      for (int64_t i = 0; i < classes.local; ++i) out[at[1] + i * strides[e]] = T{0};
      for_each_element(each, [&](const auto& inner) {
        const int32_t number = numbers[at[0] + inner[0]];
        const bool exists = number >= 0 && number < classes.global;
        const int64_t own = exists ? local_index(classes, number) : -1;
        if (own >= 0) out[at[1] + own * strides[e]] += 1;
      });
    });
  });
}

}  // namespace

constinit const OpDef ops::capacity_slots = {
    .name = "capacity_slots",
    .factors = "...SK->...SK",
    .infer = infer_capacity_slots,
    .flops = flops_each<1>,
    .cpu = capacity_slots_cpu,
    .cuda = cuda_kernel<capacity_slots_cuda>(),
};

constinit const OpDef ops::sorted_slots = {
    .name = "sorted_slots",
    .factors = "...SK->...SK,...R",  // R = S * K is an attribute
    .infer = infer_sorted_slots,
    .flops = flops_each<2>,
    .cpu = sorted_slots_cpu,
    .cuda = cuda_kernel<sorted_slots_cuda>(),
};

constinit const OpDef ops::histogram = {
    .name = "histogram",
    .factors = "bsk->be|e:indexed",  // e is an attribute
    .infer = infer_histogram,
    .flops = flops_each<1>,
    .cpu = histogram_cpu,
    .cuda = cuda_kernel<histogram_cuda>(),
};

}  // namespace cleave
