// The cases of chains: one of each kind of kernel, and of each way to share it out.
#include <string>

#include "kernels/ops.h"
#include "tests/support/op_cases.h"

namespace cleave::testing {

std::vector<OpCase> chain_op_cases() {
  std::vector<OpCase> cases;
  const auto add = [&](const char* factors, const char* parts, const char* results,
                       std::vector<TensorType> in,
                       std::vector<std::pair<size_t, size_t>> in_place = {}) {
    cases.push_back({.op = &ops::chain,
                     .factors = factors,
                     .attrs = {{"parts", std::string(parts)}, {"results", std::string(results)}},
                     .in = std::move(in),
                     .in_place = std::move(in_place)});
  };
  // Elements: broadcast along each side, two results, one over an operand.
  for (const Shape& shape : {Shape{8, 12, 20}, Shape{4, 16, 64}}) {
    add("abc,c,ab,->abc,abc",
        "mul abc,c->abc 0 1; add abc,ab->abc p0 2; tanh abc->abc p1; mul abc,->abc p2 3; "
        "swiglu_backward abc,abc,abc->abc,abc 0 p1 p3",
        "p3 p4.1", {f64(shape), f64({shape[2]}), f64({shape[0], shape[1]}), f64({})}, {{0, 0}});
  }
  // Rows that are held: a softmax between maps, a norm, and their statistics.
  for (const Shape& shape : {Shape{8, 20}, Shape{12, 256}, Shape{4, 1200}}) {
    const TensorType x = f64(shape), row = f64({shape[1]}), column = f64({shape[0]});
    add("aB,B,a->aB,a",
        "scale ab->ab 0 value=d0.5; add ab,b->ab p0 1; softmax aB->aB p1; mul ab,a->ab p2 2; "
        "sum ab->a p3",
        "p3 p4", {x, row, column}, {{0, 0}});
    add("aB,aB,B->aB,aB,a",
        "add ab,ab->ab 0 1; square ab->ab p0; sum ab->a p1; add_scalar a->a p2 value=d1.0; "
        "sqrt a->a p3; reciprocal a->a p4; mul ab,a->ab p0 p5; mul ab,b->ab p6 2",
        "p7 p0 p5", {x, x, row}, {{0, 1}});
    add("aB,aB->aB,a",
        "logsumexp ab->a|b:lse 0; sub ab,a->ab 0 p0; exp ab->ab p1; softmax_backward aB,aB->aB p2 "
        "1; "
        "max ab->a|b:max 1",
        "p3 p4", {x, x});
  }
  // Columns, in pieces; everything; a few long rows.
  add("Ab,Ab,b->Ab,b,b",
      "gelu_backward ab,ab->ab 0 1; sum ab->b p0; mul ab,ab->ab p0 1; sum ab->b p2; "
      "add b,b->b p3 2; max ab->b|a:max 1",
      "p0 p4 p5", {f64({120, 24}), f64({120, 24}), f64({24})}, {{0, 0}});
  add("AB,AB->", "sub ab,ab->ab 0 1; square ab->ab p0; sum ab-> p1; scale -> p2 value=d0.01", "p3",
      {f64({16, 20}), f64({16, 20})});
  add("AB->", "square ab->ab 0; sum ab-> p0; sqrt -> p1", "p2", {f64({64, 320})});
  add("aBC->a,aBC", "tanh abc->abc 0; sum abc->a p0", "p1 p0", {f64({4, 64, 160})});
  // Reductions over the dimensions around one, and over the first of three.
  add("AbC->b", "square abc->abc 0; sum abc->b p0", "p1", {f64({8, 12, 20})});
  add("Abc,c->bc", "mul abc,c->abc 0 1; sum abc->bc p0", "p1", {f64({40, 4, 12}), f64({12})});
  // A mask, with what is beside it, and in rows.
  const std::string dropped = "dropout ab,->ab|a:indexed,b:indexed 0 1 name=sdrop p=d0.3";
  cases.push_back(
      {.op = &ops::chain,
       .factors = "AB,,AB->AB|A:indexed,B:indexed",
       .attrs = {{"parts", dropped + "; add ab,ab->ab p0 2"}, {"results", std::string("p1")}},
       .in = {f64({8, 20}), i32({}), f64({8, 20})},
       .ranges = {{}, {1, 9}}});
  cases.push_back({.op = &ops::chain,
                   .factors = "AB,,AB->AB,A|A:indexed,B:indexed",
                   .attrs = {{"parts", dropped + "; add ab,ab->ab p0 2; sum ab->a p1; "
                                                 "sub ab,a->ab p1 p2"},
                             {"results", std::string("p3 p2")}},
                   .in = {f64({12, 64}), i32({}), f64({12, 64})},
                   .ranges = {{}, {1, 9}}});
  return cases;
}

}  // namespace cleave::testing
