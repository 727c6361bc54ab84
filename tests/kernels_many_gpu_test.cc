// Launchers for many applications at once: the bits of one launch after the other.
#include <gtest/gtest.h>

#include <cstring>

#include "kernels/ops.h"
#include "tests/support/gpu_checks.h"

#ifdef CLEAVE_CUDA
#include <cuda_runtime_api.h>

#include "graph/philox.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#endif

namespace cleave {
namespace {

#ifdef CLEAVE_CUDA

// Tensors in one block of the device's memory.
class Many {
 public:
  explicit Many(const OpDef& op) : op_(op) {}
  ~Many() { cudaFree(memory_); }
  Many(const Many&) = delete;
  Many& operator=(const Many&) = delete;

  // A dense tensor at the next multiple of `alignment` bytes.
  TensorView tensor(DType dtype, const Shape& shape, size_t alignment = 64) {
    const size_t at = (bytes_ + alignment - 1) / alignment * alignment;
    bytes_ = at + static_cast<size_t>(numel(shape) * size_of(dtype));
    return {reinterpret_cast<void*>(at), dtype, shape, contiguous_strides(shape)};
  }

  void add(std::string_view factors, Attrs attrs, std::vector<TensorView> in,
           std::vector<TensorView> out) {
    Application a{&Signature::get(factors), std::move(attrs), std::move(in), std::move(out), {}};
    std::vector<TensorType> types;
    for (const TensorView& v : a.in) types.push_back({v.dtype, v.shape});
    const std::vector<int64_t> sizes = solve_extents(*a.signature, a.attrs, types);
    for (const int64_t n : sizes) a.extents.push_back({.local = n, .global = n, .cuts = {}});
    const OpCall call{*a.signature, sizes, a.attrs, types};
    if (op_.cuda_workspace != nullptr) {
      a.workspace = tensor(DType::kF64, {op_.cuda_workspace(call) / 8 + 1}, 256).data;
    }
    all_.push_back(std::move(a));
  }

  // What lies in the block after the kernels have run on numbers in [0.01, 1): the same every time.
  std::vector<float> run(bool together) {
    if (memory_ == nullptr) cuda_check(cudaMalloc(&memory_, bytes_));
    std::vector<float> numbers(bytes_ / 4);
    for (size_t i = 0; i < numbers.size(); ++i) {
      // Bits that are a small positive number in every type, i32 too.
      const double u = uniform_at(3, stream_of("many"), i);
      const auto half = static_cast<uint32_t>(0x3c00 + u * 0x300);
      const uint32_t bits = half << 16 | half;
      std::memcpy(&numbers[i], &bits, 4);
    }
    cuda_check(cudaMemcpy(memory_, numbers.data(), bytes_ / 4 * 4, cudaMemcpyHostToDevice));
    std::vector<KernelArgs> args;
    std::vector<std::vector<TensorView>> views;
    views.reserve(2 * all_.size());
    for (const Application& a : all_) {
      views.push_back(moved(a.in));
      views.push_back(moved(a.out));
      args.push_back({.signature = *a.signature,
                      .attrs = a.attrs,
                      .in = views[views.size() - 2],
                      .out = views.back(),
                      .extents = a.extents,
                      .workspace = moved(a.workspace),
                      .device = &context_});
    }
    if (together) {
      op_.cuda_many(args);
    } else {
      for (const KernelArgs& a : args) op_.cuda(a);
    }
    cuda_check(cudaMemcpy(numbers.data(), memory_, bytes_ / 4 * 4, cudaMemcpyDeviceToHost));
    return numbers;
  }

 private:
  struct Application {
    const Signature* signature;
    Attrs attrs;
    std::vector<TensorView> in, out;
    std::vector<Extent> extents;
    void* workspace = nullptr;
  };

  void* moved(void* p) const { return static_cast<char*>(memory_) + reinterpret_cast<size_t>(p); }
  std::vector<TensorView> moved(std::vector<TensorView> views) const {
    for (TensorView& v : views) v.data = moved(v.data);
    return views;
  }

  const OpDef& op_;
  DeviceContext context_{0};
  std::vector<Application> all_;
  size_t bytes_ = 0;
  void* memory_ = nullptr;
};

class ManyOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::has_gpu()) GTEST_SKIP() << "no GPU here";
  }
};

void expect_same(Many& many) {
  const std::vector<float> apart = many.run(false), together = many.run(true);
  size_t different = 0;
  for (size_t i = 0; i < apart.size(); ++i) {
    different += std::memcmp(&apart[i], &together[i], sizeof(float)) != 0;
  }
  EXPECT_EQ(different, 0u) << "of " << apart.size();
}

// More tensors than a table holds, of all sizes, types and alignments.
Shape shape_of(int i) {
  switch (i % 5) {
    case 0: return {1 + i % 97};
    case 1: return {33, 64 + i % 7};
    case 2: return {8 * (1 + i % 300)};
    case 3: return {i % 300 == 3 ? 300000 : 5};
    default: return {128, i % 16 + 1};
  }
}

