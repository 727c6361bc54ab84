// The cases of what a mixture of experts is made of: choosing, numbering slots, moving rows, and
// the product in which every row has its own matrix.
#include <algorithm>
#include <numeric>
#include <random>

#include "kernels/ops.h"
#include "tests/support/op_cases.h"

namespace cleave::testing {
namespace {

constexpr Range kAny = {-2, 2};

void add_top_k(std::vector<OpCase>& cases) {
  const auto add = [&](const Shape& x, int64_t k, void (*prepare)(std::vector<HostTensor>&)) {
    cases.push_back({.op = &ops::top_k,
                     .attrs = {{"K", k}},
                     .in = {f64(x)},
                     .ranges = {kAny},
                     .grad_outputs = 1,
                     .gradient = prepare == nullptr,  // with ties there is none
                     .prepare = prepare});
  };
  add({4, 8, 12}, 3, nullptr);
  add({8, 5}, 1, nullptr);
  add({16}, 16, nullptr);
  // Many ties.
  add({4, 8, 12}, 4, [](std::vector<HostTensor>& in) {
    for (double& x : in[0].numbers) x = std::floor(x);
  });
  cases.push_back({.op = &ops::top_k_backward,
                   .attrs = {{"e", int64_t{16}}},
                   .in = {f64({4, 8, 4}), i32({4, 8, 4})},
                   .ranges = {kAny, {0, 16}}});
  cases.push_back({.op = &ops::top_k_backward,
                   .factors = "sk,sk->se|e:indexed",
                   .attrs = {{"e", int64_t{12}}},
                   .in = {f64({8, 4}), i32({8, 4})},
                   .ranges = {kAny, {0, 12}}});
}

void add_slots(std::vector<OpCase>& cases) {
  // As much as is needed, hardly enough, and much too little.
  for (const int64_t capacity : {24, 4, 1}) {
    cases.push_back({.op = &ops::capacity_slots,
                     .attrs = {{"experts", int64_t{6}}, {"capacity", capacity}},
                     .in = {i32({4, 12, 2})},
                     .ranges = {{0, 6}}});
  }
  cases.push_back({.op = &ops::capacity_slots,
                   .attrs = {{"experts", int64_t{3}}, {"capacity", int64_t{5}}},
                   .in = {i32({10, 2})},
                   .ranges = {{0, 3}}});
  for (const Shape& shape : {Shape{4, 12, 2}, Shape{4, 8, 7, 3}, Shape{9, 2}}) {
    const int64_t rows = shape[shape.size() - 2] * shape.back();
    cases.push_back({.op = &ops::sorted_slots,
                     .attrs = {{"experts", int64_t{6}}, {"R", rows}},
                     .in = {i32(shape)},
                     .ranges = {{0, 6}}});
  }
  cases.push_back({.op = &ops::histogram,
                   .attrs = {{"e", int64_t{8}}, {"dtype", std::string("f64")}},
                   .in = {i32({4, 12, 4})},
                   .ranges = {{0, 8}}});
  cases.push_back({.op = &ops::histogram,
                   .factors = "sk->e|e:indexed",
                   .attrs = {{"e", int64_t{12}}, {"dtype", std::string("f64")}},
                   .in = {i32({8, 4})},
                   .ranges = {{0, 12}}});
}

// Different slots of each group for the operand with i32 numbers, some of them -1; there are as
// many as the groups' shares of operand 0's or output's rows, which `slots` says.
template <int64_t slots, int64_t groups>
void number_slots(std::vector<HostTensor>& in) {
  for (HostTensor& t : in) {
    if (t.type.dtype != DType::kI32) continue;
    std::mt19937_64 random(5);
    const size_t each = t.numbers.size() / groups;
    for (size_t g = 0; g < groups; ++g) {
      std::vector<int64_t> numbers(static_cast<size_t>(std::max<int64_t>(slots, 64)), -1);
      std::iota(numbers.begin(), numbers.begin() + slots, 0);
      std::shuffle(numbers.begin(), numbers.end(), random);
      for (size_t i = 0; i < each; ++i) {
        t.numbers[g * each + i] = static_cast<double>(numbers[i]);
      }
    }
  }
}

void add_moves(std::vector<OpCase>& cases) {
  // e and c: 8 x 8 slots for 12 x 4 choices, of which none is dropped.
  const TensorType x = f64({4, 12, 20}), slots = i32({4, 12, 4}), weights = f64({4, 12, 4}),
                   y = f64({8, 4, 8, 20});
  const Attrs sizes = {{"e", int64_t{8}}, {"c", int64_t{8}}};
  const auto all = number_slots<64, 4>, few = number_slots<32, 4>;
  for (const auto prepare : {all, few}) {
    cases.push_back({.op = &ops::dispatch, .attrs = sizes, .in = {x, slots}, .prepare = prepare});
    cases.push_back({.op = &ops::collect, .in = {y, slots}, .prepare = prepare});
    cases.push_back({.op = &ops::combine, .in = {y, slots, weights}, .prepare = prepare});
    cases.push_back(
        {.op = &ops::combine_backward, .in = {x, y, slots, weights}, .prepare = prepare});
  }
  // Rows in one dimension of slots; no groups; and several rows in one slot.
  const TensorType rows = f64({4, 48, 20});
  const auto sorted = number_slots<48, 4>;
  cases.push_back({.op = &ops::dispatch,
                   .factors = "bsd,bsk->brd|r:indexed",
                   .attrs = {{"r", int64_t{48}}},
                   .in = {x, slots},
                   .prepare = sorted});
  cases.push_back({.op = &ops::collect,
                   .factors = "brd,bsk->bsd|r:indexed",
                   .in = {rows, slots},
                   .prepare = sorted});
  cases.push_back({.op = &ops::combine,
                   .factors = "brd,bsk,bsk->bsd|r:indexed",
                   .in = {rows, slots, weights},
                   .prepare = sorted});
  cases.push_back({.op = &ops::combine_backward,
                   .factors = "bsd,brd,bsk,bsk->brd,bsk|r:indexed",
                   .in = {x, rows, slots, weights},
                   .prepare = sorted});
  cases.push_back({.op = &ops::dispatch,
                   .factors = "sd,sk->ecd|e:indexed,c:indexed",
                   .attrs = {{"e", int64_t{4}}, {"c", int64_t{8}}},
                   .in = {f64({12, 8}), i32({12, 4})},
                   .ranges = {kAny, {0, 32}}});
  cases.push_back({.op = &ops::combine,
                   .factors = "ecd,sk,sk->sd|e:indexed,c:indexed",
                   .in = {f64({4, 8, 8}), i32({12, 4}), f64({12, 4})},
                   .ranges = {kAny, {0, 32}}});
}

// The last operand: rows sorted by expert within each group, of 8 experts the last without rows.
void sort_rows(std::vector<HostTensor>& in) {
  std::vector<double>& numbers = in.back().numbers;
  const int64_t rows = in.back().type.shape.back();
  for (double& n : numbers) n = std::min(n, 6.0);
  for (auto at = numbers.begin(); at != numbers.end(); at += rows) std::sort(at, at + rows);
}

void add_grouped(std::vector<OpCase>& cases) {
  const Attrs experts = {{"experts", int64_t{8}}};
  Attrs sized = experts;
  sized.set("e", int64_t{8});
  const TensorType x = f64({4, 24, 12}), w = f64({8, 20, 12}), y = f64({4, 24, 20}),
                   rows = i32({4, 24});
  for (const auto prepare : {sort_rows, +[](std::vector<HostTensor>&) {}}) {  // or in any order
    cases.push_back({.op = &ops::grouped_matmul,
                     .attrs = experts,
                     .in = {x, w, rows},
                     .ranges = {kAny, kAny, {0, 8}},
                     .prepare = prepare});
    cases.push_back({.op = &ops::grouped_matmul,
                     .factors = "brf,efd,br->brd|e:indexed",
                     .attrs = experts,
                     .in = {y, w, rows},
                     .ranges = {kAny, kAny, {0, 8}},
                     .prepare = prepare});
    cases.push_back({.op = &ops::grouped_matmul_backward,
                     .attrs = sized,
                     .in = {y, x, rows},
                     .ranges = {kAny, kAny, {0, 8}},
                     .prepare = prepare});
  }
  cases.push_back({.op = &ops::grouped_matmul,
                   .factors = "rd,efd,r->rf|e:indexed",
                   .attrs = experts,
                   .in = {f64({16, 8}), f64({8, 4, 8}), i32({16})},
                   .ranges = {kAny, kAny, {0, 8}},
                   .prepare = sort_rows});
  cases.push_back({.op = &ops::grouped_matmul_backward,
                   .factors = "rf,rd,r->efd|e:indexed",
                   .attrs = sized,
                   .in = {f64({16, 4}), f64({16, 8}), i32({16})},
                   .ranges = {kAny, kAny, {0, 8}},
                   .prepare = sort_rows});
}

}  // namespace

std::vector<OpCase> expert_op_cases() {
  std::vector<OpCase> cases;
  add_top_k(cases);
  add_slots(cases);
  add_moves(cases);
  add_grouped(cases);
  return cases;
}

}  // namespace cleave::testing
