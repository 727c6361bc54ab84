// Moments of 16 bits on the GPU: to the bit those of the CPU, where what is rounded can be computed
// without rounding; in every layout, as shards of any kind, and made or skipped.
#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "tests/kernels_in_two.h"
#include "tests/support/gpu_checks.h"

namespace cleave {
namespace {

#ifdef CLEAVE_CUDA

class MomentsOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::has_gpu()) GTEST_SKIP() << "no GPU here";
  }
};

// Whole multiples of `unit`, at most 127 of them: exact in any type of 16 bits, as are sums and
// halves of some of them, and squares, in f32.
HostTensor multiples(DType dtype, const Shape& shape, uint64_t stream, double unit, int64_t low) {
  Numbers x = random_numbers(numel(shape), stream, static_cast<double>(low), 128);
  for (double& v : x) v = std::floor(v) * unit;
  return {{dtype, shape}, std::move(x)};
}

struct Types {
  DType p, g;
  std::optional<DType> copy;
};
constexpr Types kTypes[] = {
    {DType::kF64, DType::kF64, {}},
    {DType::kF64, DType::kF64, DType::kF32},
    {DType::kF32, DType::kF32, {}},
    {DType::kF32, DType::kF32, DType::kBF16},
    {DType::kF32, DType::kF32, DType::kF16},
    {DType::kF32, DType::kBF16, {}},
    {DType::kF32, DType::kBF16, DType::kBF16},
    {DType::kF32, DType::kF16, {}},
    {DType::kF32, DType::kF16, DType::kF16},
    {DType::kF32, DType::kBF16, DType::kF16},  // by no kernel for dense tensors
};

// With the betas, momentum and clipping halves and ones, and no decay: moments are exact.
Application update(bool adam, const Shape& shape, const Types& types, double clip = 1) {
  const std::string d = std::string("abc").substr(0, shape.size());
  std::vector<HostTensor> in = {multiples(types.p, shape, 1, 0x1p-7, -127),
                                multiples(types.g, shape, 2, 0x1p-7, -127),
                                multiples(DType::kBF16, shape, 3, 0x1p-13, -127)};
  Attrs attrs = {{"weight_decay", 0.0}, {"name", std::string(adam ? "adam.w" : "sgd.w")}};
  std::string factors = d + "," + d + "," + d;
  std::string results = d + "," + d;
  if (adam) {
    in.push_back(multiples(DType::kBF16, shape, 4, 0x1p-15, 0));
    attrs.set("beta1", 0.5), attrs.set("beta2", 0.5), attrs.set("eps", 1e-3);
    factors += "," + d, results += "," + d;
  } else {
    attrs.set("momentum", 0.5);
  }
  in.push_back({{types.p, {}}, {0x1p-6}});
  in.push_back({{types.p, {}}, {clip}});
  in.push_back({{DType::kI32, {}}, {7}});
  if (types.copy) {
    attrs.set("dtype", std::string(name_of(*types.copy)));
    results += "," + d;
  }
  std::string notes;
  for (const char letter : d) notes += std::string(notes.empty() ? "|" : ",") + letter + ":indexed";
  return application(adam ? ops::adamw : ops::sgd, std::move(in),
                     factors + ",,,->" + results + notes, std::move(attrs));
}

// The CPU, which has gradients and copies in f32 and f64 alone.
std::vector<HostTensor> on_cpu(Application a) {
  const DType p = a.in[0].type.dtype;
  a.in[1].type.dtype = p;
  if (a.attrs.has("dtype")) a.attrs.set("dtype", std::string(name_of(p)));
  return testing::run_op(a);
}

void expect_like_the_cpu(const Application& a, const std::string& what) {
  const bool adam = a.op == &ops::adamw;
  const size_t moments = adam ? 2 : 1;
  const std::vector<HostTensor> want = on_cpu(a);
  std::vector<std::pair<size_t, size_t>> in_place = {{0, 0}, {1, 2}};
  if (adam) in_place.push_back({2, 3});
  for (const MemoryLayout layout : {MemoryLayout::kRowMajor, MemoryLayout::kPadded,
                                    MemoryLayout::kSpaced, MemoryLayout::kTransposed}) {
    for (const auto& places : {in_place, decltype(in_place){}}) {
      SCOPED_TRACE(what + ", layout " + std::to_string(static_cast<int>(layout)) +
                   (places.empty() ? "" : ", in place"));
      const auto got = testing::run_op_on_gpu(a, {.layout = layout, .in_place = places});
      for (size_t o = 1; o <= moments; ++o) {
        size_t different = 0;
        for (size_t i = 0; i < got[o].numbers.size(); ++i) {
          different += got[o].numbers[i] != want[o].numbers[i];
        }
        EXPECT_EQ(different, 0u) << "moment " << o;
      }
      expect_near(got[0].numbers, want[0].numbers, tolerance_of(a.in[0].type.dtype), "parameter");
      if (!a.attrs.has("dtype")) continue;
      Numbers copy = got[0].numbers;
      for (double& x : copy) x = testing::rounded(x, got.back().type.dtype);
      EXPECT_EQ(got.back().numbers, copy);
    }
  }
}

