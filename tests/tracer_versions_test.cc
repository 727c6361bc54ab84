// Programs that alias and overwrite. For each: the dependencies expected, and that memory agrees.
// Run in the order of the trace, and in random orders that respect the dependencies, a program must
// give what the same program does on plain arrays; without any one dependency, some order must not.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "kernels/ops.h"
#include "tests/support/interpreter.h"
#include "tracer/tensor.h"

namespace cleave {
namespace {

// A plain array, for the same program by hand.
struct Array {
  Shape shape;
  std::vector<double> v;
  explicit Array(Shape s = {}) : shape(std::move(s)), v(static_cast<size_t>(numel(shape))) {}
  double& operator()(int64_t i) { return v[static_cast<size_t>(i)]; }
  double& operator()(int64_t i, int64_t j) { return v[static_cast<size_t>(i * shape[1] + j)]; }
  double& operator()(int64_t i, int64_t j, int64_t k) {
    return v[static_cast<size_t>((i * shape[1] + j) * shape[2] + k)];
  }
};

Array map(const Array& a, const std::function<double(double)>& fn) {
  Array result = a;
  for (double& x : result.v) x = fn(x);
  return result;
}
Array times(double factor, const Array& a) {
  return map(a, [=](double x) { return factor * x; });
}
Array transposed(Array a) {
  Array result({a.shape[1], a.shape[0]});
  for (int64_t i = 0; i < a.shape[0]; ++i) {
    for (int64_t j = 0; j < a.shape[1]; ++j) result(j, i) = a(i, j);
  }
  return result;
}
Array rows(Array a, int64_t start, int64_t stop, int64_t step = 1) {
  Array result({(stop - start + step - 1) / step, a.shape[1]});
  for (int64_t i = 0; i < result.shape[0]; ++i) {
    for (int64_t j = 0; j < a.shape[1]; ++j) result(i, j) = a(start + i * step, j);
  }
  return result;
}
Array columns(const Array& a, int64_t start, int64_t stop, int64_t step = 1) {
  return transposed(rows(transposed(a), start, stop, step));
}
void put_rows(Array& a, int64_t start, Array part, int64_t step = 1) {
  for (int64_t i = 0; i < part.shape[0]; ++i) {
    for (int64_t j = 0; j < a.shape[1]; ++j) a(start + i * step, j) = part(i, j);
  }
}
Array plus(Array a, const Array& b) {
  for (size_t i = 0; i < a.v.size(); ++i) a.v[i] += b.v[i];
  return a;
}

// Sources and outputs by name.
using Arrays = std::map<std::string, Array>;

struct Case {
  const char* name;
  std::function<void(Tracer&)> trace;
  std::function<void(Arrays&)> by_hand;
  // Nodes that do work are numbered from 1, dead ones and views left out.
  std::vector<std::string> expected;
};

Tensor source(const char* name, Shape shape) {
  return state(name, std::move(shape), DType::kF64, {Init::Kind::kNormal, 1});
}
Tensor x43() { return source("x", {4, 3}); }
Tensor y23() { return source("y", {2, 3}); }
Tensor z43() { return source("z", {4, 3}); }

// clang-format off
const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
    {"AddThroughSlice",
     [](Tracer& t) { auto x = x43(), y = y23(); x[{0, 2}].add_(y); t.output("o", 2 * x); },
     [](Arrays& a) { put_rows(a["x"], 0, plus(rows(a["x"], 0, 2), a["y"]));
                     a["o"] = times(2, a["x"]); },
     {"add#1 -> write_slice#2 RAW", "write_slice#2 -> scale#3 RAW"}},
    {"ReadBaseThenWriteSlice",
     [](Tracer& t) { auto x = x43(), y = y23(); t.output("o", 2 * x); x[{0, 2}].copy_(y); },
     [](Arrays& a) { a["o"] = times(2, a["x"]); put_rows(a["x"], 0, a["y"]); },
     {"scale#1 -> write_slice#2 WAR"}},
    {"DisjointSlicesWritten",
     [](Tracer& t) { auto x = x43(), y = y23(); auto z = source("z", {2, 3});
                     x[{0, 2}].copy_(y); x[{2, 4}].copy_(z); t.output("o", 2 * x); },
     [](Arrays& a) { put_rows(a["x"], 0, a["y"]); put_rows(a["x"], 2, a["z"]);
                     a["o"] = times(2, a["x"]); },
     {"write_slice#1 -> scale#3 RAW", "write_slice#2 -> scale#3 RAW"}},
    {"OverlappingSlicesWritten",
     [](Tracer&) { auto x = x43(); auto y = source("y", {3, 3}), z = source("z", {3, 3});
                   x[{0, 3}].copy_(y); x[{1, 4}].copy_(z); },
     [](Arrays& a) { put_rows(a["x"], 0, a["y"]); put_rows(a["x"], 1, a["z"]); },
     {"write_slice#1 -> write_slice#2 WAW"}},
    {"DisjointReadAndWrite",
     [](Tracer& t) { auto x = x43(), y = y23(); x[{0, 2}].copy_(y);
                     t.output("o", 2 * x[{2, 4}]); },
     [](Arrays& a) { put_rows(a["x"], 0, a["y"]); a["o"] = times(2, rows(a["x"], 2, 4)); },
     {}},
    {"EvenWrittenOddRead",
     [](Tracer& t) { auto x = x43(), y = y23(); x[{0, 4, 2}].copy_(y);
                     t.output("o", 2 * x[{1, 4, 2}]); },
     [](Arrays& a) { put_rows(a["x"], 0, a["y"], 2); a["o"] = times(2, rows(a["x"], 1, 4, 2)); },
     {}},
    {"EvenWrittenFirstHalfRead",
     [](Tracer& t) { auto x = x43(), y = y23(); x[{0, 4, 2}].copy_(y);
                     t.output("o", 2 * x[{0, 2}]); },
     [](Arrays& a) { put_rows(a["x"], 0, a["y"], 2); a["o"] = times(2, rows(a["x"], 0, 2)); },
     {"write_slice#1 -> scale#2 RAW"}},
    {"StepsOfTwoAndThree",  // rows 0, 2, 4 and 1, 4: they meet in row 4
     [](Tracer& t) { auto x = source("x", {6, 3}), y = source("y", {3, 3});
                     t.output("o", 2 * x[{1, 6, 3}]); x[{0, 6, 2}].copy_(y); },
     [](Arrays& a) { a["o"] = times(2, rows(a["x"], 1, 6, 3)); put_rows(a["x"], 0, a["y"], 2); },
     {"scale#1 -> write_slice#2 WAR"}},
    {"TransposedAliasRead",
     [](Tracer& t) { auto x = x43(); auto v = x.t(); x.add_(1); t.output("o", 2 * v); },
     [](Arrays& a) { a["x"] = map(a["x"], [](double e) { return e + 1; });
                     a["o"] = times(2, transposed(a["x"])); },
     {"add_scalar#1 -> scale#2 RAW"}},
    {"SquareReadTransposedThenWritten",  // the view has the type of the base, and lies otherwise
     [](Tracer& t) { auto x = source("x", {3, 3}), z = source("z", {3, 3});
                     t.output("o", 2 * x.t()); x.add_(z); },
     [](Arrays& a) { a["o"] = times(2, transposed(a["x"])); a["x"] = plus(a["x"], a["z"]); },
     {"scale#1 -> add#2 WAR"}},
    {"CopyThroughTranspose",
     [](Tracer& t) { auto x = x43(); auto z = source("z", {3, 4}); x.t().copy_(z);
                     t.output("o", 2 * x); },
     [](Arrays& a) { a["x"] = transposed(a["z"]); a["o"] = times(2, a["x"]); },
     {"copy#1 -> scale#2 RAW"}},
    {"AddThroughTransposeReadAlias",
     [](Tracer& t) { auto x = x43(); auto z = source("z", {3, 4}); auto alias = x.t();
                     x.t().add_(z); t.output("o", 2 * alias); },
     [](Arrays& a) { a["x"] = plus(a["x"], transposed(a["z"]));
                     a["o"] = times(2, transposed(a["x"])); },
     {"add#1 -> scale#2 RAW"}},
    {"SliceOfTranspose",  // x.t()[0:2] is the first two columns
     [](Tracer& t) { auto x = x43(); auto z = source("z", {2, 4}); x.t()[{0, 2}].copy_(z);
                     t.output("o", 2 * x.slice(1, 2, 3)); t.output("p", 3 * x.slice(1, 0, 1)); },
     [](Arrays& a) { for (int i = 0; i < 4; ++i)
                       for (int j = 0; j < 2; ++j) a["x"](i, j) = a["z"](j, i);
                     a["o"] = times(2, columns(a["x"], 2, 3));
                     a["p"] = times(3, columns(a["x"], 0, 1)); },
     {"write_slice#1 -> scale#3 RAW"}},
    {"SliceOfTransposeOfSlice",
     [](Tracer& t) { auto x = x43(); auto c = source("c", {2, 3});
                     x[{1, 4}].t()[{0, 2}].add_(c); t.output("o", 2 * x); },
     [](Arrays& a) { for (int i = 0; i < 3; ++i)
                       for (int j = 0; j < 2; ++j) a["x"](1 + i, j) += a["c"](j, i);
                     a["o"] = times(2, a["x"]); },
     {"add#1 -> write_slice#2 RAW", "write_slice#2 -> write_slice#3 RAW",
      "write_slice#3 -> scale#4 RAW"}},
    {"TwiceInPlace",
     [](Tracer&) { auto x = x43(); x.add_(1); x.mul_(2); },
     [](Arrays& a) { a["x"] = map(a["x"], [](double e) { return 2 * (e + 1); }); },
     {"add_scalar#1 -> scale#2 RAW"}},
    {"DeadFill",
     [](Tracer& t) { auto x = x43(), z = z43(); x.fill_(7); x.copy_(z); t.output("o", 2 * x); },
     [](Arrays& a) { a["x"] = a["z"]; a["o"] = times(2, a["x"]); },
     {"copy#1 -> scale#2 RAW"}},
    {"DeadSliceWrite",
     [](Tracer& t) { auto x = x43(), y = y23(), z = z43(); auto w = 2 * x; x[{0, 2}].copy_(y);
                     x.copy_(z); t.output("o", w); },
     [](Arrays& a) { a["o"] = times(2, a["x"]); a["x"] = a["z"]; },
     {"scale#1 -> copy#2 WAR"}},
    {"SelectedRowWrittenColumnRead",
     [](Tracer& t) { auto x = x43(); auto r = source("r", {3}); x[1].copy_(r);
                     t.output("o", 2 * x[2]); t.output("p", 3 * x.select(1, 0)); },
     [](Arrays& a) { for (int j = 0; j < 3; ++j) a["x"](1, j) = a["r"](j);
                     a["o"] = Array({3}); a["p"] = Array({4});
                     for (int j = 0; j < 3; ++j) a["o"](j) = 2 * a["x"](2, j);
                     for (int i = 0; i < 4; ++i) a["p"](i) = 3 * a["x"](i, 0); },
     {"write_slice#1 -> scale#3 RAW"}},
    {"UnbindThenBaseWritten",
     [](Tracer& t) { auto x = x43(); auto r = x.unbind(0); x[{0, 2}].mul_(2);
                     t.output("o", 3 * r[1]); t.output("p", 3 * r[2]); },
     [](Arrays& a) { put_rows(a["x"], 0, times(2, rows(a["x"], 0, 2)));
                     a["o"] = Array({3}); a["p"] = Array({3});
                     for (int j = 0; j < 3; ++j) a["o"](j) = 3 * a["x"](1, j);
                     for (int j = 0; j < 3; ++j) a["p"](j) = 3 * a["x"](2, j); },
     {"scale#1 -> write_slice#2 RAW", "write_slice#2 -> scale#3 RAW"}},
    {"WriteThroughUnbind",
     [](Tracer& t) { auto x = x43(); auto v = source("v", {4}); auto c = x.unbind(1);
                     c[1].add_(v); t.output("o", 2 * c[0]); t.output("p", 3 * x); },
     [](Arrays& a) { for (int i = 0; i < 4; ++i) a["x"](i, 1) += a["v"](i);
                     a["o"] = Array({4}); for (int i = 0; i < 4; ++i) a["o"](i) = 2 * a["x"](i, 0);
                     a["p"] = times(3, a["x"]); },
     {"add#1 -> write_slice#2 RAW", "write_slice#2 -> scale#4 RAW"}},
    {"ChunkTimesChunk",
     [](Tracer& t) { auto x = source("x", {4, 6}); auto c = x.chunk(2, 1); c[0].mul_(c[1]);
                     t.output("o", 2 * c[1]); c[1].zero_(); },
     [](Arrays& a) { Array &x = a["x"]; for (int i = 0; i < 4; ++i)
                       for (int j = 0; j < 3; ++j) x(i, j) *= x(i, j + 3);
                     a["o"] = times(2, columns(x, 3, 6));
                     for (int i = 0; i < 4; ++i) for (int j = 3; j < 6; ++j) x(i, j) = 0; },
     {"mul#1 -> write_slice#2 RAW", "mul#1 -> write_slice#5 WAR", "scale#3 -> write_slice#5 WAR",
      "fill#4 -> write_slice#5 RAW"}},
    {"TwoViewsOneWritten",
     [](Tracer& t) { auto x = x43(); auto a = x[{0, 2}], b = x[{1, 3}]; a.add_(1);
                     t.output("o", 2 * b); },
     [](Arrays& a) { put_rows(a["x"], 0, map(rows(a["x"], 0, 2), [](double e) { return e + 1; }));
                     a["o"] = times(2, rows(a["x"], 1, 3)); },
     {"add_scalar#1 -> write_slice#2 RAW", "write_slice#2 -> scale#3 RAW"}},
    {"WriteSliceOfReshape",
     [](Tracer& t) { auto x = x43(); auto s = source("s", {6});
                     x.view({12}).slice(0, 0, 6).copy_(s);
                     t.output("o", 2 * x); t.output("p", 3 * x[3]); },
     [](Arrays& a) { for (int i = 0; i < 6; ++i) a["x"].v[static_cast<size_t>(i)] = a["s"](i);
                     a["o"] = times(2, a["x"]); a["p"] = Array({3});
                     for (int j = 0; j < 3; ++j) a["p"](j) = 3 * a["x"](3, j); },
     {"write_slice#1 -> scale#2 RAW"}},
    {"InPlaceOnReshape",
     [](Tracer& t) { auto x = x43(); auto s = source("s", {2, 6}); auto first = x[0];
                     x.view({2, 6}).add_(s); t.output("o", 2 * first); },
     [](Arrays& a) { for (size_t i = 0; i < 12; ++i) a["x"].v[i] += a["s"].v[i];
                     a["o"] = Array({3});
                     for (int j = 0; j < 3; ++j) a["o"](j) = 2 * a["x"](0, j); },
     {"add#1 -> scale#2 RAW"}},
    {"ReshapeThatCopies",
     [](Tracer& t) { auto x = x43(); auto c = x.t().reshape({12}); x.zero_();
                     t.output("o", 2 * c); },
     [](Arrays& a) { a["o"] = times(2, transposed(a["x"])); a["o"].shape = {12};
                     a["x"] = times(0, a["x"]); },
     {"reshape#1 -> fill#2 WAR", "reshape#1 -> scale#3 RAW"}},
    {"ShiftRows",  // source and target overlap: as if the source were read first
     [](Tracer&) { auto x = x43(); x[{0, 3}].copy_(x[{1, 4}]); },
     [](Arrays& a) { put_rows(a["x"], 0, rows(a["x"], 1, 4)); },
     {"copy#1 -> write_slice#2 RAW"}},
    {"MoveHalfThenWriteIt",
     [](Tracer&) { auto x = x43(), y = y23(); x[{0, 2}].copy_(x[{2, 4}]); x[{2, 4}].copy_(y); },
     [](Arrays& a) { put_rows(a["x"], 0, rows(a["x"], 2, 4)); put_rows(a["x"], 2, a["y"]); },
     {"write_slice#1 -> write_slice#2 WAR"}},
    {"AddOwnTranspose",
     [](Tracer&) { auto x = source("x", {3, 3}); x.add_(x.t()); },
     [](Arrays& a) { a["x"] = plus(a["x"], transposed(a["x"])); },
     {"copy#1 -> add#2 RAW"}},
    {"AddOwnRow",
     [](Tracer&) { auto x = x43(); x.add_(x[0]); },
     [](Arrays& a) { const Array r = rows(a["x"], 0, 1);
                     for (int i = 0; i < 4; ++i)
                       for (int j = 0; j < 3; ++j) a["x"](i, j) += r.v[static_cast<size_t>(j)]; },
     {"copy#1 -> add#2 RAW"}},
    {"AddWhatWasRead",
     [](Tracer&) { auto x = x43(); auto y = 2 * x; x.add_(y); },
     [](Arrays& a) { a["x"] = times(3, a["x"]); },
     {"scale#1 -> add#2 RAW"}},
    {"ImpliedWriteAfterRead",  // exp#1 -> mul#3 WAR follows from the other two
     [](Tracer&) { auto x = x43(), z = z43(); x.mul_(exp(x) + z); },
     [](Arrays& a) { for (size_t i = 0; i < 12; ++i)
                       a["x"].v[i] *= std::exp(a["x"].v[i]) + a["z"].v[i]; },
     {"exp#1 -> add#2 RAW", "add#2 -> mul#3 RAW"}},
    {"TwoReadersOneWriter",
     [](Tracer& t) { auto x = x43(); t.output("o", 2 * x); t.output("p", exp(x)); x.zero_(); },
     [](Arrays& a) { a["o"] = times(2, a["x"]);
                     a["p"] = map(a["x"], [](double e) { return std::exp(e); });
                     a["x"] = times(0, a["x"]); },
     {"scale#1 -> fill#3 WAR", "exp#2 -> fill#3 WAR"}},
    {"ReadBetweenWritesOfHalves",
     [](Tracer& t) { auto x = x43(), y = y23(); x[{0, 2}].copy_(y); t.output("o", 2 * x[{2, 4}]);
                     x[{2, 4}].copy_(y); },
     [](Arrays& a) { a["o"] = times(2, rows(a["x"], 2, 4)); put_rows(a["x"], 0, a["y"]);
                     put_rows(a["x"], 2, a["y"]); },
     {"scale#2 -> write_slice#3 WAR"}},
    {"Columns",
     [](Tracer& t) { auto x = x43(); auto c = source("c", {4, 1}); x.slice(1, 0, 1).copy_(c);
                     t.output("o", 2 * x.slice(1, 1, 3)); x.slice(1, 2, 3).copy_(c); },
     [](Arrays& a) { a["o"] = times(2, columns(a["x"], 1, 3));
                     for (int i = 0; i < 4; ++i) a["x"](i, 0) = a["x"](i, 2) = a["c"](i, 0); },
     {"scale#2 -> write_slice#3 WAR"}},
    {"ColumnWrittenRowRead",
     [](Tracer& t) { auto x = x43(); auto c = source("c", {4, 1}); x.slice(1, 1, 2).copy_(c);
                     t.output("o", 2 * x[{2, 3}]); },
     [](Arrays& a) { for (int i = 0; i < 4; ++i) a["x"](i, 1) = a["c"](i, 0);
                     a["o"] = times(2, rows(a["x"], 2, 3)); },
     {"write_slice#1 -> scale#2 RAW"}},
    {"RowsByReshapeAndByStep",  // view(2, 2, 3).select(1, 0) is rows 0 and 2
     [](Tracer& t) { auto x = x43(), y = y23(); x.view({2, 2, 3}).select(1, 0).copy_(y);
                     t.output("o", 2 * x[{1, 4, 2}]); t.output("p", 3 * x[{0, 4, 2}]); },
     [](Arrays& a) { put_rows(a["x"], 0, a["y"], 2); a["o"] = times(2, rows(a["x"], 1, 4, 2));
                     a["p"] = times(3, rows(a["x"], 0, 4, 2)); },
     {"write_slice#1 -> scale#3 RAW"}},
    {"Unsqueezed",
     [](Tracer& t) { auto x = x43(), z = z43(); auto u = x.unsqueeze(1); x.add_(z);
                     t.output("o", 2 * u.squeeze(1)); },
     [](Arrays& a) { a["x"] = plus(a["x"], a["z"]); a["o"] = times(2, a["x"]); },
     {"add#1 -> scale#2 RAW"}},
    {"CloneIsNoAlias",
     [](Tracer& t) { auto x = x43(); auto c = x.clone(); x.zero_(); t.output("o", 2 * c); },
     [](Arrays& a) { a["o"] = times(2, a["x"]); a["x"] = times(0, a["x"]); },
     {"copy#1 -> fill#2 WAR", "copy#1 -> scale#3 RAW"}},
    {"DetachedAlias",
     [](Tracer& t) { auto x = x43(), z = z43(); auto d = x.detach(); x.add_(z); d.mul_(2);
                     t.output("o", 3 * x); },
     [](Arrays& a) { a["x"] = times(2, plus(a["x"], a["z"])); a["o"] = times(3, a["x"]); },
     {"add#1 -> scale#2 RAW", "scale#2 -> scale#3 RAW"}},
    {"ExpandedAlias",
     [](Tracer& t) { auto r = source("r", {3}); auto z = z43(); auto e = r.expand({4, 3});
                     r.add_(1);
                     t.output("o", e * z); },
     [](Arrays& a) { a["r"] = map(a["r"], [](double e) { return e + 1; }); a["o"] = a["z"];
                     for (int i = 0; i < 4; ++i)
                       for (int j = 0; j < 3; ++j) a["o"](i, j) *= a["r"](j); },
     {"add_scalar#1 -> mul#2 RAW"}},
    {"AliasReadBeforeAndAfter",
     [](Tracer& t) { auto x = x43(), y = y23(); auto v = x[{0, 2}]; t.output("o", 2 * v); v.add_(y);
                     t.output("p", 3 * v); },
     [](Arrays& a) { a["o"] = times(2, rows(a["x"], 0, 2));
                     put_rows(a["x"], 0, plus(rows(a["x"], 0, 2), a["y"]));
                     a["p"] = times(3, rows(a["x"], 0, 2)); },
     {"scale#1 -> write_slice#3 WAR", "add#2 -> write_slice#3 RAW",
      "write_slice#3 -> scale#4 RAW"}},
    {"PermutedSlice",
     [](Tracer& t) { auto x = source("x", {2, 3, 4}); x.permute({2, 0, 1})[{1, 3}].mul_(2);
                     t.output("o", 3 * x.slice(2, 2, 4)); t.output("p", 5 * x.slice(2, 0, 1)); },
     [](Arrays& a) { Array& x = a["x"]; a["o"] = Array({2, 3, 2}); a["p"] = Array({2, 3, 1});
                     for (int i = 0; i < 2; ++i) for (int j = 0; j < 3; ++j) {
                       x(i, j, 1) *= 2, x(i, j, 2) *= 2;
                       a["o"](i, j, 0) = 3 * x(i, j, 2), a["o"](i, j, 1) = 3 * x(i, j, 3);
                       a["p"](i, j, 0) = 5 * x(i, j, 0); } },
     {"scale#1 -> write_slice#2 RAW", "write_slice#2 -> scale#3 RAW"}},
    {"SwapHalves",
     [](Tracer&) { auto x = x43(); auto kept = x[{0, 2}].clone(); x[{0, 2}].copy_(x[{2, 4}]);
                   x[{2, 4}].copy_(kept); },
     [](Arrays& a) { const Array first = rows(a["x"], 0, 2);
                     put_rows(a["x"], 0, rows(a["x"], 2, 4));
                     put_rows(a["x"], 2, first); },
     {"copy#1 -> write_slice#2 WAR", "write_slice#2 -> write_slice#3 WAR"}},
    {"WriteAfterWriteOfPart",
     [](Tracer&) { auto x = x43(), z = z43(), y = y23(); x.copy_(z); x[{1, 3}].copy_(y); },
     [](Arrays& a) { a["x"] = a["z"]; put_rows(a["x"], 1, a["y"]); },
     {"copy#1 -> write_slice#2 WAW"}},
    {"TemporaryStorage",  // a storage of the program's own is overwritten, not a source's
     [](Tracer& t) { auto x = x43(), y = y23(); auto h = 2 * x; h[{1, 3}].copy_(y);
                     t.output("o", 3 * h); t.output("p", 5 * h[0]); },
     [](Arrays& a) { a["o"] = times(2, a["x"]); put_rows(a["o"], 1, a["y"]); a["p"] = Array({3});
                     for (int j = 0; j < 3; ++j) a["p"](j) = 5 * a["o"](0, j);
                     a["o"] = times(3, a["o"]); },
     {"scale#1 -> write_slice#2 WAW", "scale#1 -> scale#4 RAW", "write_slice#2 -> scale#3 RAW"}},
  };
  return all;
}
// clang-format on

