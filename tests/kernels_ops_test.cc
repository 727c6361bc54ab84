// Every op, on every case: tests/support/op_checks.h says what must hold. Then the checks are
// checked: copies of ops with a planted mistake must be reported.
#include "kernels/ops.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "graph/error.h"
#include "kernels/loops.h"
#include "tests/support/op_checks.h"

namespace cleave {
namespace {

using testing::check_case;
using testing::f64;
using testing::i32;
using testing::Mistakes;
using testing::OpCase;

std::vector<OpCase> all_cases() {
  std::vector<OpCase> cases = testing::basic_op_cases();
  for (const auto& more :
       {testing::fused_op_cases(), testing::expert_op_cases(), testing::chain_op_cases()}) {
    cases.insert(cases.end(), more.begin(), more.end());
  }
  return cases;
}

// The cases of one op; without any, the op is not tested.
std::vector<OpCase> cases_of(const OpDef& op) {
  std::vector<OpCase> cases;
  for (OpCase& c : all_cases()) {
    if (c.op == &op) cases.push_back(std::move(c));
  }
  return cases;
}

std::string joined(const Mistakes& mistakes) {
  std::string text;
  for (const std::string& m : mistakes) text += m + "\n";
  return text;
}

// --- Every op ------------------------------------------------------------------------------------

class EveryOp : public ::testing::TestWithParam<const OpDef*> {};

TEST_P(EveryOp, HoldsOnItsCases) {
  const std::vector<OpCase> cases = cases_of(*GetParam());
  EXPECT_FALSE(cases.empty()) << GetParam()->name << " has no case in tests/support/op_cases_*.cc";
  for (const OpCase& c : cases) {
    for (const std::string& mistake : check_case(c)) ADD_FAILURE() << mistake;
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, EveryOp,
                         ::testing::ValuesIn(ops::all().begin(), ops::all().end()),
                         [](const auto& info) { return std::string(info.param->name); });

TEST(Ops, AreFoundByTheirNames) {
  std::set<std::string_view> names;
  for (const OpDef* op : ops::all()) {
    EXPECT_TRUE(names.insert(op->name).second) << op->name << " twice";
    EXPECT_EQ(ops::find(op->name), op);
    EXPECT_TRUE(op->cpu != nullptr || op->view != nullptr) << op->name;
  }
  EXPECT_EQ(ops::find("no_such_op"), nullptr);
}

TEST(Ops, ThoseUsedInPlaceAreTestedInPlace) {
  std::set<std::string_view> tested;
  for (const OpCase& c : all_cases()) {
    if (!c.in_place.empty()) tested.insert(c.op->name);
  }
  for (const char* name : {"add", "mul", "scale", "copy", "add_n", "write_slice", "increment",
                           "count_update", "adamw", "sgd"}) {
    EXPECT_TRUE(tested.contains(name)) << name;
  }
}

// The float forms of exp and tanh are our own: against double's from end to end of their range.
TEST(Ops, ActivationsAreRightFarFromZero) {
  for (const OpDef* op : {&ops::exp, &ops::tanh, &ops::sigmoid, &ops::silu, &ops::gelu}) {
    OpCase c{.op = op, .in = {f64({40000})}, .ranges = {{-100, 88}}, .f32_tolerance = 1e-6};
    EXPECT_EQ(joined(testing::check_f32(c)), "") << op->name;
    testing::Application a = testing::application_of(c, 1, true);
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    a.in[0].numbers[0] = std::nan("");
    a.in[0].numbers[1] = kInfinity;
    a.in[0].numbers[2] = 1e-12;
    a.in[0].numbers[3] = -1e-5;
    std::vector<double> y = testing::run_op(a)[0].numbers;
    for (testing::HostTensor& t : a.in) t.type.dtype = DType::kF64;
    const std::vector<double> want = testing::run_op(a)[0].numbers;
    EXPECT_TRUE(std::isnan(y[0])) << op->name;
    EXPECT_EQ(y[1], want[1]) << op->name;
    for (const size_t i : {2, 3}) {
      EXPECT_LE(std::abs(y[i] - want[i]), 3e-7 * std::abs(want[i])) << op->name << want[i];
    }
  }
}

// A sum of many floats in f32 stays near the one in double: it is not one running sum.
TEST(Ops, LongSumsRoundLittle) {
  for (const char* factors : {"ab->", "ab->a", "ba->a"}) {
    OpCase c{.op = &ops::sum,
             .factors = factors,
             .in = {f64(factors[0] == 'a' ? Shape{4, 100000} : Shape{100000, 4})},
             .ranges = {{0.5, 1}},
             .f32_tolerance = 5e-7};
    EXPECT_EQ(joined(testing::check_f32(c)), "") << factors;
  }
}

// --- The checks themselves -----------------------------------------------------------------------

// A copy of an op with a mistake planted must be reported, in words that contain `expected`.
void expect_caught(OpCase c, const OpDef& mutant, const std::string& expected) {
  c.op = &mutant;
  const Mistakes mistakes = check_case(c);
  EXPECT_FALSE(mistakes.empty()) << mutant.name << " '" << c.factors << "' was not caught";
  EXPECT_NE(joined(mistakes).find(expected), std::string::npos)
      << mutant.name << " '" << c.factors << "' for another reason: " << joined(mistakes);
}

TEST(Checks, AReductionOfTheWrongKind) {
  const OpCase c{.factors = "abc->ab", .in = {f64({4, 8, 12})}};
  expect_caught(c, ops::max, "c split 2 ways: output 0");
  expect_caught(c, ops::logsumexp, "c split 2 ways: output 0");
  expect_caught({.factors = "mk,nk->mn|k:max", .in = {f64({4, 8}), f64({12, 8})}}, ops::matmul,
                "k split 2 ways: output 0");
}

// The kernel of `op`, called under the factor string that it was written for.
void call_as(const OpDef& op, const char* factors, const KernelArgs& args) {
  const Signature& signature = Signature::get(factors);
  op.cpu({signature, args.attrs, args.in, args.out, args.extents, args.workspace, args.seed});
}

TEST(Checks, ADimensionDeclaredToPassThroughThatIsNeededWhole) {
  const OpDef softmax = {
      .name = "softmax",
      .factors = "bs->bs",
      .cpu = [](const KernelArgs& args) { call_as(ops::softmax, "bS->bS", args); },
  };
  expect_caught({.in = {f64({4, 8})}}, softmax, "s split 2 ways: output 0");
  const OpDef layer_norm = {
      .name = "layer_norm",
      .factors = "bd,d,d->bd,b,b",
      .cpu = [](const KernelArgs& args) { call_as(ops::layer_norm, "bD,D,D->bD,b,b", args); },
  };
  expect_caught({.attrs = {{"eps", 1e-5}}, .in = {f64({4, 8}), f64({8}), f64({8})}}, layer_norm,
                "d split 2 ways: output 0");
  const OpDef cross_entropy = {
      .name = "cross_entropy",
      .factors = "bv,b->b,b|v:lse",
      .cpu =
          [](const KernelArgs& args) { call_as(ops::cross_entropy, "bV,b->b,b|V:indexed", args); },
  };
  expect_caught({.attrs = {{"ignore", int64_t{-100}}},
                 .in = {f64({4, 8}), i32({4})},
                 .ranges = {{-1, 1}, {0, 8}}},
                cross_entropy, "is not one of 4 classes");
}

OpCase embedding_case(const char* factors) {
  return {.factors = factors, .in = {f64({8, 4}), i32({4, 12})}, .ranges = {{-1, 1}, {0, 8}}};
}

TEST(Checks, APositionThatTheKernelIsNotTold) {
  EXPECT_EQ(joined(check_case([] {
              OpCase c = embedding_case("vd,bs->bsd|v:indexed");
              c.op = &ops::embedding;
              return c;
            }())),
            "");
  expect_caught(embedding_case("vd,bs->bsd"), ops::embedding, "outside the table of 4 rows");
  expect_caught(
      {.factors = "bsv,bs->bs", .in = {f64({4, 8, 12}), i32({4, 8})}, .ranges = {{-1, 1}, {0, 12}}},
      ops::pick, "v split 2 ways: output 0");
}

TEST(Checks, AGradientThatIsWrong) {
  OpDef tanh = ops::tanh;
  tanh.grad = [](GradContext& ctx) { return std::vector<Value>{ctx.grad(0)}; };
  expect_caught({.in = {f64({4, 8})}}, tanh, "gradient of input 0");
  tanh.grad = [](GradContext&) { return std::vector<Value>{kNoValue}; };
  expect_caught({.in = {f64({4, 8})}}, tanh, "gradient of input 0");
}

TEST(Checks, AGradientWhoseLettersAreNotTheForwards) {
  OpDef transpose = ops::transpose;
  transpose.grad = [](GradContext& ctx) {
    return std::vector<Value>{ctx.add1(ops::transpose, {ctx.grad(0)}, "ab->ba")};
  };
  expect_caught({.factors = "ab->ba", .in = {f64({4, 8})}}, transpose, "letter a of transpose");
}

TEST(Checks, AnOpThatIsNotLinear) {
  OpDef square = ops::square;
  square.linear = true;
  expect_caught({.in = {f64({4, 8})}}, square, "not linear");
}

TEST(Checks, ADecompositionThatNeedsTheDimensionWhole) {
  OpDef softmax = ops::softmax;
  softmax.split = [](const SplitRequest& r) {
    return r.graph.add(ops::softmax, {r.inputs[0]}, r.call.signature.text());
  };
  expect_caught({.factors = "bS->bS", .in = {f64({4, 8})}}, softmax, "the factor is whole");
  softmax.split = [](const SplitRequest& r) {
    return r.graph.add(ops::exp, {r.inputs[0]}, "bs->bs");
  };
  expect_caught({.factors = "bS->bS", .in = {f64({4, 8})}}, softmax, "split of S into 2: output 0");
}

TEST(Checks, AViewThatLooksAtOtherElements) {
  OpDef slice = ops::slice;
  slice.view = [](const OpCall& call, const Geometry& in) {
    auto views = ops::slice.view(call, in);
    (*views)[0].offset += 1;
    return views;
  };
  OpDef reshape = ops::reshape;
  reshape.view = [](const OpCall& call, const Geometry& in) {
    auto views = ops::reshape.view(call, in);
    if (views) (*views)[0].offset += 1;
    return views;
  };
  expect_caught({.factors = "ab->(ab)", .in = {f64({4, 8})}}, reshape, "as a view");
  const OpCase c{.factors = "aX->aY",
                 .attrs = {{"start", int64_t{2}},
                           {"stop", int64_t{6}},
                           {"step", int64_t{1}},
                           {"Y", int64_t{4}}},
                 .in = {f64({4, 10})}};
  expect_caught(c, slice, "gradient of input 0");
}

TEST(Checks, AKernelThatWritesOutsideItsOutputOrIgnoresStrides) {
  OpDef copy = ops::copy;
  copy.cpu = [](const KernelArgs& args) {
    with_float(args.out[0].dtype, [&]<class T>(T) {
      std::copy_n(args.in[0].as<const T>(), args.out[0].numel(), args.out[0].as<T>());
    });
  };
  expect_caught({.in = {f64({4, 8})}}, copy, "memory layout 1");
  copy.cpu = [](const KernelArgs& args) {
    ops::copy.cpu(args);
    with_float(args.out[0].dtype,
               [&]<class T>(T) { args.out[0].as<T>()[args.out[0].numel()] = T{0}; });
  };
  expect_caught({.in = {f64({4, 8})}}, copy, "writes outside output 0");
}

// --- Mistakes of users ---------------------------------------------------------------------------

// The message of the Error that adding a node throws.
std::string refused(const OpDef& op, std::vector<TensorType> in, std::string_view factors,
                    Attrs attrs = {}) {
  Graph graph;
  std::vector<Value> values;
  for (TensorType& t : in) {
    Source source;
    source.name = std::to_string(values.size());
    values.push_back(graph.add_source(std::move(source), std::move(t)));
  }
  try {
    graph.add(op, values, factors, std::move(attrs));
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

TEST(Ops, RefuseWhatTheirRulesForbid) {
  const auto has = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  has(refused(ops::matmul, {f64({4, 8}), f64({12, 8})}, "mk,nj->mn"), "one operand only");
  has(refused(ops::matmul, {f64({4, 8}), i32({12, 8})}, ""), "floating");
  has(refused(ops::add, {f64({4, 8}), f64({4, 6})}, ""), "dimension 1 of operand 2");
  has(refused(ops::add, {f64({4}), {DType::kF32, {4}}}, ""), "one element type");
  has(refused(ops::reshape, {f64({4, 6})}, "ab->ba"), "in order");
  has(refused(ops::reshape, {f64({4, 6})}, "ab->aC", {{"C", int64_t{6}}}), "must be whole");
  has(refused(ops::transpose, {f64({4, 6})}, "ab->a"), "permutation");
  has(refused(ops::expand, {f64({4, 6})}, "ab->a"), "drops");
  has(refused(ops::sum, {f64({4})}, "a->ab", {{"b", int64_t{4}}}), "expand");
  has(refused(ops::concat, {f64({4, 3}), f64({4, 5})}, "aX,aY->aZ", {{"Z", int64_t{9}}}),
      "joins 8 elements");
  const Attrs bounds = {
      {"start", int64_t{3}}, {"stop", int64_t{12}}, {"step", int64_t{1}}, {"Y", int64_t{9}}};
  has(refused(ops::slice, {f64({4, 10})}, "aX->aY", bounds), "slice 3:12:1 does not fit");
  has(refused(ops::slice, {f64({4, 10})}, "ax->aY", bounds), "capital");
  has(refused(ops::cast, {f64({4})}, "", {{"dtype", std::string("i32")}}), "cast to i32");
}

}  // namespace
}  // namespace cleave