TEST_F(ManyOnGpu, AdamW) {
  Many many(ops::adamw);
  TensorView lr, clip, step;
  for (int i = 0; i < 1300; ++i) {
    const Shape shape = shape_of(i);
    const std::string d = shape.size() == 1 ? "a" : "ab";
    const DType type = i % 50 == 7 ? DType::kF64 : i % 50 == 9 ? DType::kBF16 : DType::kF32;
    const DType gradient = type == DType::kF32 && i % 3 != 0 ? DType::kBF16 : type;
    const DType copy = i % 11 == 0 ? DType::kF16 : DType::kBF16;
    const bool copies = type == DType::kF32 && i % 7 != 0;
    // Rounded stochastically, among others.
    const bool halves = type != DType::kBF16 && i % 4 == 2;
    const DType moment = halves ? DType::kBF16 : type;
    const TensorView p = many.tensor(type, shape, i % 13 == 0 ? 8 : 64),
                     m = many.tensor(moment, shape), v = many.tensor(moment, shape),
                     g = many.tensor(gradient, shape);
    if (i == 0 || i == 650) {  // another step's scalars
      lr = many.tensor(DType::kF32, {}), clip = many.tensor(DType::kF32, {});
      step = many.tensor(DType::kI32, {});
    }
    TensorView lr_of = lr, clip_of = clip;
    if (type == DType::kF64) {
      lr_of = many.tensor(DType::kF64, {}), clip_of = many.tensor(DType::kF64, {});
    }
    Attrs attrs = {{"beta1", 0.9}, {"beta2", 0.95}, {"eps", 1e-8}, {"weight_decay", i % 2 * 0.1}};
    std::vector<TensorView> out = {p, m, v};
    if (copies) {
      attrs.set("dtype", std::string(name_of(copy)));
      out.push_back(many.tensor(copy, shape));
    }
    std::string factors =
        d + "," + d + "," + d + "," + d + ",,,->" + d + "," + d + "," + d + (copies ? "," + d : "");
    if (halves) {
      attrs.set("name", "adam." + std::to_string(i));
      factors += shape.size() == 1 ? "|a:indexed" : "|a:indexed,b:indexed";
    }
    many.add(factors, std::move(attrs), {p, g, m, v, lr_of, clip_of, step}, std::move(out));
  }
  expect_same(many);
}

TEST_F(ManyOnGpu, Sgd) {
  Many many(ops::sgd);
  const TensorView lr = many.tensor(DType::kF32, {}), clip = many.tensor(DType::kF32, {}),
                   step = many.tensor(DType::kI32, {});
  for (int i = 0; i < 900; ++i) {
    const Shape shape = shape_of(i);
    const std::string d = shape.size() == 1 ? "a" : "ab";
    const bool halves = i % 3 == 1;
    const TensorView p = many.tensor(DType::kF32, shape),
                     v = many.tensor(halves ? DType::kBF16 : DType::kF32, shape),
                     g = many.tensor(i % 2 == 0 ? DType::kF32 : DType::kBF16, shape);
    Attrs attrs = {{"momentum", 0.9}, {"weight_decay", 0.1}};
    std::vector<TensorView> in = {p, g, v, lr, clip};
    std::string factors = d + "," + d + "," + d + ",,->" + d + "," + d;
    if (halves) {
      attrs.set("name", "sgd." + std::to_string(i));
      in.push_back(step);
      factors = d + "," + d + "," + d + ",,,->" + d + "," + d +
                (shape.size() == 1 ? "|a:indexed" : "|a:indexed,b:indexed");
    }
    many.add(factors, std::move(attrs), std::move(in), {p, v});
  }
  expect_same(many);
}

TEST_F(ManyOnGpu, SumsOfSquares) {
  Many many(ops::sum_squares);
  for (int i = 0; i < 1500; ++i) {
    const Shape shape = shape_of(i);
    const DType type = static_cast<DType>(i % 4);  // f64, f32, bf16, f16
    const DType sum = is_half(type) ? DType::kF32 : type;
    many.add(shape.size() == 1 ? "a->" : "ab->", {},
             {many.tensor(type, shape, i % 9 == 0 ? 8 : 64)}, {many.tensor(sum, {})});
  }
  expect_same(many);
}

// More than one launch takes, of several types, with whole vectors and without, in place and not.
TEST_F(ManyOnGpu, Rotary) {
  Many many(ops::rotary);
  for (int i = 0; i < 23; ++i) {
    const DType type = static_cast<DType>(i / 3 % 4);  // f64, f32, bf16, f16
    const int64_t start = i % 4 == 1 ? 16 : 0, size = i % 5 == 2 ? 22 : 32 << i % 4;
    const Shape shape = {1 + i % 3, 1 + 97 * i % 700, 1 + i % 6, start + size};
    const TensorView x = many.tensor(type, shape);
    many.add("bshE->bshE|s:indexed",
             {{"theta", i % 2 == 0 ? 1e4 : 5e5}, {"inverse", int64_t{i % 2}}, {"start", start}},
             {x}, {i % 3 == 0 ? x : many.tensor(type, shape)});
  }
  expect_same(many);
}

// Squares that f16 has no numbers for.
TEST_F(ManyOnGpu, SquaresOfHalvesDoNotOverflow) {
  testing::OpCase c{.op = &ops::sum_squares,
                    .factors = "a->",
                    .in = {testing::f64({4096})},
                    .ranges = {{2000, 60000}}};
  testing::check_on_gpu(c);
}

#else

TEST(ManyOnGpu, NeedsABuildWithCuda) { GTEST_SKIP() << "built without CUDA"; }

#endif

}  // namespace
}  // namespace cleave
