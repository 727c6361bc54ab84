// The k largest of a row, the largest first, and where they are: what a router chooses. Ties go to
// the lower index, so that the choice is the same everywhere.
#include <algorithm>
#include <cmath>

#include "kernels/cuda_kernel.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"
#include "kernels/parallel.h"
#include "kernels/rows.h"
#include "kernels/shard_index.h"

namespace cleave {

void top_k_cuda(const KernelArgs&);  // cuda/top_k.cu
void top_k_backward_cuda(const KernelArgs&);

namespace {

std::vector<TensorType> infer_top_k(const OpCall& call) {
  expect_types(call, "x");
  const Signature& s = call.signature;
  const int64_t all = call.in[0].shape.back();
  const int64_t k = call.extents[static_cast<size_t>(s.outputs()[0].back()[0])];
  if (k > all) fail("top_k: {} of {} cannot be chosen", k, all);
  return {output_type(call, 0, call.in[0].dtype), output_type(call, 1, DType::kI32)};
}

std::vector<TensorType> infer_top_k_backward(const OpCall& call) {
  expect_types(call, "xi");
  return infer_from_factors(call);
}

// Whether x comes before y: the larger does, and what is not a number before all else, so that it
// is seen.
template <class T>
bool before(T x, T y) {
  return x > y || (std::isnan(x) && !std::isnan(y));
}

void top_k_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const OperandDims& in = args.signature.inputs()[0];
    const OperandDims& out = args.signature.outputs()[0];
    const int row = in.back()[0], chosen = out.back()[0];
    const int64_t n = args.extents[static_cast<size_t>(row)].local;
    const int64_t k = args.extents[static_cast<size_t>(chosen)].local;
    const RowInput<T> x(args, 0, row);
    const Shape value_strides = out_strides(args, 0), index_strides = out_strides(args, 1);
    const int64_t value_step = value_strides[static_cast<size_t>(chosen)];
    const int64_t index_step = index_strides[static_cast<size_t>(chosen)];
    T* const values = args.out[0].as<T>();
    int32_t* const indices = args.out[1].as<int32_t>();
    const auto rows =
        nest_over<3>(args, factors_without(in, row), {x.strides(), value_strides, index_strides});
    parallel_for(args, rows.count(), rows_a_piece(n), [&](int64_t begin, int64_t end, int) {
      for_each_element(rows, begin, end, [&](const auto& at) {
        const T* from = x.data() + at[0];
        T* value = values + at[1];
        int32_t* index = indices + at[2];
        int64_t found = 0;  // sorted, in the outputs
        for (int64_t i = 0; i < n; ++i) {
          if (found == k && !before(from[i], value[(k - 1) * value_step])) continue;
          int64_t place = found < k ? found++ : k - 1;
          for (; place > 0 && before(from[i], value[(place - 1) * value_step]); --place) {
            value[place * value_step] = value[(place - 1) * value_step];
            index[place * index_step] = index[(place - 1) * index_step];
          }
          value[place * value_step] = from[i];
          index[place * index_step] = static_cast<int32_t>(i);
        }
      });
    });
  });
}

// Adds what came back for each choice to the number that was chosen.
void top_k_backward_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const OperandDims& chosen_dims = args.signature.inputs()[1];
    const size_t e = static_cast<size_t>(args.signature.outputs()[0].back()[0]);
    const size_t k = static_cast<size_t>(chosen_dims.back()[0]);
    const Extent& all = args.extents[e];
    const int64_t n = all.local, chosen = args.extents[k].local;
    const RowOutput<T> dx(args, 0, static_cast<int>(e));
    const Shape dy_strides = in_strides(args, 0), index_strides = in_strides(args, 1);
    const T* const dy = args.in[0].as<const T>();
    const int32_t* const indices = args.in[1].as<const int32_t>();
    const auto rows = nest_over<3>(args, factors_without(chosen_dims, static_cast<int>(k)),
                                   {dx.strides(), dy_strides, index_strides});
    parallel_for(args, rows.count(), rows_a_piece(n), [&](int64_t begin, int64_t end, int) {
      for_each_element(rows, begin, end, [&](const auto& at) {
        T* to = dx.data() + at[0];
        std::fill(to, to + n, T{0});
        for (int64_t j = 0; j < chosen; ++j) {
          const int32_t index = indices[at[2] + j * index_strides[k]];
          if (index < 0 || index >= all.global) {
            fail("top_k: index {} is outside a row of {}", index, all.global);
          }
          const int64_t own = local_index(all, index);
          if (own >= 0) to[own] += dy[at[1] + j * dy_strides[k]];
        }
      });
    });
  });
}

std::vector<Value> top_k_grad(GradContext& g) {
  const Signature& s = g.signature();
  const char row = s.input_text(0).back(), chosen = s.output_text(0).back();
  const std::string dx = with_letter(s.input_text(0), row, lower(row));
  const std::string dy = with_letter(s.output_text(0), chosen, lower(chosen));
  return {g.add1(ops::top_k_backward, {g.grad(0), g.out(1)},
                 fmt::format("{0},{0}->{1}|{2}:indexed", dy, dx, lower(row)),
                 size_attr(lower(row), g.extent(row)))};
}

}  // namespace

constinit const OpDef ops::top_k = {
    .name = "top_k",
    .factors = "...E->...K,...K",  // K is an attribute
    .infer = infer_top_k,
    .flops = flops_each<2>,
    .grad = top_k_grad,
    .cpu = top_k_cpu,
    .cuda = cuda_kernel<top_k_cuda>(),
};

constinit const OpDef ops::top_k_backward = {
    .name = "top_k_backward",
    .factors = "bsk,bsk->bse|e:indexed",
    .infer = infer_top_k_backward,
    .flops = flops_each<1>,
    .linear = true,
    .cpu = top_k_backward_cpu,
    .cuda = cuda_kernel<top_k_backward_cuda>(),
};

}  // namespace cleave
