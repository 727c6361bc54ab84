// Larger and odd shapes of norms, softmax, losses, embeddings, rotary embedding and reductions, and
// shards of what depends on where a shard lies: on the GPU against the CPU in double.
#include <fmt/format.h>
#include <gtest/gtest.h>

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

constexpr Range kAny = {-2, 2}, kPositive = {0.5, 2};

std::string name_of_shape(const ::testing::TestParamInfo<Shape>& of) {
  return fmt::format("{}x{}", of.param[0], of.param[1]);
}

class RowsOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::has_gpu()) GTEST_SKIP() << "no GPU here";
  }
};

// Rows and their length: one element, odd ones, those of models, longer than any block's registers,
// and more rows than blocks.
const std::vector<Shape> kRows = {{3, 1},    {5, 7},     {33, 768},  {9, 1600},  {7, 4096},
                                  {3, 8192}, {2, 16384}, {2, 24576}, {2, 50257}, {2100, 8},
                                  {700, 96}, {1, 1},     {300, 264}};

// A shape each, so that sanitizers can be spared the largest.
class ShapesOnGpu : public RowsOnGpu, public ::testing::WithParamInterface<Shape> {
 protected:
  const int64_t rows_ = GetParam()[0], length_ = GetParam()[1];
  const TensorType x_ = f64(GetParam()), d_ = f64({length_}), row_ = f64({rows_});
  const Attrs eps_ = {{"eps", 1e-5}};
  // The backward pass of a norm also adds a residual's gradient, and sums what it writes.
  const Attrs more_ = {{"residual", int64_t{1}}, {"sum", int64_t{1}}, {"wide", int64_t{6}}};
};

TEST_P(ShapesOnGpu, LayerNorm) {
  check_on_gpu({.op = &ops::layer_norm, .attrs = eps_, .in = {x_, d_, d_}, .ranges = {kAny}});
}

TEST_P(ShapesOnGpu, RmsNorm) {
  check_on_gpu({.op = &ops::rms_norm, .attrs = eps_, .in = {x_, d_}, .ranges = {kAny}});
}

TEST_P(ShapesOnGpu, BackwardOfLayerNorm) {
  const std::vector<Range> ranges = {{}, {}, kAny, {-0.1, 0.1}, kPositive};
  check_on_gpu({.op = &ops::layer_norm_backward, .in = {x_, x_, d_, row_, row_}, .ranges = ranges});
  check_on_gpu({.op = &ops::layer_norm_backward,
                .factors = "bD,bD,D,b,b,bD->bD,D,D,D",
                .attrs = more_,
                .in = {x_, x_, d_, row_, row_, x_},
                .ranges = ranges});
}

TEST_P(ShapesOnGpu, BackwardOfRmsNorm) {
  const std::vector<Range> ranges = {{}, {}, kAny, kPositive};
  check_on_gpu({.op = &ops::rms_norm_backward, .in = {x_, x_, d_, row_}, .ranges = ranges});
  check_on_gpu({.op = &ops::rms_norm_backward,
                .factors = "bD,bD,D,b,bD->bD,D,D",
                .attrs = more_,
                .in = {x_, x_, d_, row_, x_},
                .ranges = ranges});
}

TEST_P(ShapesOnGpu, GeluBackwardAndItsSum) {
  check_on_gpu({.op = &ops::gelu_backward,
                .factors = "...d,...d->...d,d",
                .attrs = {{"sum", int64_t{1}}, {"wide", int64_t{2}}},
                .in = {x_, x_},
                .ranges = {{-4, 4}},
                .in_place = {{0, 1}}});
}

TEST_P(ShapesOnGpu, Softmax) {
  check_on_gpu({.op = &ops::softmax, .in = {x_}, .ranges = {{-6, 6}}});
  check_on_gpu({.op = &ops::softmax_backward,
                .in = {x_, x_},
                .ranges = {{0, 2.0 / static_cast<double>(length_)}}});
}

void ignore_every_second(std::vector<HostTensor>& in) {
  for (size_t i = 0; i < in[1].numbers.size(); i += 2) in[1].numbers[i] = -100;
}

TEST_P(ShapesOnGpu, Losses) {
  const TensorType targets = i32({rows_});
  const Range classes = {0, static_cast<double>(length_)};
  for (void (*prepare)(std::vector<HostTensor>&) :
       {+[](std::vector<HostTensor>&) {}, &ignore_every_second}) {
    check_on_gpu({.op = &ops::cross_entropy,
                  .in = {x_, targets},
                  .ranges = {{-8, 8}, classes},
                  .prepare = prepare});
    const OpCase backward = {.op = &ops::cross_entropy_backward,
                             .factors = "bv,b,b,b->bv|v:indexed",
                             .in = {x_, targets, row_, row_},
                             .ranges = {kAny, classes, {2, 10}, kAny},
                             .in_place = {{0, 0}},
                             .prepare = prepare};
    check_on_gpu(backward);
    const OpCase pick = {.op = &ops::pick,
                         .factors = "bv,b->b|v:indexed",
                         .in = {x_, targets},
                         .ranges = {kAny, classes},
                         .prepare = prepare};
    check_on_gpu(pick);
    check_on_gpu(shard_of(backward), backward);
    check_on_gpu(shard_of(pick), pick);
  }
}

