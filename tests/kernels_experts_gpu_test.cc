// Larger and odd shapes of what a mixture of experts is made of, and shards of experts and of
// slots: on the GPU against the CPU in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/ops.h"
#include "tests/support/gpu_checks.h"
#include "tests/support/op_checks.h"

namespace cleave {
namespace {

#ifdef CLEAVE_CUDA

using testing::check_on_gpu;
using testing::f64;
using testing::HostTensor;
using testing::i32;
using testing::OpCase;
using testing::Range;
using testing::shard_of;

constexpr Range kAny = {-2, 2};

class ExpertsOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::has_gpu()) GTEST_SKIP() << "no GPU here";
  }
};

TEST_F(ExpertsOnGpu, TheLargestOfARow) {
  struct Choice {
    int64_t rows, n, k;
  };
  void (*const as_drawn)(std::vector<HostTensor>&) = nullptr;
  for (const auto prepare : {as_drawn,
                             +[](std::vector<HostTensor>& in) {  // ties
                               for (double& x : in[0].numbers) x = std::floor(x);
                             },
                             +[](std::vector<HostTensor>& in) {  // infinities
                               for (size_t i = 0; i < in[0].numbers.size(); ++i) {
                                 if (i % 3 == 0) {
                                   in[0].numbers[i] = -std::numeric_limits<double>::infinity();
                                 }
                               }
                             }}) {
    for (const Choice& n :
         {Choice{1, 1, 1}, Choice{7, 7, 7}, Choice{4100, 8, 2}, Choice{333, 64, 6},
          Choice{33, 65, 1}, Choice{129, 128, 8}, Choice{9, 257, 4}, Choice{3, 1600, 20}}) {
      check_on_gpu({.op = &ops::top_k,
                    .attrs = {{"K", n.k}},
                    .in = {f64({n.rows, n.n})},
                    .ranges = {kAny},
                    .prepare = prepare});
    }
  }
}

TEST_F(ExpertsOnGpu, TheGradientOfTheLargest) {
  struct Choice {
    int64_t groups, tokens, n, k;
  };
  for (const Choice& n : {Choice{1, 1, 1, 1}, Choice{3, 700, 8, 2}, Choice{2, 33, 130, 6}}) {
    const auto classes = static_cast<double>(n.n);
    OpCase c = {.op = &ops::top_k_backward,
                .attrs = {{"e", n.n}},
                .in = {f64({n.groups, n.tokens, n.k}), i32({n.groups, n.tokens, n.k})},
                .ranges = {kAny, {0, classes}}};
    check_on_gpu(c);
    c.ranges[1].high *= n.n % 2 == 0 ? 4 : 1;
    check_on_gpu(shard_of(c), c);
  }
}

TEST_F(ExpertsOnGpu, Slots) {
  struct Groups {
    Shape shape;
    int64_t experts;
  };
  for (const Groups& g : {Groups{{1, 1, 1}, 1}, Groups{{3, 31, 1}, 7}, Groups{{2, 4096, 2}, 8},
                          Groups{{5, 1023, 3}, 64}, Groups{{1, 500, 4}, 700},
                          Groups{{1, 3000, 2}, 3001}, Groups{{140, 9, 2}, 4}}) {
    const Range chosen = {0, static_cast<double>(g.experts)};
    const int64_t choices = g.shape[1] * g.shape[2];
    for (const int64_t capacity : {int64_t{1}, choices / g.experts + 1, choices}) {
      check_on_gpu({.op = &ops::capacity_slots,
                    .attrs = {{"experts", g.experts}, {"capacity", capacity}},
                    .in = {i32(g.shape)},
                    .ranges = {chosen}});
    }
    // Evenly, and nearly all to one expert.
    for (const Range& range : {chosen, Range{0, 1}}) {
      check_on_gpu({.op = &ops::sorted_slots,
                    .attrs = {{"experts", g.experts}, {"R", choices}},
                    .in = {i32(g.shape)},
                    .ranges = {range}});
    }
  }
}

TEST_F(ExpertsOnGpu, Histograms) {
  struct Counted {
    Shape shape;
    int64_t classes;
  };
  for (const Counted& n : {Counted{{1, 1, 1}, 1}, Counted{{2, 3000, 2}, 8},
                           Counted{{9, 77, 3}, 130}, Counted{{1, 4000, 4}, 30000}}) {
    OpCase c = {.op = &ops::histogram,
                .attrs = {{"e", n.classes}, {"dtype", std::string("f64")}},
                .in = {i32(n.shape)},
                .ranges = {{0, static_cast<double>(n.classes)}}};
    check_on_gpu(c);
    c.ranges[0].high *= n.classes % 2 == 0 ? 4 : 1;
    check_on_gpu(shard_of(c), c);
  }
}

// Slots of the i32 operand: every group's different and in any order, one in five nowhere.
template <bool kSpread>
void different_slots(std::vector<HostTensor>& in) {
  for (HostTensor& t : in) {
    if (t.type.dtype != DType::kI32) continue;
    std::mt19937_64 random(7);
    const auto groups = static_cast<size_t>(t.type.shape[0]);
    const size_t each = t.numbers.size() / groups;
    for (size_t g = 0; g < groups; ++g) {
      std::vector<double> numbers(each);
      std::iota(numbers.begin(), numbers.end(), 0);
      // Of a shard's case, whose experts are four times as many: over all of them.
      if (kSpread) {
        for (size_t i = 0; i < each; ++i) numbers[i] = static_cast<double>(4 * i + i % 4);
      }
      for (size_t i = 0; i < each; i += 5) numbers[i] = -1;
      std::shuffle(numbers.begin(), numbers.end(), random);
      std::copy(numbers.begin(), numbers.end(),
                t.numbers.begin() + static_cast<std::ptrdiff_t>(g * each));
    }
  }
}

