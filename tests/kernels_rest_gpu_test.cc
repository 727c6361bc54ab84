// Larger and odd shapes of the update, dropout, the ops that copy and attention, and shards of what
// depends on where a shard lies: on the GPU against the CPU in double.
#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "tests/kernels_adamw_scalars.h"
#include "tests/support/gpu_checks.h"
#include "tests/support/op_checks.h"

namespace cleave {
namespace {

#ifdef CLEAVE_CUDA

using testing::Application;
using testing::check_on_gpu;
using testing::f64;
using testing::i32;
using testing::OpCase;
using testing::Range;
using testing::shard_of;

constexpr Range kAny = {-1, 1};

class RestOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::has_gpu()) GTEST_SKIP() << "no GPU here";
  }
};

const std::vector<Shape> kShapes = {{1}, {7}, {50257}, {3, 1600}, {257, 768}, {129, 1023}};

std::string letters(const Shape& shape) { return std::string("ab").substr(0, shape.size()); }

OpCase adamw_case(const Shape& shape, Range clip) {
  const std::string d = letters(shape);
  return {.op = &ops::adamw,
          .factors = d + "," + d + "," + d + "," + d + ",,,->" + d + "," + d + "," + d,
          .attrs = {{"beta1", 0.9}, {"beta2", 0.95}, {"eps", 1e-8}, {"weight_decay", 0.1}},
          .in = {f64(shape), f64(shape), f64(shape), f64(shape), f64({}), f64({}), i32({})},
          .ranges = {kAny, kAny, kAny, {0.01, 1}, {0.01, 0.1}, clip, {1, 20}},
          .in_place = {{0, 0}, {1, 2}, {2, 3}}};
}

OpCase sgd_case(const Shape& shape, Range clip) {
  const std::string d = letters(shape);
  return {.op = &ops::sgd,
          .factors = d + "," + d + "," + d + ",,->" + d + "," + d,
          .attrs = {{"momentum", 0.9}, {"weight_decay", 0.1}},
          .in = {f64(shape), f64(shape), f64(shape), f64({}), f64({})},
          .ranges = {kAny, kAny, kAny, {0.01, 0.1}, clip},
          .in_place = {{0, 0}, {1, 2}}};
}

TEST_F(RestOnGpu, AdamWKeepsItsScalars) {
  // By the kernel of tensors that lie in any way, and by that of training.
  expect_exact_scalars([](const Application& a) { return testing::run_op_on_gpu(a); });
  expect_exact_scalars([](const Application& a) {
    return testing::run_op_on_gpu(a, {.in_place = {{0, 0}, {1, 2}, {2, 3}}});
  });
}

// Sums of halves that are stored in f32: products added to what there is, in place, and columns.
TEST_F(RestOnGpu, WideSums) {
  for (const int64_t rows : {4, 36, 1000}) {
    const OpCase product = {.op = &ops::linear,
                            .factors = "Bk,Bn,nk->nk",
                            .attrs = {{"residual", int64_t{1}}},
                            .in = {f64({rows, 64}), f64({rows, 24}), f64({24, 64})},
                            .in_place = {{0, 2}}};
    Application a = testing::application_of(product, 3);
    a.in[2].type.dtype = DType::kF32;
    a.attrs.set("dtype", std::string("f32"));
    check_on_gpu(a, product, true);
    const OpCase sum = {.op = &ops::sum, .factors = "bd->d", .in = {f64({rows, 72})}};
    a = testing::application_of(sum, 3);
    a.attrs.set("dtype", std::string("f32"));
    check_on_gpu(a, sum, true);
  }
}

TEST_F(RestOnGpu, SumsOfSquares) {
  for (const Shape& shape : kShapes) {
    check_on_gpu({.op = &ops::sum_squares,
                  .factors = letters(shape) + "->",
                  .in = {f64(shape)},
                  .ranges = {{-0.3, 0.3}}});
  }
}

TEST_F(RestOnGpu, UpdatesAreMadeOrSkipped) {
  for (const Shape& shape : kShapes) {
    for (const Range clip : {Range{0.5, 1}, Range{-1, -1}}) {
      check_on_gpu(adamw_case(shape, clip));
      check_on_gpu(sgd_case(shape, clip));
    }
  }
}

// The case with the new parameter in a second type.
OpCase with_copy(OpCase c) {
  c.factors += "," + c.factors.substr(0, c.factors.find(','));
  c.attrs.set("dtype", std::string("f64"));
  return c;
}

