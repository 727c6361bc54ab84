// Rows of a table picked by index. A shard of the rows finds only its own, and zeros elsewhere: the
// shards' results add up.
#include <algorithm>

#include "kernels/cuda/workspace.h"
#include "kernels/cuda_kernel.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"
#include "kernels/parallel.h"
#include "kernels/rows.h"
#include "kernels/shard_index.h"

namespace cleave {

void embedding_cuda(const KernelArgs&);  // cuda/embedding.cu
void embedding_backward_cuda(const KernelArgs&);

namespace {

std::vector<TensorType> infer_embedding(const OpCall& call) {
  expect_types(call, "xi");
  return infer_from_factors(call);
}

// The table's rows that are read, not the table.
double embedding_bytes(const OpCall& call, std::span<const TensorType> out) {
  const double rows = static_cast<double>(numel(out[0].shape) * size_of(out[0].dtype));
  return 2 * rows + static_cast<double>(numel(call.in[1].shape) * size_of(DType::kI32));
}

// The shard's row for an id; -1 when another shard has it.
[[gnu::noinline]] int64_t row_of(const Extent& rows, int32_t id) {
  if (id < 0 || id >= rows.global) {
    fail("embedding: index {} is outside the table of {} rows", id, rows.global);
  }
  return local_index(rows, id);
}

void embedding_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const OperandDims& table_dims = args.signature.inputs()[0];
    const size_t v = static_cast<size_t>(table_dims[0][0]);
    const int d = table_dims[1][0];
    const int64_t width = args.extents[static_cast<size_t>(d)].local;
    const RowInput<T> table(args, 0, d);
    const RowOutput<T> out(args, 0, d);
    const int32_t* ids = args.in[1].as<const int32_t>();
    const auto tokens = nest_over<2>(args, factors_without(args.signature.outputs()[0], d),
                                     {in_strides(args, 1), out.strides()});
    parallel_elements(args, tokens, width, [&](const auto& at) {
      const int64_t row = row_of(args.extents[v], ids[at[0]]);
      T* to = out.data() + at[1];
      if (row < 0) {
        std::fill(to, to + width, T{0});
      } else {
        const T* from = table.data() + row * table.strides()[v];
        std::copy(from, from + width, to);
      }
    });
  });
}

// Adds the gradients of the tokens to the rows of a zeroed table, one token after the other.
void embedding_backward_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const OperandDims& table_dims = args.signature.outputs()[0];
    const size_t v = static_cast<size_t>(table_dims[0][0]);
    const int d = table_dims[1][0];
    const int64_t width = args.extents[static_cast<size_t>(d)].local;
    const RowInput<T> dy(args, 0, d);
    const RowOutput<T> dtable(args, 0, d);
    const int32_t* ids = args.in[1].as<const int32_t>();
    const auto tokens = nest_over<2>(args, factors_of(args.signature.inputs()[1]),
                                     {in_strides(args, 1), dy.strides()});
    const int64_t rows = args.extents[v].local, stride = dtable.strides()[v];
    std::vector<std::array<int64_t, 2>> found;  // for each token that is here: row, offset in dy
    for_each_element(tokens, [&](const auto& at) {
      const int64_t row = row_of(args.extents[v], ids[at[0]]);
      if (row >= 0) found.push_back({row, at[1]});
    });
    // A piece has some of the table's rows and goes through all tokens.
    const int64_t piece = std::max(rows_a_piece(width, 65536), (rows + 63) / 64);
    parallel_for(args, rows, piece, [&](int64_t begin, int64_t end, int) {
      widest([&] {
        for (int64_t row = begin; row < end; ++row) {
          std::fill_n(dtable.data() + row * stride, width, T{0});
        }
        for (const auto& [row, at] : found) {
          if (row < begin || row >= end) continue;
          const T* __restrict from = dy.data() + at;
          T* __restrict to = dtable.data() + row * stride;
          for (int64_t i = 0; i < width; ++i) to[i] += from[i];
        }
      });
    });
  });
}

std::vector<Value> embedding_grad(GradContext& g) {
  const Signature& s = g.signature();
  const char v = s.factors()[static_cast<size_t>(s.inputs()[0][0][0])].letter;
  return {g.add1(ops::embedding_backward, {g.grad(0), g.in(1)},
                 fmt::format("{},{}->{}{}", s.output_text(0), s.input_text(1), s.input_text(0),
                             indexed_notes(s)),
                 size_attr(v, g.extent(v))),
          kNoValue};
}

}  // namespace

constinit const OpDef ops::embedding = {
    .name = "embedding",
    .factors = "vd,...->...d|v:indexed",
    .infer = infer_embedding,
    .flops = no_flops,
    .bytes = embedding_bytes,
    .grad = embedding_grad,
    .linear = true,
    .cpu = embedding_cpu,
    .cuda = cuda_kernel<embedding_cuda>(),
};

constinit const OpDef ops::embedding_backward = {
    .name = "embedding_backward",
    .factors = "bsd,bs->vd|v:indexed",
    .infer = infer_embedding,
    .flops = flops_each<1>,
    .linear = true,
    .cpu = embedding_backward_cpu,
    .cuda = cuda_kernel<embedding_backward_cuda>(),
    .cuda_workspace = embedding_backward_workspace,
};

}  // namespace cleave