INSTANTIATE_TEST_SUITE_P(Rows, ShapesOnGpu, ::testing::ValuesIn(kRows), name_of_shape);

// Of rows that few or many threads hold, or none; and of columns and everything, in pieces.
class ChainsOnGpu : public ShapesOnGpu {};

TEST_P(ChainsOnGpu, OfRowsColumnsAndEverything) {
  const auto check = [&](const char* factors, const char* parts, const char* results,
                         std::vector<TensorType> in, Range range) {
    const std::vector<Range> ranges(in.size(), range);
    check_on_gpu({.op = &ops::chain,
                  .factors = factors,
                  .attrs = {{"parts", std::string(parts)}, {"results", std::string(results)}},
                  .in = std::move(in),
                  .ranges = ranges});
  };
  check("aB->a", "logsumexp ab->a|b:lse 0; max ab->a|b:max 0; sub a,a->a p0 p1", "p2", {x_}, kAny);
  check("aB,B->aB,a",
        "mul ab,b->ab 0 1; tanh ab->ab p0; square ab->ab p1; sum ab->a p2; "
        "add_scalar a->a p3 value=d1.0; div ab,a->ab p1 p4",
        "p5 p3", {x_, d_}, kAny);
  check("aB,aB,aB->aB", "softmax aB->aB 0; mul ab,ab->ab p0 1; add ab,ab->ab p1 2; neg ab->ab p2",
        "p3", {x_, x_, x_}, kAny);
  check("Ab,Ab->b", "mul ab,ab->ab 0 1; sum ab->b p0", "p1", {x_, x_}, kPositive);
  check("AB,AB->", "mul ab,ab->ab 0 1; sum ab-> p0; sqrt -> p1", "p2", {x_, x_}, kPositive);
}

INSTANTIATE_TEST_SUITE_P(Rows, ChainsOnGpu,
                         ::testing::Values(Shape{3, 1}, Shape{33, 768}, Shape{7, 4096},
                                           Shape{2, 3000}, Shape{2, 6144}, Shape{2, 12000},
                                           Shape{2, 20001}, Shape{2, 32001}, Shape{3, 32768},
                                           Shape{2, 50257}, Shape{2100, 8}, Shape{3000, 600}),
                         name_of_shape);

// So many rows that a group of the backward's threads takes several in turn: some of a warp, some
// of several, of one vector a thread, of two and of four.
class RowsInTurnOnGpu : public ShapesOnGpu {};

TEST_P(RowsInTurnOnGpu, BackwardOfNorms) {
  const std::vector<Range> ranges = {{}, {}, kAny, {-0.1, 0.1}, kPositive};
  check_on_gpu({.op = &ops::layer_norm_backward, .in = {x_, x_, d_, row_, row_}, .ranges = ranges});
  check_on_gpu({.op = &ops::rms_norm_backward,
                .in = {x_, x_, d_, row_},
                .ranges = {{}, {}, kAny, kPositive}});
  // In place of the residual.
  check_on_gpu({.op = &ops::layer_norm_backward,
                .factors = "bD,bD,D,b,b,bD->bD,D,D,D",
                .attrs = more_,
                .in = {x_, x_, d_, row_, row_, x_},
                .ranges = ranges,
                .in_place = {{0, 5}}});
}

INSTANTIATE_TEST_SUITE_P(Rows, RowsInTurnOnGpu,
                         ::testing::Values(Shape{7000, 8}, Shape{1700, 264}, Shape{410, 1600},
                                           Shape{300, 4096}, Shape{300, 16384}),
                         name_of_shape);

// Of rows in the shared memory of one, two, four or eight blocks, by the type, and longer ones.
TEST_F(RowsOnGpu, LossesWithTheirGradients) {
  for (const int64_t n : {int64_t{1000}, int64_t{50304}, int64_t{57352}, int64_t{128256}}) {
    const TensorType x = f64({5, n}), targets = i32({5}), row = f64({5});
    check_on_gpu({.op = &ops::cross_entropy_both,
                  .factors = "bV,b,b->b,b,bV|V:indexed",
                  .in = {x, targets, row},
                  .ranges = {{-8, 8}, {0, static_cast<double>(n)}, kAny},
                  .in_place = {{2, 0}},
                  .prepare = [](std::vector<HostTensor>& in) {
                    const auto last = static_cast<double>(in[0].type.shape[1] - 1);
                    in[1].numbers[0] = last;
                    in[1].numbers[1] = 0;
                    in[1].numbers[2] = -100;  // ignored
                  }});
  }
}