// Parameters in f32 as training has them: gradients and copies of 16 bits.
TEST_F(RestOnGpu, UpdatesOfWideParameters) {
  for (const Shape& shape : kShapes) {
    for (const Range clip : {Range{0.5, 1}, Range{-1, -1}}) {
      for (const bool copy : {false, true}) {
        for (const bool half_gradient : {false, true}) {
          for (const OpCase& plain : {adamw_case(shape, clip), sgd_case(shape, clip)}) {
            const OpCase c = copy ? with_copy(plain) : plain;
            Application a = testing::application_of(c, 3);
            for (size_t i = 0; i < a.in.size(); ++i) {
              if (is_float(a.in[i].type.dtype) && !(half_gradient && i == 1))
                a.in[i].type.dtype = DType::kF32;
            }
            check_on_gpu(a, c, true);
          }
        }
      }
    }
  }
}

// Gradients, moments and scalars of f32 beside parameters of 16 bits, in every combination.
TEST_F(RestOnGpu, UpdatesOfMixedTypes) {
  for (const Shape& shape : {Shape{7}, Shape{257, 768}}) {
    for (const Range clip : {Range{0.5, 1}, Range{-1, -1}}) {
      for (int which = 1; which < 8; ++which) {
        const auto check = [&](const OpCase& c, const std::vector<size_t>& moments,
                               size_t scalars) {
          Application a = testing::application_of(c, 3);
          const auto f32 = [&](size_t i) { a.in[i].type.dtype = DType::kF32; };
          if ((which & 1) != 0) f32(1);
          if ((which & 2) != 0) {
            for (const size_t i : moments) f32(i);
          }
          if ((which & 4) != 0) f32(scalars), f32(scalars + 1);
          check_on_gpu(a, c, true);
        };
        check(adamw_case(shape, clip), {2, 3}, 4);
        check(adamw_case(shape, clip), {3}, 4);
        check(sgd_case(shape, clip), {2}, 3);
        check(with_copy(adamw_case(shape, clip)), {2, 3}, 4);
        check(with_copy(sgd_case(shape, clip)), {2}, 3);
      }
    }
  }
}

OpCase dropout_case(const Shape& shape) {
  const bool flat = shape.size() == 1;
  return {.op = &ops::dropout,
          .factors = flat ? "a,->a|a:indexed" : "ab,->ab|a:indexed,b:indexed",
          .attrs = {{"p", 0.3}, {"name", std::string("drop")}},
          .in = {f64(shape), i32({})},
          .ranges = {kAny, {1, 9}},
          .in_place = {{0, 0}}};
}

TEST_F(RestOnGpu, DropoutOfTheWholeAndOfShards) {
  for (const Shape& shape : kShapes) check_on_gpu(dropout_case(shape));
  for (const Shape& shape : {Shape{4096}, Shape{6, 1600}, Shape{4, 36}, Shape{130, 70}}) {
    const OpCase c = dropout_case(shape);
    check_on_gpu(shard_of(c), c);
  }
}

TEST_F(RestOnGpu, PartsPutTogether) {
  const auto bounds = [](int64_t start, int64_t stop, int64_t step, int64_t whole) {
    return Attrs{{"start", start}, {"stop", stop}, {"step", step}, {"X", whole}};
  };
  check_on_gpu({.op = &ops::stack,
                .factors = "ab,ab->aCb",
                .attrs = {{"C", int64_t{2}}},
                .in = {f64({33, 768}), f64({33, 768})}});
  check_on_gpu({.op = &ops::stack,
                .factors = "ab,ab->abC",
                .attrs = {{"C", int64_t{2}}},
                .in = {f64({33, 70}), f64({33, 70})}});
  check_on_gpu({.op = &ops::concat,
                .factors = "aXc,aYc->aZc",
                .attrs = {{"Z", int64_t{8}}},
                .in = {f64({65, 1, 96}), f64({65, 7, 96})}});
  check_on_gpu({.op = &ops::concat,
                .factors = "aX,aY->aZ",
                .attrs = {{"Z", int64_t{1600}}},
                .in = {f64({65, 1599}), f64({65, 1})}});
  check_on_gpu({.op = &ops::unslice,
                .factors = "aY->aX",
                .attrs = bounds(0, -1, 1, 1600),
                .in = {f64({65, 800})}});
  check_on_gpu({.op = &ops::unslice,
                .factors = "aY->aX",
                .attrs = bounds(1, -1, 2, 1600),
                .in = {f64({65, 800})}});
  check_on_gpu({.op = &ops::write_slice,
                .factors = "aX,aY->aX",
                .attrs = {{"start", int64_t{3}}, {"stop", int64_t{803}}, {"step", int64_t{1}}},
                .in = {f64({65, 1600}), f64({65, 800})},
                .in_place = {{0, 0}}});
  check_on_gpu({.op = &ops::reshape,
                .factors = "ABC->DE",
                .attrs = {{"D", int64_t{35}}, {"E", int64_t{96}}},
                .in = {f64({5, 7, 96})}});
}