Graph trace_of(const Case& c) {
  Tracer tracer(c.name, {.compute = DType::kF64});
  c.trace(tracer);
  return tracer.finish();
}

// "add#1 -> write_slice#2 RAW", sorted by the numbers.
std::vector<std::string> readable(const Graph& graph) {
  const std::vector<NodeId> nodes = working_nodes(graph);
  const auto named = [&](NodeId n) {
    const auto at = std::find(nodes.begin(), nodes.end(), n);
    return fmt::format("{}#{}", graph.node(n).op->name, at - nodes.begin() + 1);
  };
  std::vector<std::string> lines;
  for (const Dependency& d : dependencies(graph)) {
    const char* kind = d.kind == DependencyKind::kReadAfterWrite   ? "RAW"
                       : d.kind == DependencyKind::kWriteAfterRead ? "WAR"
                                                                   : "WAW";
    lines.push_back(fmt::format("{} -> {} {}", named(d.before), named(d.after), kind));
  }
  std::sort(lines.begin(), lines.end());
  return lines;
}

class Versions : public testing::TestWithParam<size_t> {
 protected:
  const Case& param() const { return cases()[GetParam()]; }
};

TEST_P(Versions, DependenciesAsListed) {
  std::vector<std::string> expected = param().expected;
  std::sort(expected.begin(), expected.end());
  const Graph graph = trace_of(param());
  EXPECT_EQ(readable(graph), expected);
  EXPECT_EQ(readable(without_dead_nodes(graph)), expected);
}

