// Codes of 8 bits and their products on the GPU: the codes are those of the CPU, bit by bit, and
// products are near those in double.
#include <gtest/gtest.h>

#ifdef CLEAVE_CUDA

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "graph/f8.h"
#include "graph/philox.h"
#include "kernels/ops.h"
#include "tests/support/gpu_checks.h"
#include "tests/support/op_checks.h"
#include "tests/support/op_compare.h"

namespace cleave {
namespace {

using testing::Application;
using testing::HostTensor;
using testing::MemoryLayout;

constexpr MemoryLayout kLayouts[] = {MemoryLayout::kRowMajor, MemoryLayout::kPadded,
                                     MemoryLayout::kSpaced, MemoryLayout::kTransposed};
constexpr DType kTypes[] = {DType::kF8E4M3, DType::kF8E5M2};

class F8OnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::has_gpu()) GTEST_SKIP() << "no GPU here";
  }
};

Application application(const OpDef& op, std::string_view factors, Attrs attrs,
                        std::vector<HostTensor> in) {
  std::vector<TensorType> types;
  for (const HostTensor& t : in) types.push_back(t.type);
  const Signature& signature = Signature::get(factors);
  return {&op, &signature, attrs, testing::whole_extents(solve_extents(signature, attrs, types)),
          std::move(in)};
}

HostTensor drawn(DType dtype, Shape shape, uint64_t stream, double low, double high) {
  HostTensor t{{dtype, shape}, {}};
  for (int64_t i = 0; i < numel(shape); ++i) {
    const double u = uniform_at(3, stream, static_cast<uint64_t>(i));
    t.numbers.push_back(testing::rounded(low + u * (high - low), dtype));
  }
  return t;
}

// The same numbers where the CPU can compute.
Application on_cpu(Application a) {
  for (HostTensor& t : a.in) {
    if (is_float(t.type.dtype)) t.type.dtype = DType::kF32;
  }
  return a;
}

void expect_same(const Application& a, const testing::RunOptions& options,
                 const std::string& what) {
  try {
    const auto want = testing::run_op(on_cpu(a));
    const auto got = testing::run_op_on_gpu(a, options);
    for (size_t o = 0; o < want.size(); ++o) {
      ASSERT_EQ(got[o].type, want[o].type);
      for (size_t i = 0; i < want[o].numbers.size(); ++i) {
        const double g = got[o].numbers[i], w = want[o].numbers[i];
        ASSERT_TRUE(g == w || (std::isnan(g) && std::isnan(w)))
            << what << ": output " << o << ", element " << i << " is " << g << " instead of " << w;
      }
    }
  } catch (const std::exception& e) {
    ADD_FAILURE() << what << ": " << e.what();
  }
}

// Every code, every middle between two and its neighbours, and numbers of all exponents. The
// history makes the scale 1.
TEST_F(F8OnGpu, RoundsAsTheCpu) {
  for (const DType dtype : kTypes) {
    HostTensor x{{DType::kF32, {}}, {}};
    const auto add = [&](float v) {
      for (const float s : {v, -v}) x.numbers.push_back(static_cast<double>(s));
    };
    for (int code = 0; code < 127; ++code) {
      const float low = f8_number(static_cast<uint8_t>(code), dtype);
      const float high = f8_number(static_cast<uint8_t>(code + 1), dtype);
      if (!std::isfinite(low) || !std::isfinite(high)) continue;
      const float middle = (low + high) / 2;
      add(low), add(high), add(middle);
      add(std::nextafter(middle, 0.0f)), add(std::nextafter(middle, 1e9f));
    }
    for (const float v : {HUGE_VALF, std::nanf(""), 3e38f, 449.0f, 464.0f, 480.0f, 57345.0f})
      add(v);
    for (uint64_t i = 0; i < 4000; ++i) {
      const auto bits = static_cast<uint32_t>(uniform_at(5, 1, i) * 0x7f800000);
      add(std::bit_cast<float>(bits));
    }
    for (const int64_t columns : {int64_t{1}, int64_t{16}}) {  // an element, or a tile, at a time
      while (std::ssize(x.numbers) % (16 * columns) != 0) x.numbers.push_back(0);
      x.type.shape = {std::ssize(x.numbers) / columns, columns};
      HostTensor history{{DType::kF32, {1, 2}}, {0, static_cast<double>(f8_largest(dtype))}};
      const HostTensor sizes{{DType::kF32, {1}}, {0}};
      expect_same(application(ops::quantize, "AB,TH,T->AB,BA,,T",
                              {{"dtype", std::string(name_of(dtype))}, {"index", int64_t{0}}},
                              {x, history, sizes}),
                  {}, std::string(name_of(dtype)));
    }
  }
}