std::string text_of(const Types& t) {
  return std::string(name_of(t.p)) + " and " + std::string(name_of(t.g)) +
         (t.copy ? " to " + std::string(name_of(*t.copy)) : "");
}

TEST_F(MomentsOnGpu, AreTheCpusToTheBit) {
  for (const Shape& shape : {Shape{1}, Shape{7}, Shape{50257}, Shape{3, 1600}, Shape{257, 768},
                             Shape{129, 1023}, Shape{5, 12, 20}}) {
    for (const Types& types : kTypes) {
      for (const bool adam : {true, false}) {
        for (const double clip : {1.0, -1.0}) {
          if (clip < 0 && numel(shape) > 5000) continue;
          expect_like_the_cpu(update(adam, shape, types, clip),
                              text_of(types) + " " + to_string(shape));
        }
      }
    }
  }
}

// A parameter in two is updated as it is in one by the kernels for those, to the bit.
TEST_F(MomentsOnGpu, ParametersInTwoAreThoseInOne) {
  for (const Shape& shape :
       {Shape{1}, Shape{7}, Shape{50257}, Shape{3, 1600}, Shape{129, 1023}, Shape{5, 12, 20}}) {
    for (const bool adam : {true, false}) {
      for (const DType gradient : {DType::kF32, DType::kBF16}) {
        for (const DType moments : {DType::kF32, DType::kBF16}) {
          for (const double clip : {0.5, -1.0}) {
            const Application whole = random_update(adam, shape, gradient, moments, clip);
            const std::vector<HostTensor> want =
                testing::run_op_on_gpu(whole, {.in_place = in_place_of(whole)});
            const Application two = in_two(whole);
            for (const MemoryLayout layout : {MemoryLayout::kRowMajor, MemoryLayout::kPadded,
                                              MemoryLayout::kSpaced, MemoryLayout::kTransposed}) {
              for (const bool in_place : {true, false}) {
                SCOPED_TRACE(to_string(shape) + (adam ? " adamw" : " sgd") + ", gradients " +
                             std::string(name_of(gradient)) + ", moments " +
                             std::string(name_of(moments)) + ", layout " +
                             std::to_string(static_cast<int>(layout)));
                const auto got = in_one(testing::run_op_on_gpu(
                    two, {.layout = layout,
                          .in_place = in_place ? in_place_of(two) : decltype(in_place_of(two)){}}));
                ASSERT_EQ(got.size(), want.size());
                for (size_t o = 0; o < want.size(); ++o) {
                  EXPECT_EQ(got[o].numbers, want[o].numbers) << "result " << o;
                }
              }
            }
          }
        }
      }
    }
  }
}

// Shards that lie in one run, in runs of a length and a distance, and in another way.
TEST_F(MomentsOnGpu, OfShardsAreThoseOfTheWhole) {
  const std::vector<std::pair<Extent, Extent>> shards = {
      {{32, 128, {{1, 4, 2}}}, {96, 96, {}}},          // rows: one run
      {{64, 64, {}}, {48, 96, {{1, 2, 1}}}},           // columns: runs, of four at a time
      {{64, 64, {}}, {30, 60, {{1, 2, 1}}}},           // not of four
      {{16, 64, {{1, 4, 3}}}, {32, 64, {{1, 2, 1}}}},  // both
      {{64, 64, {}}, {48, 144, {{3, 3, 2}}}},          // three pieces
      {{24, 96, {{3, 2, 1}, {1, 2, 0}}}, {16, 32, {{2, 2, 1}}}},
      {{64, 64, {}}, {1, 4, {{1, 4, 2}}}},
      {{3, 6, {{1, 2, 1}}}, {5, 5, {}}},  // begins at no block
  };
  for (const auto& [rows, columns] : shards) {
    for (const Types& types : kTypes) {
      for (const bool adam : {true, false}) {
        Application a = update(adam, {rows.local, columns.local}, types);
        a.extents = {rows, columns};
        expect_like_the_cpu(a, text_of(types) + " " + std::to_string(columns.local) + " of " +
                                   std::to_string(columns.global) + " columns");
      }
    }
  }
}

#else

TEST(MomentsOnGpu, NeedsABuildWithCuda) { GTEST_SKIP() << "built without CUDA"; }

#endif

}  // namespace
}  // namespace cleave
