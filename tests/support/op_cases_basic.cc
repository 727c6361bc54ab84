// The cases of contractions, pointwise ops, views, assembly and reductions.
#include "kernels/ops.h"
#include "tests/support/op_cases.h"

namespace cleave::testing {
namespace {

void add_matmuls(std::vector<OpCase>& cases) {
  const OpDef* op = &ops::matmul;
  cases.push_back({.op = op, .in = {f64({4, 8, 12}), f64({16, 12})}});
  cases.push_back({.op = op, .factors = "bsk,nk->bsn", .in = {f64({4, 8, 12}), f64({16, 12})}});
  cases.push_back({.op = op, .factors = "bsn,nk->bsk", .in = {f64({4, 8, 16}), f64({16, 12})}});
  cases.push_back({.op = op, .factors = "bsk,bsn->nk", .in = {f64({4, 8, 12}), f64({4, 8, 16})}});
  cases.push_back({.op = op, .factors = "bmk,bkn->bmn", .in = {f64({4, 8, 12}), f64({4, 12, 16})}});
  cases.push_back(
      {.op = op, .factors = "bshe,bthe->bhst", .in = {f64({4, 8, 4, 12}), f64({4, 16, 4, 12})}});
  cases.push_back({.op = op,
                   .factors = "bs(hd),nh->bsnd",
                   .attrs = {{"h", int64_t{4}}},
                   .in = {f64({4, 8, 32}), f64({12, 4})}});
  cases.push_back({.op = op, .factors = "k,k->", .in = {f64({16}), f64({16})}});
  cases.push_back({.op = op, .factors = "mk,k->m", .in = {f64({8, 12}), f64({12})}});
  cases.push_back({.op = op, .factors = "m,n->nm", .in = {f64({8}), f64({12})}});
}

void add_linears(std::vector<OpCase>& cases) {
  const Attrs bias = {{"bias", int64_t{1}}}, residual = {{"residual", int64_t{1}}};
  const Attrs both = {{"bias", int64_t{1}}, {"residual", int64_t{1}}};
  const TensorType x = f64({4, 8, 12}), w = f64({16, 12}), b = f64({16}), r = f64({4, 8, 16});
  const auto add = [&](std::string factors, Attrs attrs, std::vector<TensorType> in) {
    std::vector<std::pair<size_t, size_t>> in_place;
    if (attrs.has("residual")) in_place = {{0, in.size() - 1}};
    cases.push_back({.op = &ops::linear,
                     .factors = std::move(factors),
                     .attrs = std::move(attrs),
                     .in = std::move(in),
                     .in_place = std::move(in_place),
                     .gradient = false});
  };
  add("bsK,nK,n->bsn", bias, {x, w, b});
  add("bsK,nK,bsn->bsn", residual, {x, w, r});
  add("bsK,nK,n,bsn->bsn", both, {x, w, b, r});
  add("BSk,BSn,nk->nk", residual, {x, r, w});
  add("bsN,Nk,k->bsk", bias, {f64({4, 8, 16}), w, f64({12})});
  // One column lies as rows do and as columns do.
  add("bsK,nK,n->bsn", bias, {x, f64({1, 12}), f64({1})});
  add("bsK,nK,n,bsn->bsn", both, {x, f64({1, 12}), f64({1}), f64({4, 8, 1})});
  // Results whose last factor is not all of what one operand alone has.
  add("bsK,hdK,d->bshd", bias, {x, f64({4, 8, 12}), f64({8})});
  add("mK,bKn,n->bmn", bias, {f64({8, 12}), f64({4, 12, 16}), f64({16})});
  // With GELU; rows of 32 bytes and more, of every type, can be made with the product on a GPU.
  const Attrs gelu = {{"gelu", int64_t{1}}}, backward = {{"gelu_backward", int64_t{1}}};
  const Attrs bias_gelu = {{"bias", int64_t{1}}, {"gelu", int64_t{1}}};
  const TensorType wide = f64({4, 8, 32}), weight = f64({48, 32}), made = f64({4, 8, 48});
  add("bsK,nK,n->bsn,bsn", bias_gelu, {wide, weight, f64({48})});
  add("bsK,nK->bsn,bsn", gelu, {wide, weight});
  add("bsK,nK,bsn->bsn", backward, {wide, weight, made});
  add("bsN,Nk,bsk->bsk", backward, {made, weight, wide});
  add("bsK,nK->bsn,bsn", gelu, {wide, f64({12, 32})});
  add("bsK,nK,bsn->bsn", backward, {wide, f64({20, 32}), f64({4, 8, 20})});
  add("bsK,nK,n->bsn,bsn", bias_gelu, {x, f64({20, 12}), f64({20})});
  add("bsK,nK,bsn->bsn", backward, {x, f64({12, 12}), f64({4, 8, 12})});
  add("bsK,nK,n->bsn,bsn", bias_gelu, {x, f64({1, 12}), f64({1})});
  add("bsK,nK,bsn->bsn", backward, {x, f64({1, 12}), f64({4, 8, 1})});
  add("mK,bKn->bmn,bmn", gelu, {f64({8, 32}), f64({4, 32, 16})});
  add("mK,bKn,bmn->bmn", backward, {f64({8, 32}), f64({4, 32, 16}), f64({4, 8, 16})});
  // And with the sums of that gradient.
  const Attrs sums = {{"gelu_backward", int64_t{1}}, {"sum", int64_t{1}}, {"wide", int64_t{2}}};
  add("bsN,Nk,bsk->bsk,k", sums, {made, weight, wide});
  add("bsK,nK,bsn->bsn,n", sums, {wide, weight, made});
  add("bsN,Nk,bsk->bsk,k", sums, {f64({4, 8, 20}), f64({20, 12}), x});
  add("bsN,Nk,bsk->bsk,k", sums, {f64({4, 8, 20}), f64({20, 1}), f64({4, 8, 1})});
  add("bsN,Nhd,bshd->bshd,d", sums, {made, f64({48, 4, 16}), f64({4, 8, 4, 16})});
  add("mK,bKn,bmn->bmn,n", sums, {f64({8, 32}), f64({4, 32, 16}), f64({4, 8, 16})});
  add("bsN,Nk,bsk->bsk,k", {{"gelu_backward", int64_t{1}}, {"sum", int64_t{1}}},
      {made, weight, wide});
  // With SwiGLU of both halves of the result, and the gradients of these; by several products, too.
  const Attrs swiglu = {{"swiglu", int64_t{1}}}, of_both = {{"swiglu_backward", int64_t{1}}};
  add("bsK,AnK->bsAn,bsn", swiglu, {wide, f64({2, 48, 32})});
  add("bsK,KAn->bsAn,bsn", swiglu, {wide, f64({32, 2, 48})});
  add("bsK,AnK->bsAn,bsn", swiglu, {x, f64({2, 20, 12})});
  add("bsK,AnK->bsAn,bsn", swiglu, {x, f64({2, 1, 12})});
  add("mK,bAnK->bmAn,bmn", swiglu, {f64({8, 32}), f64({4, 2, 16, 32})});
  add("bsN,Nk,bsk,bsk->bsk,bsk", of_both, {made, weight, wide, wide});
  add("bsN,kN,bsk,bsk->bsk,bsk", of_both, {wide, weight, made, made});
  add("bsN,Nk,bsk,bsk->bsk,bsk", of_both, {f64({4, 8, 20}), f64({20, 12}), x, x});
  add("bmK,bAnK->bmAn,bmn", swiglu, {f64({4, 8, 32}), f64({4, 2, 16, 32})});
  add("bmN,bNk,bmk,bmk->bmk,bmk", of_both,
      {f64({4, 8, 32}), f64({4, 32, 16}), f64({4, 8, 16}), f64({4, 8, 16})});
  add("mN,bNk,bmk,bmk->bmk,bmk", of_both,
      {f64({8, 32}), f64({4, 32, 16}), f64({4, 8, 16}), f64({4, 8, 16})});
}

TensorType f8(DType dtype, Shape shape) { return {dtype, std::move(shape)}; }

void add_products_of_8_bits(std::vector<OpCase>& cases) {
  const TensorType scale = {DType::kF32, {}}, x = f8(DType::kF8E4M3, {4, 8, 12}),
                   w = f8(DType::kF8E4M3, {16, 12}), dy = f8(DType::kF8E5M2, {4, 8, 16});
  const auto add = [&](std::string factors, Attrs attrs, std::vector<TensorType> in) {
    attrs.set("dtype", std::string("f64"));
    cases.push_back({.op = &ops::scaled_matmul,
                     .factors = std::move(factors),
                     .attrs = std::move(attrs),
                     .in = std::move(in),
                     .ranges = {{-2, 2}, {-2, 2}, {0.1, 1}, {0.1, 1}},
                     .gradient = false,
                     .gpu = false});
  };
  const Attrs bias = {{"bias", int64_t{1}}}, residual = {{"residual", int64_t{1}}};
  const Attrs both = {{"bias", int64_t{1}}, {"residual", int64_t{1}}};
  add("bsk,nk,,->bsn", {}, {x, w, scale, scale});
  add("bsn,nk,,->bsk", {}, {dy, w, scale, scale});
  add("bsk,bsn,,->nk", {}, {x, dy, scale, scale});
  add("bsK,nK,,,n->bsn", bias, {x, w, scale, scale, f64({16})});
  add("bsK,nK,,,bsn->bsn", residual, {x, w, scale, scale, f64({4, 8, 16})});
  add("bsK,nK,,,n,bsn->bsn", both, {x, w, scale, scale, f64({16}), f64({4, 8, 16})});
}

void add_quantizations(std::vector<OpCase>& cases) {
  const TensorType history = {DType::kF32, {3, 4}}, sizes = {DType::kF32, {3}};
  for (const char* dtype : {"f8e4m3", "f8e5m2"}) {
    Attrs attrs = {{"dtype", std::string(dtype)}, {"index", int64_t{1}}};
    for (const char* factors : {"AB->AB,BA,", "AB->AB,", "AB->BA,"}) {
      cases.push_back({.op = &ops::quantize,
                       .factors = factors,
                       .attrs = attrs,
                       .in = {f64({12, 20})},
                       .gradient = false,
                       .gpu = false});
    }
    for (const Range past : {Range{0, 0}, Range{0, 3}}) {
      cases.push_back({.op = &ops::quantize,
                       .factors = "BSA,TH,T->BSA,ABS,,T",
                       .attrs = attrs,
                       .in = {f64({4, 8, 12}), history, sizes},
                       .ranges = {{-2, 2}, past, {0, 3}},
                       .in_place = {{3, 2}},
                       .gradient = false,
                       .gpu = false});
    }
  }
  cases.push_back({.op = &ops::size_history,
                   .in = {history, sizes},
                   .ranges = {{0, 3}, {0, 3}},
                   .in_place = {{0, 0}},
                   .gradient = false,
                   .gpu = false});
}

void add_arithmetic(std::vector<OpCase>& cases) {
  for (const OpDef* op : {&ops::add, &ops::sub, &ops::mul, &ops::div}) {
    const std::vector<Range> ranges = {{-1, 1}, {0.5, 2}};
    const std::vector<std::pair<size_t, size_t>> in_place = {{0, 0}};
    const auto add = [&](std::vector<TensorType> in, std::string factors = {}) {
      cases.push_back({.op = op,
                       .factors = std::move(factors),
                       .in = std::move(in),
                       .ranges = ranges,
                       .in_place = in_place});
    };
    add({f64({4, 8, 12}), f64({4, 8, 12})});
    add({f64({4, 8, 12}), f64({12})});
    add({f64({4, 8, 12}), f64({8, 1})});
    add({f64({4, 8, 12}), f64({4, 1, 12})});
    add({f64({4, 8}), f64({})});
    add({f64({}), f64({})});
    cases.push_back({.op = op, .in = {f64({12}), f64({8, 12})}, .ranges = ranges});
    cases.push_back({.op = op, .in = {f64({4, 1, 12}), f64({8, 1})}, .ranges = ranges});
    add({f64({4, 8, 16}), f64({16})}, "ab(cd),(cd)->ab(cd)");
    cases.back().attrs = {{"c", int64_t{4}}};
  }
  cases.push_back({.op = &ops::add_n,
                   .factors = "ab,ab,ab,ab->ab",
                   .in = {f64({8, 12}), f64({8, 12}), f64({8, 12}), f64({8, 12})},
                   .in_place = {{0, 2}}});
  cases.push_back({.op = &ops::add_n, .in = {f64({48, 64}), f64({48, 64})}});
}

void add_unaries(std::vector<OpCase>& cases) {
  const Range any = {-4, 4}, positive = {0.3, 3};
  const auto add = [&](const OpDef& op, Range range, Attrs attrs = {}) {
    cases.push_back({.op = &op,
                     .attrs = attrs,
                     .in = {f64({4, 8, 12})},
                     .ranges = {range},
                     .in_place = {{0, 0}}});
    cases.push_back({.op = &op, .attrs = attrs, .in = {f64({})}, .ranges = {range}});
  };
  add(ops::scale, any, {{"value", -1.5}});
  add(ops::add_scalar, any, {{"value", 0.7}});
  add(ops::neg, any);
  add(ops::exp, any);
  add(ops::log, positive);
  add(ops::sqrt, positive);
  add(ops::square, any);
  add(ops::reciprocal, positive);
  add(ops::copy, any);
  for (const OpDef* op : {&ops::relu, &ops::tanh, &ops::sigmoid, &ops::silu, &ops::gelu}) {
    add(*op, any);
  }
  cases.push_back({.op = &ops::copy, .in = {i32({8, 12})}, .ranges = {{-9, 9}}});
  cases.push_back({.op = &transfer_op, .in = {f64({4, 8, 12})}, .gradient = false});
  cases.push_back({.op = &transfer_op, .in = {f64({})}, .gradient = false});
  cases.push_back(
      {.op = &transfer_op, .in = {i32({8, 12})}, .ranges = {{-9, 9}}, .gradient = false});
}

void add_conversions(std::vector<OpCase>& cases) {
  const auto to = [](const char* dtype) { return Attrs{{"dtype", std::string(dtype)}}; };
  cases.push_back({.op = &ops::cast, .attrs = to("f64"), .in = {f64({4, 12})}});
  cases.push_back(
      {.op = &ops::cast, .attrs = to("f64"), .in = {i32({4, 12})}, .ranges = {{-9, 9}}});
  cases.push_back({.op = &ops::cast, .attrs = to("f32"), .in = {f64({4, 12})}, .gradient = false});
  cases.push_back(
      {.op = &ops::cast, .attrs = to("f64"), .in = {{DType::kF32, {4, 12}}}, .gradient = false});
  cases.push_back({.op = &ops::fill,
                   .factors = "->a(bc)",
                   .attrs = {{"a", int64_t{4}},
                             {"b", int64_t{8}},
                             {"c", int64_t{12}},
                             {"dtype", std::string("f64")},
                             {"value", 2.5}}});
  cases.push_back({.op = &ops::fill,
                   .factors = "->",
                   .attrs = {{"dtype", std::string("i32")}, {"value", 3.0}}});
  cases.push_back({.op = &ops::not_equal,
                   .attrs = {{"dtype", std::string("f64")}, {"value", int64_t{2}}},
                   .in = {i32({4, 12})},
                   .ranges = {{0, 4}}});
}

void add_backwards(std::vector<OpCase>& cases) {
  for (const OpDef* op : {&ops::relu_backward, &ops::tanh_backward, &ops::sigmoid_backward,
                          &ops::silu_backward, &ops::gelu_backward, &ops::swiglu}) {
    cases.push_back({.op = op,
                     .in = {f64({4, 8, 12}), f64({4, 8, 12})},
                     .ranges = {{-3, 3}, {-1, 1}},
                     .in_place = {{0, 1}}});
  }
  cases.push_back({.op = &ops::swiglu_backward,
                   .in = {f64({4, 8, 12}), f64({4, 8, 12}), f64({4, 8, 12})},
                   .ranges = {{-3, 3}, {-1, 1}, {-1, 1}}});
}

void add_views(std::vector<OpCase>& cases) {
  const auto add = [&](const OpDef& op, const char* factors, std::vector<TensorType> in,
                       Attrs attrs = {}) {
    cases.push_back(
        {.op = &op, .factors = factors, .attrs = std::move(attrs), .in = std::move(in)});
  };
  add(ops::reshape, "bs(hd)->bshd", {f64({4, 8, 48})}, {{"h", int64_t{4}}});
  add(ops::reshape, "bshd->bs(hd)", {f64({4, 8, 4, 12})});
  add(ops::reshape, "(ab)c->a(bc)", {f64({32, 12})}, {{"a", int64_t{4}}});
  add(ops::reshape, "AB->CD", {f64({6, 10})}, {{"C", int64_t{4}}, {"D", int64_t{15}}});
  add(ops::reshape, "aBC->aDE", {f64({4, 6, 10})}, {{"D", int64_t{15}}, {"E", int64_t{4}}});
  add(ops::reshape, "ab->a1b", {f64({4, 8})});
  add(ops::reshape, "a1b->(ab)", {f64({4, 1, 8})});
  cases.push_back({.op = &ops::reshape, .in = {i32({4, 8})}, .ranges = {{-9, 9}}});
  add(ops::transpose, "", {f64({4, 8, 12})});
  add(ops::transpose, "abc->cab", {f64({4, 8, 12})});
  add(ops::transpose, "a(bc)d->d(bc)a", {f64({4, 32, 12})}, {{"b", int64_t{8}}});
  add(ops::expand, "ac->abc", {f64({4, 12})}, {{"b", int64_t{8}}});
  add(ops::expand, "a1->ab", {f64({4, 1})}, {{"b", int64_t{8}}});
  add(ops::expand, "->ab", {f64({})}, {{"a", int64_t{4}}, {"b", int64_t{8}}});
  add(ops::expand, "a->a(bc)", {f64({4})}, {{"b", int64_t{8}}, {"c", int64_t{12}}});
  const auto bounds = [](int64_t start, int64_t stop, int64_t step, char letter, int64_t size) {
    Attrs attrs = {{"start", start}, {"step", step}};
    if (stop >= 0) attrs.set("stop", stop);
    if (letter != 0) attrs.set(std::string_view(&letter, 1), size);
    return attrs;
  };
  add(ops::slice, "aXc->aYc", {f64({4, 10, 12})}, bounds(2, 7, 1, 'Y', 5));
  add(ops::slice, "aXc->aYc", {f64({4, 10, 12})}, bounds(1, 10, 3, 'Y', 3));
  add(ops::slice, "X->Y", {f64({10})}, bounds(9, 10, 1, 'Y', 1));
  add(ops::unbind, "bsChe->bshe,bshe,bshe", {f64({4, 8, 3, 4, 12})});
  add(ops::unbind, "bs(Ch)->bsh,bsh,bsh", {f64({4, 8, 36})}, {{"C", int64_t{3}}});
  add(ops::unbind, "bs(Che)->bs(he),bs(he)", {f64({4, 8, 96})},
      {{"C", int64_t{2}}, {"h", int64_t{4}}});
  add(ops::unslice, "aYc->aXc", {f64({4, 5, 12})}, bounds(2, -1, 1, 'X', 10));
  add(ops::unslice, "aYc->aXc", {f64({4, 3, 12})}, bounds(1, -1, 3, 'X', 9));
  cases.push_back({.op = &ops::write_slice,
                   .factors = "aXc,aYc->aXc",
                   .attrs = bounds(2, 7, 1, 0, 0),
                   .in = {f64({4, 10, 12}), f64({4, 5, 12})},
                   .in_place = {{0, 0}}});
  cases.push_back({.op = &ops::write_slice,
                   .factors = "aX,aY->aX",
                   .attrs = bounds(1, 10, 3, 0, 0),
                   .in = {f64({4, 10}), f64({4, 3})},
                   .in_place = {{0, 0}}});
  add(ops::stack, "bshe,bshe,bshe->bsChe",
      {f64({4, 8, 4, 12}), f64({4, 8, 4, 12}), f64({4, 8, 4, 12})}, {{"C", int64_t{3}}});
  add(ops::stack, "bs(he),bs(he)->bs(Che)", {f64({4, 8, 48}), f64({4, 8, 48})},
      {{"C", int64_t{2}}, {"h", int64_t{4}}});
  add(ops::concat, "aXc,aYc->aZc", {f64({4, 3, 12}), f64({4, 5, 12})}, {{"Z", int64_t{8}}});
  add(ops::concat, "X,Y,X->Z", {f64({3}), f64({5}), f64({3})}, {{"Z", int64_t{11}}});
}

void add_reductions(std::vector<OpCase>& cases) {
  const auto add = [&](const OpDef& op, const char* factors, std::vector<TensorType> in,
                       Attrs attrs = {}) {
    cases.push_back({.op = &op,
                     .factors = factors,
                     .attrs = std::move(attrs),
                     .in = std::move(in),
                     .ranges = {{-4, 4}}});
  };
  add(ops::sum, "", {f64({4, 8, 12})});
  add(ops::sum, "abc->ac", {f64({4, 8, 12})});
  add(ops::sum, "abc->c", {f64({4, 8, 12})});
  add(ops::sum, "abc->b", {f64({4, 8, 12})});
  add(ops::sum, "abc->a1c", {f64({4, 8, 12})});
  add(ops::sum, "ab->", {f64({64, 48})});
  add(ops::sum, "abc->ba", {f64({4, 8, 12})});
  add(ops::sum, "ab->b", {f64({200, 300})});
  // So many rows that several blocks share them.
  add(ops::sum, "ab->b", {f64({1100, 72})});
  add(ops::sum, "abc->c", {f64({36, 16, 200})});
  add(ops::sum, "a(gr)c->agc", {f64({4, 32, 12})}, {{"g", int64_t{8}}});
  add(ops::sum, "a(gr)c->a(gr)", {f64({4, 32, 12})}, {{"g", int64_t{8}}});
  add(ops::max, "", {f64({4, 8, 12})});
  add(ops::max, "abc->ac|b:max", {f64({4, 8, 12})});
  add(ops::max, "abc->|a:max,b:max,c:max", {f64({4, 8, 12})});
  add(ops::logsumexp, "", {f64({4, 8, 12})});
  add(ops::logsumexp, "abc->ac|b:lse", {f64({4, 8, 12})});
  add(ops::logsumexp, "abc->a1c|b:lse", {f64({4, 8, 12})});
  add(ops::logsumexp, "ab->a|b:lse", {f64({4, 600})});
}

}  // namespace

std::vector<OpCase> basic_op_cases() {
  std::vector<OpCase> cases;
  add_matmuls(cases);
  add_linears(cases);
  add_products_of_8_bits(cases);
  add_quantizations(cases);
  add_arithmetic(cases);
  add_unaries(cases);
  add_conversions(cases);
  add_backwards(cases);
  add_views(cases);
  add_reductions(cases);
  return cases;
}

}  // namespace cleave::testing