TEST_F(RowsOnGpu, Embeddings) {
  struct Table {
    int64_t rows, width, tokens;
    double ids;  // are below this
  };
  for (const Table& t : {
           Table{1, 1, 1, 1},
           Table{16, 7, 100, 16},
           Table{50, 768, 300, 50},
           Table{1000, 64, 5000, 1000},
           Table{1000, 24, 5000, 3},  // few rows have all tokens
           Table{300, 8, 3000, 1},    // one row has
           Table{5000, 1600, 33, 5000},
           Table{64, 4096, 64, 64},
       }) {
    const Range ids = {0, t.ids};
    const OpCase forward = {.op = &ops::embedding,
                            .in = {f64({t.rows, t.width}), i32({t.tokens})},
                            .ranges = {{}, ids}};
    const OpCase backward = {.op = &ops::embedding_backward,
                             .factors = "bd,b->vd|v:indexed",
                             .attrs = {{"v", t.rows}},
                             .in = {f64({t.tokens, t.width}), i32({t.tokens})},
                             .ranges = {{}, ids}};
    check_on_gpu(forward);
    check_on_gpu(backward);
    // Every second token or so is another shard's.
    OpCase part = forward;
    part.ranges = {{}, {0, 4.0 * static_cast<double>(t.rows)}};
    if (t.rows % 2 != 0) continue;
    check_on_gpu(shard_of(part), part);
    part = backward;
    part.ranges = {{}, {0, 4.0 * static_cast<double>(t.rows)}};
    check_on_gpu(shard_of(part), part);
  }
}

TEST_F(RowsOnGpu, Rotary) {
  struct Heads {
    int64_t b, s, h, e, start;
  };
  for (const Heads& n :
       {Heads{1, 1, 1, 2, 0}, Heads{2, 130, 3, 64, 0}, Heads{1, 64, 5, 192, 128},
        Heads{3, 33, 2, 20, 6}, Heads{1, 1500, 2, 128, 0}, Heads{2, 50, 9, 200, 0}}) {
    for (const int64_t inverse : {0, 1}) {
      const OpCase c = {.op = &ops::rotary,
                        .attrs = {{"theta", 10000.0}, {"inverse", inverse}, {"start", n.start}},
                        .in = {f64({n.b, n.s, n.h, n.e})},
                        .in_place = {{0, 0}}};
      check_on_gpu(c);
      check_on_gpu(shard_of(c), c);
    }
  }
}

// The loops of a reduction's operand and result, without what it does to those that it lacks.
struct Reduction {
  const char* factors;
  Shape shape;
};

const std::vector<Reduction> kReductions = {
    {"a->", {1}},
    {"a->", {70001}},
    {"a->", {1 << 18}},
    {"ab->a", {300, 768}},
    {"ab->a", {3, 50257}},
    {"ab->a", {5, 16384}},
    {"ab->a", {5000, 7}},
    {"ab->b", {1024, 768}},
    {"ab->b", {513, 1600}},
    {"ab->b", {7, 12288}},
    {"ab->b", {20000, 3}},
    {"ab->b", {4000, 8}},
    {"abc->b", {16, 12, 640}},
    {"abc->b", {700, 3, 5}},
    {"abc->ac", {33, 65, 72}},
    {"abc->ca", {5, 300, 16}},
    {"abcd->bd", {6, 7, 8, 24}},
};

// The factors with each loop that the result lacks combined by `how`: "ab->a|b:max".
std::string combined(const Reduction& r, const std::string& how) {
  const std::string factors = r.factors, from = factors.substr(0, factors.find('-'));
  const std::string to = factors.substr(factors.find('>') + 1);
  std::string out = factors;
  char before = '|';
  for (const char loop : from) {
    if (to.find(loop) != std::string::npos) continue;
    out += before + std::string(1, loop) + ":" + how;
    before = ',';
  }
  return out;
}

TEST_F(RowsOnGpu, Sums) {
  for (const Reduction& r : kReductions) {
    check_on_gpu(
        {.op = &ops::sum, .factors = r.factors, .in = {f64(r.shape)}, .ranges = {{-0.3, 0.3}}});
  }
}

TEST_F(RowsOnGpu, Maxima) {
  for (const Reduction& r : kReductions) {
    check_on_gpu({.op = &ops::max, .factors = combined(r, "max"), .in = {f64(r.shape)}});
  }
}

TEST_F(RowsOnGpu, LogarithmsOfSums) {
  for (const Reduction& r : kReductions) {
    check_on_gpu({.op = &ops::logsumexp,
                  .factors = combined(r, "lse"),
                  .in = {f64(r.shape)},
                  .ranges = {{-8, 8}}});
  }
}

#else

TEST(RowsOnGpu, NeedsABuildWithCuda) { GTEST_SKIP() << "built without CUDA"; }

#endif

}  // namespace
}  // namespace cleave