// A shape each, so that sanitizers can be spared the largest.
class F8ShapesOnGpu : public F8OnGpu, public ::testing::WithParamInterface<Shape> {};

TEST_P(F8ShapesOnGpu, QuantizesAsTheCpu) {
  const Shape& shape = GetParam();
  for (const DType type : {DType::kF64, DType::kF32, DType::kBF16, DType::kF16}) {
    for (const DType dtype : kTypes) {
      for (const char* results : {"AB,BA,", "AB,", "BA,"}) {
        for (const MemoryLayout layout : kLayouts) {
          if (numel(shape) > 20000 && layout != MemoryLayout::kRowMajor) continue;
          const HostTensor x = drawn(type, shape, 1, -3, 3);
          Attrs attrs = {{"dtype", std::string(name_of(dtype))}};
          const std::string what =
              fmt::format("{} of {} to {}, {}, layout {}", to_string(shape), name_of(type),
                          name_of(dtype), results, static_cast<int>(layout));
          expect_same(application(ops::quantize, fmt::format("AB->{}", results), attrs, {x}),
                      {.layout = layout}, what);
          attrs.set("index", int64_t{2});
          for (const double past : {0.0, 0.1, 50.0}) {
            HostTensor history = drawn(DType::kF32, {4, 3}, 2, 0, 100);
            for (size_t h = 0; h < 3; ++h) history.numbers[6 + h] = h == 1 ? past : 0;
            const HostTensor sizes = drawn(DType::kF32, {4}, 3, 0, past == 50 ? 100 : 1);
            const Application a = application(ops::quantize, fmt::format("AB,TH,T->{},T", results),
                                              attrs, {x, history, sizes});
            expect_same(a, {.layout = layout}, what + ", delayed");
            const size_t last = a.signature->outputs().size() - 1;
            expect_same(a, {.layout = layout, .in_place = {{last, 2}}}, what + ", in place");
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, F8ShapesOnGpu,
                         ::testing::Values(Shape{1, 1}, Shape{3, 5}, Shape{16, 8}, Shape{130, 70},
                                           Shape{128, 128}, Shape{144, 136}, Shape{256, 392},
                                           Shape{1040, 520}),
                         [](const auto& of) {
                           return fmt::format("{}x{}", of.param[0], of.param[1]);
                         });

TEST_F(F8OnGpu, QuantizesTensorsOfMoreDimensions) {
  const HostTensor x = drawn(DType::kBF16, {4, 36, 48}, 1, -3, 3);
  const Attrs attrs = {{"dtype", std::string("f8e5m2")}};
  for (const char* factors : {"ABC->ABC,CAB,", "ABC->BCA,", "ABC->ABC,BCA,"}) {
    for (const MemoryLayout layout : kLayouts) {
      expect_same(application(ops::quantize, factors, attrs, {x}), {.layout = layout}, factors);
    }
  }
}

TEST_F(F8OnGpu, RemembersSizes) {
  HostTensor history = drawn(DType::kF32, {300, 16}, 1, 0, 9);
  HostTensor sizes = drawn(DType::kF32, {300}, 2, 0, 9);
  sizes.numbers[3] = HUGE_VAL;
  sizes.numbers[7] = std::nan("");
  const Application a = application(ops::size_history, "TH,T->TH", {}, {history, sizes});
  for (const MemoryLayout layout : kLayouts) {
    expect_same(a, {.layout = layout}, "history");
    expect_same(a, {.layout = layout, .in_place = {{0, 0}}}, "history in place");
  }
}

// Some sizes that cuBLASLt takes, and some that are filled up to those. The tensor cores keep some
// 14 bits of sums while they add: the tolerance of f32 is theirs.
TEST_F(F8OnGpu, ProductsAreNearThoseInDouble) {
  struct Sizes {
    int64_t b, s, k, n;
  };
  const Attrs none, bias = {{"bias", int64_t{1}}}, residual = {{"residual", int64_t{1}}};
  const Attrs both = {{"bias", int64_t{1}}, {"residual", int64_t{1}}};
  for (const Sizes& sizes : {Sizes{1, 16, 16, 16}, Sizes{2, 40, 96, 80}, Sizes{4, 64, 512, 272},
                             Sizes{1, 1, 1, 1}, Sizes{3, 7, 33, 19}, Sizes{2, 24, 100, 48}}) {
    const int64_t b = sizes.b, s = sizes.s, k = sizes.k, n = sizes.n;
    const auto codes = [&](DType dtype, Shape shape, uint64_t stream) {
      return drawn(dtype, std::move(shape), stream, -2, 2);
    };
    for (const DType out : {DType::kBF16, DType::kF16, DType::kF32, DType::kF64}) {
      const double tolerance = out == DType::kBF16 ? 3e-2 : 1e-2;
      const HostTensor scale_a{{DType::kF32, {}}, {0.25}}, scale_b{{DType::kF32, {}}, {0.75}};
      const HostTensor x = codes(DType::kF8E4M3, {b, s, k}, 1),
                       w = codes(DType::kF8E4M3, {n, k}, 2);
      const HostTensor dy = codes(DType::kF8E5M2, {b, s, n}, 3);
      const HostTensor more = drawn(out, {n}, 4, -2, 2), rest = drawn(out, {b, s, n}, 5, -2, 2);
      const auto check = [&](const char* factors, Attrs attrs, std::vector<HostTensor> in) {
        in.insert(in.begin() + 2, {scale_a, scale_b});
        for (const int64_t quick : {0, 1}) {
          attrs.set("quick", quick);
          attrs.set("dtype", std::string("f64"));
          Application reference = application(ops::scaled_matmul, factors, attrs, in);
          for (size_t i = 4; i < in.size(); ++i) reference.in[i].type.dtype = DType::kF64;
          const HostTensor want = testing::run_op(reference)[0];
          attrs.set("dtype", std::string(name_of(out)));
          const Application a = application(ops::scaled_matmul, factors, attrs, in);
          for (const MemoryLayout layout : kLayouts) {
            const std::string what =
                fmt::format("{} of {} {} {} {} to {}, quick {}, layout {}", factors, b, s, k, n,
                            name_of(out), quick, static_cast<int>(layout));
            try {
              HostTensor got = testing::run_op_on_gpu(a, {.layout = layout})[0];
              HostTensor again = testing::run_op_on_gpu(a, {.layout = layout})[0];
              EXPECT_EQ(testing::difference(again, got, 0), "") << what;
              got.type.dtype = DType::kF64;
              EXPECT_EQ(testing::difference(got, want, quick != 0 ? 3 * tolerance : tolerance), "")
                  << what;
            } catch (const std::exception& e) {
              ADD_FAILURE() << what << ": " << e.what();
            }
          }
        }
      };
      check("bsk,nk,,->bsn", none, {x, w});
      check("bsn,nk,,->bsk", none, {dy, w});
      check("bsk,bsn,,->nk", none, {x, dy});
      check("bsK,nK,,,n->bsn", bias, {x, w, more});
      check("bsK,nK,,,bsn->bsn", residual, {x, w, rest});
      check("bsK,nK,,,n,bsn->bsn", both, {x, w, more, rest});
    }
  }
}

}  // namespace
}  // namespace cleave

#else

TEST(F8OnGpu, NeedsABuildWithCuda) { GTEST_SKIP() << "built without CUDA"; }

#endif
