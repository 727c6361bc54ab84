// The cases of softmax, norms, embedding, rotary, attention, dropout, the loss and the optimizers.
#include <fmt/format.h>

#include "kernels/ops.h"
#include "tests/support/op_cases.h"

namespace cleave::testing {
namespace {

constexpr Range kAny = {-2, 2}, kPositive = {0.5, 2};

void add_softmax(std::vector<OpCase>& cases) {
  cases.push_back({.op = &ops::softmax, .in = {f64({4, 8, 12})}, .ranges = {{-4, 4}}});
  cases.push_back({.op = &ops::softmax, .in = {f64({16})}, .ranges = {{-4, 4}}});
  // Along a dimension that is not the last.
  cases.push_back({.op = &ops::softmax, .factors = "aXb->aXb", .in = {f64({4, 8, 12})}});
  cases.push_back({.op = &ops::softmax_backward, .in = {f64({4, 8, 12}), f64({4, 8, 12})}});
  cases.push_back({.op = &ops::softmax_backward,
                   .factors = "aXb,aXb->aXb",
                   .in = {f64({4, 8, 12}), f64({4, 8, 12})}});
}

void add_norms(std::vector<OpCase>& cases) {
  for (const Shape& shape : {Shape{4, 8, 20}, Shape{8, 12}, Shape{16}}) {
    const Shape rows(shape.begin(), shape.end() - 1), width = {shape.back()};
    const TensorType x = f64(shape), d = f64(width), row = f64(rows);
    const Attrs eps = {{"eps", 1e-5}};
    cases.push_back({.op = &ops::layer_norm,
                     .attrs = eps,
                     .in = {x, d, d},
                     .ranges = {kAny},
                     .grad_outputs = 1});
    cases.push_back({.op = &ops::layer_norm_backward,
                     .in = {x, x, d, row, row},
                     .ranges = {kAny, kAny, kAny, kAny, kPositive}});
    cases.push_back(
        {.op = &ops::rms_norm, .attrs = eps, .in = {x, d}, .ranges = {kAny}, .grad_outputs = 1});
    cases.push_back({.op = &ops::rms_norm_backward,
                     .in = {x, x, d, row},
                     .ranges = {kAny, kAny, kAny, kPositive}});
    // With another gradient added to dx, and with its sum over rows; both; stored in f32.
    for (const int64_t sum : {0, 1}) {
      for (const int64_t residual : {0, 1}) {
        if (sum + residual == 0) continue;
        Attrs attrs = {{"wide", int64_t{2 + 8 * sum}}};
        if (sum != 0) attrs.set("sum", sum);
        if (residual != 0) attrs.set("residual", residual);
        const std::string r = residual != 0 ? ",...D" : "", total = sum != 0 ? ",D" : "";
        std::vector<TensorType> layer = {x, x, d, row, row}, rms = {x, x, d, row};
        if (residual != 0) layer.push_back(x), rms.push_back(x);
        cases.push_back({.op = &ops::layer_norm_backward,
                         .factors = "...D,...D,D,...,..." + r + "->...D,D,D" + total,
                         .attrs = attrs,
                         .in = layer,
                         .ranges = {kAny, kAny, kAny, kAny, kPositive}});
        cases.push_back({.op = &ops::rms_norm_backward,
                         .factors = "...D,...D,D,..." + r + "->...D,D" + total,
                         .attrs = attrs,
                         .in = rms,
                         .ranges = {kAny, kAny, kAny, kPositive}});
      }
    }
  }
}

void add_activations(std::vector<OpCase>& cases) {
  for (const Shape& shape : {Shape{4, 8, 20}, Shape{16, 12}, Shape{40, 64}}) {
    cases.push_back({.op = &ops::gelu_backward,
                     .factors = "...d,...d->...d,d",
                     .attrs = {{"sum", int64_t{1}}, {"wide", int64_t{2}}},
                     .in = {f64(shape), f64(shape)},
                     .ranges = {{-4, 4}},
                     .in_place = {{0, 1}}});
  }
}

void add_embeddings(std::vector<OpCase>& cases) {
  const Range ids = {0, 16};
  cases.push_back({.op = &ops::embedding, .in = {f64({16, 12}), i32({4, 8})}, .ranges = {{}, ids}});
  cases.push_back({.op = &ops::embedding, .in = {f64({16, 4}), i32({8})}, .ranges = {{}, ids}});
  cases.push_back({.op = &ops::embedding_backward,
                   .attrs = {{"v", int64_t{16}}},
                   .in = {f64({4, 8, 12}), i32({4, 8})},
                   .ranges = {{}, ids}});
  cases.push_back({.op = &ops::embedding_backward,
                   .factors = "bd,b->vd|v:indexed",
                   .attrs = {{"v", int64_t{20}}},
                   .in = {f64({8, 4}), i32({8})},
                   .ranges = {{}, ids}});
}

void add_rotary(std::vector<OpCase>& cases) {
  for (const int64_t inverse : {0, 1}) {
    cases.push_back({.op = &ops::rotary,
                     .attrs = {{"theta", 100.0}, {"inverse", inverse}},
                     .in = {f64({4, 8, 12, 8})}});
  }
  cases.push_back({.op = &ops::rotary,
                   .factors = "bhsE->bhsE|s:indexed",
                   .attrs = {{"theta", 10000.0}},
                   .in = {f64({4, 4, 8, 16})}});
}

struct AttentionCase {
  int64_t b, s, t, g, r, e, v;
  bool causal;
  double dropout = 0;
};

// Attention by blocks of keys is what its split makes, and is checked there.
void add_attention(std::vector<OpCase>& cases) {
  for (const AttentionCase& c : {
           AttentionCase{4, 8, 8, 4, 1, 12, 12, true},
           AttentionCase{4, 8, 12, 4, 4, 8, 4, false},  // cross attention, grouped heads
           AttentionCase{1, 16, 8, 4, 4, 4, 8, true},
           AttentionCase{4, 8, 16, 1, 4, 8, 12, true},
           AttentionCase{4, 8, 8, 4, 4, 8, 4, true, 0.25},
       }) {
    const TensorType q = f64({c.b, c.s, c.g * c.r, c.e}), k = f64({c.b, c.t, c.g, c.e}),
                     v = f64({c.b, c.t, c.g, c.v}), o = f64({c.b, c.s, c.g * c.r, c.v}),
                     lse = f64({c.b, c.s, c.g * c.r});
    Attrs attrs = {{"causal", int64_t{c.causal}}, {"scale", 0.4}, {"r", c.r}};
    const bool dropout = c.dropout > 0;
    if (dropout) {
      attrs.set("dropout", c.dropout);
      attrs.set("name", std::string("h.0.attention"));
    }
    const std::string step = dropout ? "," : "",
                      notes = dropout ? ",b:indexed,g:indexed,r:indexed" : "";
    const auto with_step = [&](OpCase op_case) {
      if (dropout) op_case.in.push_back(i32({}));
      op_case.ranges.resize(op_case.in.size(), kAny);
      if (dropout) op_case.ranges.back() = {1, 9};
      // As large as the log of a sum over that many keys, or weights far above 1 would magnify
      // rounding, which differs with the BLAS kernels of the machine.
      if (op_case.op == &ops::attention_backward) op_case.ranges[5] = {2, 4};
      cases.push_back(std::move(op_case));
    };
    with_step(
        {.op = &ops::attention,
         .factors = "bs(gr)E,bTgE,bTgV" + step + "->bs(gr)V,bs(gr)|s:indexed,T:indexed" + notes,
         .attrs = attrs,
         .in = {q, k, v},
         .grad_outputs = 1});
    with_step({.op = &ops::attention_backward,
               .factors = "bs(gr)V,bs(gr)E,btgE,btgV,bs(gr)V,bs(gr)" + step +
                          "->bs(gr)E,btgE,btgV|s:indexed,t:indexed" + notes,
               .attrs = attrs,
               .in = {o, q, k, v, o, lse}});
    if (c.r != 1 || c.e != c.v) continue;
    attrs.set("sum", int64_t{1});
    attrs.set("wide", int64_t{8});
    attrs.set("X", int64_t{3});
    with_step({.op = &ops::attention_backward,
               .factors = "bs(gr)V,bs(gr)E,btgE,btgV,bs(gr)V,bs(gr)" + step +
                          "->bs(gr)E,btgE,btgV,(XgrE)|s:indexed,t:indexed" + notes,
               .attrs = attrs,
               .in = {o, q, k, v, o, lse}});
  }
  const TensorType o = f64({4, 8, 16, 8}), lse = f64({4, 8, 16});
  cases.push_back(
      {.op = &ops::attention_merge, .in = {o, lse, o, lse}, .in_place = {{0, 0}, {1, 1}}});
  cases.push_back({.op = &ops::attention_merge,
                   .factors = "bs(gr)V,bs(gr),bs(gr)V,bs(gr)->bs(gr)V,bs(gr)",
                   .attrs = {{"r", int64_t{4}}},
                   .in = {o, lse, o, lse}});
}

void add_dropout(std::vector<OpCase>& cases) {
  const Attrs attrs = {{"p", 0.3}, {"name", std::string("drop")}};
  const std::vector<Range> ranges = {kAny, {1, 9}};
  cases.push_back({.op = &ops::dropout,
                   .factors = "bsd,->bsd|b:indexed,s:indexed,d:indexed",
                   .attrs = attrs,
                   .in = {f64({4, 8, 20}), i32({})},
                   .ranges = ranges,
                   .in_place = {{0, 0}}});
  Attrs heads = attrs;
  heads.set("h", int64_t{4});
  cases.push_back({.op = &ops::dropout,
                   .factors = "b(hd),->b(hd)|b:indexed,h:indexed,d:indexed",
                   .attrs = heads,
                   .in = {f64({8, 48}), i32({})},
                   .ranges = ranges});
}

void ignore_some(std::vector<HostTensor>& in) {
  for (size_t i = 0; i < in[1].numbers.size(); i += 3) in[1].numbers[i] = -100;
}

void add_losses(std::vector<OpCase>& cases) {
  for (void (*prepare)(std::vector<HostTensor>&) :
       {+[](std::vector<HostTensor>&) {}, +ignore_some}) {
    const TensorType logits = f64({4, 8, 20}), targets = i32({4, 8}), row = f64({4, 8});
    const Range classes = {0, 20};
    cases.push_back({.op = &ops::cross_entropy,
                     .attrs = {{"ignore", int64_t{-100}}},
                     .in = {logits, targets},
                     .ranges = {{-4, 4}, classes},
                     .prepare = prepare});
    cases.push_back({.op = &ops::cross_entropy,
                     .in = {f64({8, 12}), i32({8})},
                     .ranges = {{-4, 4}, {0, 12}},
                     .grad_outputs = 1,
                     .prepare = prepare});
    cases.push_back({.op = &ops::cross_entropy_backward,
                     .in = {logits, targets, row, row},
                     .ranges = {kAny, classes, {2, 4}, kAny},
                     .prepare = prepare});
    cases.push_back({.op = &ops::cross_entropy_both,
                     .in = {logits, targets, row},
                     .ranges = {{-4, 4}, classes, kAny},
                     .in_place = {{2, 0}},
                     .gradient = false,
                     .prepare = prepare});
    cases.push_back(
        {.op = &ops::pick, .in = {logits, targets}, .ranges = {kAny, classes}, .prepare = prepare});
  }
  // Rows of whole vectors of every type, and rows that no multiprocessor of a GPU has room for.
  for (const int64_t classes : {264, 120000}) {
    cases.push_back({.op = &ops::cross_entropy_both,
                     .factors = "bV,b,b->b,b,bV|V:indexed",
                     .in = {f64({4, classes}), i32({4}), f64({4})},
                     .ranges = {{-4, 4}, {0, static_cast<double>(classes)}, kAny},
                     .in_place = {{2, 0}},
                     .gradient = false});
  }
  cases.push_back({.op = &ops::pick,
                   .factors = "vb,b->b|v:indexed",
                   .in = {f64({12, 8}), i32({8})},
                   .ranges = {kAny, {0, 12}}});
  // A row of each matrix: the same one, and one for each.
  cases.push_back({.op = &ops::pick,
                   .factors = "bsv,->bv|s:indexed",
                   .in = {f64({4, 8, 12}), i32({})},
                   .ranges = {kAny, {0, 8}}});
  cases.push_back({.op = &ops::pick,
                   .factors = "svb,b->bv|s:indexed",
                   .in = {f64({8, 12, 4}), i32({4})},
                   .ranges = {kAny, {0, 8}}});
  cases.push_back({.op = &ops::cross_entropy_backward,
                   .factors = "bv,b,b,b->bv|v:indexed",
                   .in = {f64({8, 12}), i32({8}), f64({8}), f64({8})},
                   .ranges = {kAny, {0, 12}, {2, 4}, kAny}});
}

void add_optimizers(std::vector<OpCase>& cases) {
  cases.push_back({.op = &ops::sum_squares, .in = {f64({8, 12})}});
  cases.push_back({.op = &ops::sum_squares,
                   .factors = "a->",
                   .attrs = {{"dtype", std::string("f64")}},
                   .in = {f64({20})}});
  for (const double max_norm : {0.0, 1.0, 50.0}) {
    cases.push_back({.op = &ops::clip_coefficient,
                     .attrs = {{"max_norm", max_norm}},
                     .in = {f64({}), f64({})},
                     .ranges = {{4, 9}, kAny}});
    // Limits that some of the drawn losses and norms are above.
    cases.push_back({.op = &ops::clip_coefficient,
                     .factors = ",,,->,",
                     .attrs = {{"max_norm", max_norm}},
                     .in = {f64({}), f64({}), f64({}), f64({})},
                     .ranges = {{4, 9}, kAny, kAny, {2, 3}}});
  }
  for (const bool skipped : {false, true}) {
    cases.push_back({.op = &ops::count_update,
                     .in = {i32({}), f64({})},
                     .ranges = {{0, 9}, skipped ? Range{-1, -1} : Range{0.5, 1}},
                     .in_place = {{0, 0}}});
  }
  cases.push_back(
      {.op = &ops::increment, .in = {i32({})}, .ranges = {{0, 9}}, .in_place = {{0, 0}}});
  cases.push_back({.op = &ops::increment, .in = {i32({})}, .ranges = {{100, 109}}});
  for (const char* kind : {"constant", "cosine"}) {
    cases.push_back({.op = &ops::learning_rate,
                     .attrs = {{"base", 1e-3},
                               {"min", 1e-4},
                               {"warmup", int64_t{10}},
                               {"total", int64_t{100}},
                               {"kind", std::string(kind)},
                               {"dtype", std::string("f64")}},
                     .in = {i32({})},
                     .ranges = {{1, 120}}});
  }
  const TensorType scalar = f64({});
  const auto add = [&](const std::string& dims, const Shape& shape) {
    const TensorType p = f64(shape);
    const std::string copy = "f64";
    cases.push_back({.op = &ops::adamw,
                     .factors = fmt::format("{0},{0},{0},{0},,,->{0},{0},{0},{0}", dims),
                     .attrs = {{"beta1", 0.9},
                               {"beta2", 0.95},
                               {"eps", 1e-8},
                               {"weight_decay", 0.1},
                               {"dtype", copy}},
                     .in = {p, p, p, p, scalar, scalar, i32({})},
                     .ranges = {kAny, kAny, kAny, kPositive, {0.01, 0.1}, {0.5, 1}, {1, 20}},
                     .in_place = {{0, 0}, {1, 2}, {2, 3}}});
    cases.push_back({.op = &ops::sgd,
                     .factors = fmt::format("{0},{0},{0},,->{0},{0},{0}", dims),
                     .attrs = {{"momentum", 0.9}, {"weight_decay", 0.1}, {"dtype", copy}},
                     .in = {p, p, p, scalar, scalar},
                     .ranges = {kAny, kAny, kAny, {0.01, 0.1}, {0.5, 1}},
                     .in_place = {{0, 0}, {1, 2}}});
    cases.push_back(
        {.op = &ops::adamw,
         .factors = fmt::format("{0},{0},{0},{0},,,->{0},{0},{0}", dims),
         .attrs = {{"beta1", 0.9}, {"beta2", 0.95}, {"eps", 1e-8}, {"weight_decay", 0.1}},
         .in = {p, p, p, p, scalar, scalar, i32({})},
         .ranges = {kAny, kAny, kAny, kPositive, {0.01, 0.1}, {0.5, 1}, {1, 20}},
         .in_place = {{0, 0}, {1, 2}, {2, 3}}});
    cases.push_back({.op = &ops::sgd,
                     .factors = fmt::format("{0},{0},{0},,->{0},{0}", dims),
                     .attrs = {{"momentum", 0.9}, {"weight_decay", 0.1}},
                     .in = {p, p, p, scalar, scalar},
                     .ranges = {kAny, kAny, kAny, {0.01, 0.1}, {0.5, 1}},
                     .in_place = {{0, 0}, {1, 2}}});
  };
  add("ab", {8, 12});
  add("a", {20});
}

}  // namespace

std::vector<OpCase> fused_op_cases() {
  std::vector<OpCase> cases;
  add_softmax(cases);
  add_norms(cases);
  add_activations(cases);
  add_embeddings(cases);
  add_rotary(cases);
  add_attention(cases);
  add_dropout(cases);
  add_losses(cases);
  add_optimizers(cases);
  return cases;
}

}  // namespace cleave::testing
