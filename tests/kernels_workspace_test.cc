// What GPU kernels need as scratch memory, known in every build: the same numbers with a GPU
// toolkit and without.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/ops.h"

namespace cleave {
namespace {

// `strides`: of the operands, then the results; empty: not known.
int64_t workspace_of(const OpDef& op, std::string_view factors, Attrs attrs,
                     std::vector<TensorType> in, std::vector<TensorView> placed = {}) {
  const Signature& s = Signature::get(expand_factors(factors, in));
  const std::vector<int64_t> extents = solve_extents(s, attrs, in);
  EXPECT_NE(op.cuda_workspace, nullptr) << op.name;
  return op.cuda_workspace == nullptr ? -1 : op.cuda_workspace({s, extents, attrs, in, placed});
}

TensorType bf16(Shape shape) { return {DType::kBF16, std::move(shape)}; }
TensorType f32(Shape shape) { return {DType::kF32, std::move(shape)}; }

TEST(Workspace, OfNormsIsPartsOfColumns) {
  const TensorType x = bf16({8, 1024, 1536}), statistics = f32({8, 1024});
  EXPECT_EQ(workspace_of(ops::layer_norm_backward, "bsD,bsD,D,bs,bs->bsD,D,D", {},
                         {x, x, bf16({1536}), statistics, statistics}),
            132 * 2 * 1536 * 4);
  EXPECT_EQ(
      workspace_of(
          ops::rms_norm_backward, "sD,sD,D,s->sD,D", {},
          {{DType::kF64, {4, 8}}, {DType::kF64, {4, 8}}, {DType::kF64, {8}}, {DType::kF64, {4}}}),
      132 * 8 * 8);
}

Attrs causal() {
  Attrs attrs;
  attrs.set("causal", int64_t{1});
  attrs.set("scale", 0.125);
  return attrs;
}

int64_t backward_workspace(TensorType q, const TensorType& k, TensorType lse) {
  return workspace_of(
      ops::attention_backward,
      "bs(gr)V,bs(gr)E,btgE,btgV,bs(gr)V,bs(gr)->bs(gr)E,btgE,btgV|s:indexed,t:indexed", causal(),
      {q, q, k, k, q, std::move(lse)});
}

// Our own kernels on tensor cores keep two numbers of every query, up to whole blocks of 64.
TEST(Workspace, OfAttentionOnTensorCores) {
  EXPECT_EQ(backward_workspace(bf16({2, 100, 16, 96}), bf16({2, 100, 16, 96}), f32({2, 100, 16})),
            2 * (2 * 16) * 128 * 4);
  EXPECT_EQ(backward_workspace(bf16({1, 64, 8, 128}), bf16({1, 64, 2, 128}), f32({1, 64, 8})),
            2 * 8 * 64 * 4);
}

// And sums of the three gradients over every 64 rows, where the op has them.
TEST(Workspace, OfSumsOfAttention) {
  Attrs attrs = causal();
  attrs.set("sum", int64_t{1});
  attrs.set("X", int64_t{3});
  const TensorType q = bf16({2, 1000, 16, 64});
  EXPECT_EQ(workspace_of(ops::attention_backward,
                         "bs(gr)V,bs(gr)E,btgE,btgV,bs(gr)V,bs(gr)->bs(gr)E,btgE,btgV,(XgrE)"
                         "|s:indexed,t:indexed",
                         attrs, {q, q, q, q, q, f32({2, 1000, 16})}),
            2 * (2 * 16) * 1024 * 4 + 2 * 16 * 3 * 16 * 64 * 4);
}

// Against what cuDNN said that it wants, but for 256 bytes: the room is that, 1 MiB, and a copy of
// the log-sum-exps.
TEST(Workspace, OfAttentionHoldsWhatCudnnWants) {
  constexpr int64_t kRoom = 1 << 20;
  EXPECT_EQ(backward_workspace(bf16({1, 384, 4, 256}), bf16({1, 384, 4, 256}), f32({1, 384, 4})),
            1186048 - 256 + kRoom + 4 * 384 * 4);
  // Two query heads share a key head.
  EXPECT_EQ(backward_workspace(bf16({2, 256, 4, 160}), bf16({2, 256, 2, 160}), f32({2, 256, 4})),
            2367744 - 256 + kRoom + 2 * 4 * 256 * 4);
  // It rounds 300 up to no more than is counted.
  EXPECT_GE(backward_workspace(bf16({3, 300, 6, 80}), bf16({3, 300, 1, 80}), f32({3, 300, 6})),
            6173536 + 3 * 6 * 300 * 4);
  // Of f32, which is no matter for cuDNN: as on tensor cores.
  EXPECT_EQ(backward_workspace(f32({1, 64, 4, 32}), f32({1, 64, 4, 32}), f32({1, 64, 4})),
            2 * 4 * 64 * 4);
}

// A product's own 32 MiB, and copies of what does not lie as matrices.
TEST(Workspace, OfProductsHoldsCopies) {
  constexpr int64_t kProduct = 32 << 20;
  const std::vector<TensorType> in = {bf16({64, 32}), bf16({16, 32})};
  const auto view = [](const TensorType& t, Shape strides) {
    return TensorView{nullptr, t.dtype, t.shape, std::move(strides)};
  };
  const TensorType out = bf16({64, 16});
  EXPECT_EQ(workspace_of(ops::matmul, "mk,nk->mn", {}, in), kProduct);
  EXPECT_EQ(workspace_of(ops::matmul, "mk,nk->mn", {}, in,
                         {view(in[0], {32, 1}), view(in[1], {32, 1}), view(out, {16, 1})}),
            kProduct);
  // Every other column of the first; the second transposed, which is a matrix, too.
  EXPECT_EQ(workspace_of(ops::matmul, "mk,nk->mn", {}, in,
                         {view(in[0], {64, 2}), view(in[1], {1, 16}), view(out, {16, 1})}),
            kProduct + 64 * 32 * 2);
  // The result, too.
  EXPECT_EQ(workspace_of(ops::matmul, "mk,nk->mn", {}, in,
                         {view(in[0], {64, 2}), view(in[1], {1, 16}), view(out, {32, 2})}),
            kProduct + 64 * 32 * 2 + 64 * 16 * 2);
}

TEST(Workspace, OfTheRestIsAsItsKernelsCount) {
  EXPECT_EQ(workspace_of(ops::sum, "bsd->d", {}, {bf16({8, 1024, 1536})}), 264 * 2048);
  EXPECT_EQ(workspace_of(ops::sum, "ab->b", {}, {f32({2, 3})}), 6 * 16);
  EXPECT_EQ(workspace_of(ops::sum_squares, "ab->", {}, {f32({2, 3})}), 8);
  EXPECT_EQ(workspace_of(ops::sum_squares, "ab->", {}, {f32({129, 1024})}), 5 * 8);
  Attrs rows;
  rows.set("v", int64_t{100});
  EXPECT_EQ(workspace_of(ops::embedding_backward, "bsd,bs->vd|v:indexed", rows,
                         {bf16({2, 32, 16}), {DType::kI32, {2, 32}}}),
            4 * 256 + 512 + 2 * 2 * 16 * 4 + ((4 << 20) + 640 + 255) / 256 * 256);
}

}  // namespace
}  // namespace cleave