TEST_F(ExpertsOnGpu, RowsMove) {
  struct Moves {
    int64_t b, s, k, e, c, d;
  };
  for (const Moves& n :
       {Moves{1, 1, 1, 1, 1, 1}, Moves{2, 33, 2, 6, 12, 7}, Moves{3, 100, 2, 8, 26, 768},
        Moves{1, 65, 6, 4, 100, 1600}, Moves{2, 9, 2, 2, 10, 4096}, Moves{1, 5, 3, 4, 4, 9000}}) {
    const TensorType x = f64({n.b, n.s, n.d}), slots = i32({n.b, n.s, n.k}),
                     weights = f64({n.b, n.s, n.k}), y = f64({n.e, n.b, n.c, n.d});
    const auto all = static_cast<double>(n.e * n.c);
    const auto check = [&](const OpDef& op, const std::vector<TensorType>& in) {
      // Each slot for one row; several rows in one; and slots of which this shard has some.
      for (const double part : {1.0, 0.125, 16.0}) {
        OpCase c = {.op = &op, .in = in};
        if (&op == &ops::dispatch) c.attrs = {{"e", n.e}, {"c", n.c}};
        if (part == 1) c.prepare = different_slots<false>;
        for (const TensorType& t : in) {
          c.ranges.push_back(t.dtype == DType::kI32 ? Range{-1, std::max(1.0, part * all)}
                                                    : Range{-1, 1});
        }
        if (part <= 1) check_on_gpu(c);
        if (part == 1) c.prepare = different_slots<true>;
        if (part >= 1 && n.e % 2 == 0) check_on_gpu(shard_of(c), c);
      }
    };
    check(ops::dispatch, {x, slots});
    check(ops::collect, {y, slots});
    check(ops::combine, {y, slots, weights});
    check(ops::combine_backward, {x, y, slots, weights});
  }
}

// The last operand: rows sorted by expert within each group.
void sort_rows(std::vector<HostTensor>& in) {
  std::vector<double>& numbers = in.back().numbers;
  const int64_t rows = in.back().type.shape.back();
  for (auto at = numbers.begin(); at != numbers.end(); at += rows) std::sort(at, at + rows);
}

struct Sizes {
  int64_t b, r, d, f, e;
};

class ProductsOfExpertsOnGpu : public ExpertsOnGpu, public ::testing::WithParamInterface<Sizes> {};

TEST_P(ProductsOfExpertsOnGpu, OfAllOrSomeOrAShards) {
  const Sizes& n = GetParam();
  void (*const in_any_order)(std::vector<HostTensor>&) = nullptr;
  const TensorType x = f64({n.b, n.r, n.d}), w = f64({n.e, n.f, n.d}), y = f64({n.b, n.r, n.f}),
                   rows = i32({n.b, n.r});
  const Range small = {-0.2, 0.2};
  for (const auto prepare : {sort_rows, in_any_order}) {
    // Of all experts; of a few; and of those that a shard has, and others.
    for (const double part : {1.0, 0.3, 4.0}) {
      const bool shard = part > 1;
      if (shard && n.e % 2 != 0) continue;
      const Range chosen = {0, std::max(1.0, part * static_cast<double>(n.e))};
      const Attrs experts = {{"experts", shard ? 4 * n.e : n.e}};
      Attrs sized = experts;
      sized.set("e", n.e);
      for (const OpCase& c : {OpCase{.op = &ops::grouped_matmul,
                             .attrs = experts,
                             .in = {x, w, rows},
                             .ranges = {small, small, chosen},
                             .prepare = prepare},
                              OpCase{.op = &ops::grouped_matmul,
                              .factors = "brf,efd,br->brd|e:indexed",
                              .attrs = experts,
                              .in = {y, w, rows},
                              .ranges = {small, small, chosen},
                              .prepare = prepare},
                              OpCase{.op = &ops::grouped_matmul_backward,
                              .attrs = sized,
                              .in = {y, x, rows},
                              .ranges = {small, small, chosen},
                              .prepare = prepare}}) {
        if (shard) {
          check_on_gpu(shard_of(c), c);
        } else {
          check_on_gpu(c);
        }
      }
    }
  }
}

// Of several tiles down, across and along what is summed, and of parts of one.
INSTANTIATE_TEST_SUITE_P(Sizes, ProductsOfExpertsOnGpu,
                         ::testing::Values(Sizes{1, 1, 1, 1, 1}, Sizes{2, 33, 7, 5, 3},
                                           Sizes{1, 300, 64, 128, 4}, Sizes{3, 129, 136, 72, 8},
                                           Sizes{2, 200, 72, 136, 40}, Sizes{1, 700, 768, 40, 2},
                                           Sizes{1, 77, 24, 1600, 6}, Sizes{1, 150, 520, 296, 3}),
                         [](const auto& info) { return std::to_string(info.index); });

#else

TEST(ExpertsOnGpu, NeedsABuildWithCuda) { GTEST_SKIP() << "built without CUDA"; }

#endif

}  // namespace
}  // namespace cleave