TEST_P(Versions, EveryAllowedOrderGivesWhatArraysGive) {
  const Graph graph = trace_of(param());
  for (const Graph& g : {graph, without_dead_nodes(graph)}) {
    Interpreter interpreter(g);
    interpreter.run();
    const auto in_order = interpreter.results();
    Arrays arrays;
    for (const Source& s : g.sources()) {
      arrays[s.name] = Array(g.type(s.value).shape);
      arrays[s.name].v = interpreter.initial(s.name);
    }
    param().by_hand(arrays);
    for (const auto& [name, numbers] : in_order) {
      ASSERT_EQ(numbers.size(), arrays[name].v.size()) << name;
      for (size_t i = 0; i < numbers.size(); ++i) {
        EXPECT_NEAR(numbers[i], arrays[name].v[i], 1e-12) << name << " at " << i;
      }
    }
    const std::vector<Dependency> all = dependencies(g);
    std::mt19937 random(7);
    for (int round = 0; round < 30; ++round) {
      interpreter.run(random_order(working_nodes(g), all, random));
      EXPECT_EQ(interpreter.results(), in_order) << "round " << round;
    }
  }
}

TEST_P(Versions, NoDependencyCanBeLeftOut) {
  const Graph graph = trace_of(param());
  Interpreter interpreter(graph);
  interpreter.run();
  const auto in_order = interpreter.results();
  const std::vector<Dependency> all = dependencies(graph);
  ASSERT_EQ(all.size(), param().expected.size());
  for (size_t left_out = 0; left_out < all.size(); ++left_out) {
    std::vector<Dependency> fewer = all;
    fewer.erase(fewer.begin() + static_cast<int64_t>(left_out));
    std::mt19937 random(7);
    bool differs = false;
    for (int round = 0; round < 100 && !differs; ++round) {
      interpreter.run(random_order(working_nodes(graph), fewer, random));
      differs = interpreter.results() != in_order;  // a NaN differs from itself
    }
    EXPECT_TRUE(differs) << readable(graph)[left_out]
                         << " (in the order of the list) is not needed";
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Versions, testing::Range(size_t{0}, cases().size()),
                         [](const auto& info) { return cases()[info.param].name; });

}  // namespace
}  // namespace cleave
