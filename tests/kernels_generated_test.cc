// Generated kernels compile, whatever the operands are; that needs no GPU.
#include <gtest/gtest.h>

#ifdef CLEAVE_CUDA
#include <fmt/format.h>

#include "kernels/cuda/generated.h"
#include "kernels/ops.h"
#endif

namespace cleave {
namespace {

#ifdef CLEAVE_CUDA

// As many operands as the widest op of a model has, of every type, broadcast and strided.
TEST(Generated, ManyOperandsCompile) {
  ElementLoops loops;
  loops.sizes = {6, 4096};
  loops.element = "0";
  const DType types[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kI32};
  for (size_t i = 0; i < 150; ++i) {
    loops.in.push_back({types[i % 4], nullptr, {i % 3 == 0 ? 0 : 8192, i % 5 == 0 ? 0 : 1}});
    loops.element += " + " + operand_name(i);
  }
  loops.out = {{DType::kF32, nullptr, {4096, 1}}};
  loops.merge();
  EXPECT_FALSE(compiled(element_kernel(loops).text, "sm_90").empty());
}

class GeneratedOp : public ::testing::TestWithParam<const OpDef*> {};

TEST_P(GeneratedOp, CompilesInEveryType) {
  Attrs attrs;
  attrs.set("value", 1.5);
  size_t outputs = 1;
  for (const char c : GetParam()->element) outputs += c == ';';
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16, DType::kF16}) {
    ElementLoops loops;
    loops.sizes = {48};
    const bool i32 = GetParam()->name == "not_equal";
    for (size_t i = 0; i < 3; ++i) loops.in.push_back({i32 ? DType::kI32 : dtype, nullptr, {1}});
    for (size_t o = 0; o < outputs; ++o) loops.out.push_back({dtype, nullptr, {1}});
    loops.element = filled_in(GetParam()->element, attrs, dtype == DType::kF64);
    EXPECT_FALSE(compiled(element_kernel(loops).text, "sm_90").empty());
  }
}

std::vector<const OpDef*> generated_ops() {
  std::vector<const OpDef*> found;
  for (const OpDef* op : ops::all()) {
    if (!op->element.empty()) found.push_back(op);
  }
  return found;
}

INSTANTIATE_TEST_SUITE_P(Kernels, GeneratedOp, ::testing::ValuesIn(generated_ops()),
                         [](const auto& info) { return std::string(info.param->name); });

#else

TEST(Generated, NeedABuildWithCuda) { GTEST_SKIP() << "built without CUDA"; }

#endif

}  // namespace
}  // namespace cleave