struct Heads {
  int64_t b, s, t, g, r, e, v;
  bool causal;
  double dropout = 0;
};

void check_attention(const Heads& h, bool shard) {
  const TensorType q = f64({h.b, h.s, h.g * h.r, h.e}), k = f64({h.b, h.t, h.g, h.e}),
                   v = f64({h.b, h.t, h.g, h.v}), o = f64({h.b, h.s, h.g * h.r, h.v}),
                   lse = f64({h.b, h.s, h.g * h.r});
  Attrs attrs = {{"causal", int64_t{h.causal}}, {"scale", 0.125}, {"r", h.r}};
  const bool dropout = h.dropout > 0;
  if (dropout) {
    attrs.set("dropout", h.dropout);
    attrs.set("name", std::string("h.0.attention"));
  }
  const std::string step = dropout ? "," : "",
                    notes = dropout ? ",b:indexed,g:indexed,r:indexed" : "";
  OpCase forward = {
      .op = &ops::attention,
      .factors = "bs(gr)E,btgE,btgV" + step + "->bs(gr)V,bs(gr)|s:indexed,t:indexed" + notes,
      .attrs = attrs,
      .in = {q, k, v}};
  OpCase backward = {.op = &ops::attention_backward,
                     .factors = "bs(gr)V,bs(gr)E,btgE,btgV,bs(gr)V,bs(gr)" + step +
                                "->bs(gr)E,btgE,btgV|s:indexed,t:indexed" + notes,
                     .attrs = attrs,
                     .in = {o, q, k, v, o, lse},
                     .ranges = {kAny, kAny, kAny, kAny, kAny, {3, 5}}};
  for (OpCase* c : {&forward, &backward}) {
    c->ranges.resize(c->in.size(), kAny);
    if (dropout) {
      c->in.push_back(i32({}));
      c->ranges.push_back({1, 9});
    }
    check_on_gpu(shard ? shard_of(*c) : testing::application_of(*c, 5), *c);
  }
}

TEST_F(RestOnGpu, Attention) {
  for (const Heads& h : {
           Heads{1, 1, 1, 1, 1, 1, 1, true},
           Heads{2, 77, 77, 2, 1, 64, 64, true},
           Heads{1, 100, 33, 1, 3, 40, 24, false},
           Heads{1, 65, 130, 2, 2, 128, 128, true},
           Heads{1, 40, 70, 1, 2, 192, 128, true},
           Heads{1, 33, 64, 1, 1, 256, 256, false},
           Heads{2, 64, 64, 2, 2, 32, 64, true, 0.2},
       }) {
    check_attention(h, false);
  }
}

TEST_F(RestOnGpu, AttentionOfShards) {
  check_attention({2, 36, 44, 2, 2, 24, 40, true}, true);
  check_attention({2, 36, 44, 2, 2, 24, 40, true, 0.3}, true);
}

// Each of n blocks of keys attended to by itself, as the split along the keys makes it.
TEST_F(RestOnGpu, AttentionByBlocksOfKeys) {
  for (const double rate : {0.0, 0.3}) {
    OpCase c = {
        .op = &ops::attention,
        .factors = "bs(gr)E,b(nT)gE,b(nT)gV->bns(gr)V,bns(gr)|s:indexed,T:indexed,n:indexed",
        .attrs = {{"causal", int64_t{1}}, {"scale", 0.3}, {"r", int64_t{2}}, {"n", int64_t{4}}},
        .in = {f64({2, 48, 4, 16}), f64({2, 48, 2, 16}), f64({2, 48, 2, 24})}};
    if (rate > 0) {
      c.factors =
          "bs(gr)E,b(nT)gE,b(nT)gV,->bns(gr)V,bns(gr)"
          "|s:indexed,T:indexed,n:indexed,b:indexed,g:indexed,r:indexed";
      c.attrs.set("dropout", rate);
      c.attrs.set("name", std::string("attention"));
      c.in.push_back(i32({}));
      c.ranges = {kAny, kAny, kAny, {1, 9}};
    }
    check_on_gpu(c);
    check_on_gpu(shard_of(c), c);
  }
}

TEST_F(RestOnGpu, AttentionMerged) {
  for (const int64_t width : {1, 7, 64, 128, 250}) {
    const TensorType o = f64({2, 31, 3, width}), lse = f64({2, 31, 3});
    check_on_gpu(
        {.op = &ops::attention_merge, .in = {o, lse, o, lse}, .in_place = {{0, 0}, {1, 1}}});
  }
}

#else

TEST(RestOnGpu, NeedsABuildWithCuda) { GTEST_SKIP() << "built without CUDA"; }

#endif

}  // namespace
}  // namespace cleave
