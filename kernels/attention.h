// How attention's operands lie: shared by the forward and the backward kernel.
//
//   forward   q "bs(gr)E", k "btgE", v "btgV" -> o "bs(gr)V", lse "bs(gr)"
//   backward  do, q, k, v, o, lse -> dq, dk, dv
//
// With attribute `sum` the backward has a fourth result "(XgrE)", X of size 3: the sums of dq, dk
// and dv over all rows, one after the other. There r = 1, and e = v.
//
// A query sees keys whose global position is not beyond its own when `causal`. Each of g key heads
// serves r query heads; a plain "g" in place of "(gr)" means r = 1. There may be any number of
// batch factors. The keys' dimension may be a compound whose outer factors the outputs carry too,
// "(nT)" with o "bns(gr)V": then each of n blocks of keys is attended to by itself.
//
// With attribute `dropout` > 0 there is one more operand, the step (a scalar i32, "...,->..."), and
// attribute `name`; the mask's index is that of the weight in the whole [batch, g, r, s, keys], so
// all factors of q and of the keys' dimension must be indexed.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "graph/op.h"
#include "kernels/blas.h"
#include "kernels/dropout_mask.h"
#include "kernels/loops.h"
#include "kernels/parallel.h"

namespace cleave {

// Rows of queries that are handled together: few enough for the scores to stay in the cache.
inline int64_t attention_block(int64_t queries, int64_t keys) {
  return std::min(queries, std::clamp<int64_t>(65536 / std::max<int64_t>(keys, 1), 16, 128));
}

// What the GPU's backward on tensor cores keeps of every query: two numbers, and room up to a whole
// block of 64. `heads`: batch times query heads.
inline int64_t attention_statistics_bytes(int64_t heads, int64_t queries) {
  return 2 * heads * ((queries + 63) / 64 * 64) * int64_t{sizeof(float)};
}

// The factors of attention by their role, from the strings of q, v and o.
struct AttentionFactors {
  std::vector<int8_t> batch;  // of q
  std::vector<int8_t> outer;  // of o, but s, g, r and V: the batch and the blocks of keys
  std::vector<int8_t> key_dim;
  int8_t s, g, t, e, v;
  int8_t r = -1;  // -1: one query head for each key head

  AttentionFactors(const OperandDims& q, const OperandDims& v_dims, const OperandDims& o);
};

// One call's sizes and positions, and the loop over what is independent.
struct AttentionCall {
  const KernelArgs& args;
  AttentionFactors factors;
  int64_t s, t, g, r, e, v;  // local sizes
  int64_t block;             // rows of queries handled together
  bool causal;
  double scale;
  std::vector<int64_t> query_positions;

  AttentionCall(const KernelArgs& args, AttentionFactors factors);

  int64_t local(int8_t factor) const {
    return factor < 0 ? 1 : args.extents[static_cast<size_t>(factor)].local;
  }
  // The whole positions of the keys of one block; ascending. `index`: of the outer factors.
  std::vector<int64_t> key_positions(const std::vector<int64_t>& index) const;
  // How many keys the query sees, given their positions.
  int64_t visible(int64_t query, const std::vector<int64_t>& keys) const {
    if (!causal) return t;
    const int64_t position = query_positions[static_cast<size_t>(query)];
    return std::upper_bound(keys.begin(), keys.end(), position) - keys.begin();
  }
  // The offset of (outer index, key head, query head within it) in an operand with these strides.
  int64_t offset(const Shape& strides, const std::vector<int64_t>& index, int64_t key_head,
                 int64_t query_head) const;
};

// Calls fn(index, head, member) for every index of the outer factors and each of `heads` heads, on
// all threads.
template <class Fn>
void for_each_head(const AttentionCall& call, int64_t heads, const Fn& fn) {
  const std::vector<int8_t>& outer = call.factors.outer;
  int64_t tasks = heads;
  for (const int8_t f : outer) tasks *= call.local(f);
  run_tasks(call.args, tasks, [&](int64_t task, int member) {
    std::vector<int64_t> index(outer.size(), 0);
    int64_t rest = task / heads;
    for (size_t d = outer.size(); d-- > 0; rest /= call.local(outer[d])) {
      index[d] = rest % call.local(outer[d]);
    }
    fn(std::as_const(index), task % heads, member);
  });
}

// The backward's sums of its three results, which are there: "bs(gr)E->(grE)", "btgE->(gE)",
// "btgV->(gV)".
void sum_attention_results(const KernelArgs& args, const AttentionFactors& f);

// Dropout of the weights of one query: nothing when the rate is 0.
class AttentionDropout {
 public:
  // `step`: which input holds the step, when there is dropout.
  AttentionDropout(const AttentionCall& call, size_t step);
  bool active() const { return active_; }
  // Fills factors[0..n) for the first n keys of the query.
  template <class T>
  void fill(const std::vector<int64_t>& index, int64_t key_head, int64_t query_head, int64_t query,
            const std::vector<int64_t>& keys, int64_t n, T* factors) const {
    const uint64_t first = row(index, key_head, query_head, query);
    const auto key = [&](int64_t i) { return static_cast<uint64_t>(keys[static_cast<size_t>(i)]); };
    if (n == 0) return;
    if (key(n - 1) - key(0) == static_cast<uint64_t>(n - 1)) {
      mask_.fill(first + key(0), n, factors);
    } else {
      for (int64_t i = 0; i < n; ++i) factors[i] = static_cast<T>(mask_.at(first + key(i)));
    }
  }

 private:
  uint64_t row(const std::vector<int64_t>& index, int64_t key_head, int64_t query_head,
               int64_t query) const;

  const AttentionCall& call_;
  bool active_;
  DropoutMask mask_;
};

// Throws Error unless the operands have the element types that `kinds` says (see expect_types); a
// last operand for the step comes with dropout.
void expect_attention(const OpCall& call, std::string_view kinds);

// The flops of so many products of scores over E and over V; half of them when causal.
double attention_products(const OpCall& call, const AttentionFactors& f, int over_e, int over_v);

// Pieces of the workspace, one after the other, each on a cache line of its own.
template <class T>
class Scratch {
 public:
  explicit Scratch(void* workspace) : next_(static_cast<T*>(workspace)) {}
  static int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }
  T* take(int64_t n) {
    T* piece = next_;
    next_ += padded(n);
    return piece;
  }

 private:
  T* next_;
};

// The rows x columns matrix at `data`, copied to `scratch` when BLAS cannot take its strides.
template <class T>
Matrix<const T> blas_input(int64_t rows, int64_t columns, Matrix<const T> m, T* scratch) {
  if (blas_takes(rows, columns, m.row, m.column)) return m;
  copy_elements(m.data, {m.row, m.column}, scratch, {columns, 1}, {rows, columns});
  return {scratch, columns, 1};
}

// Where a product destined for `m` is to be written; and its way there.
template <class T>
Matrix<T> blas_output(int64_t rows, int64_t columns, Matrix<T> m, T* scratch) {
  return blas_takes(rows, columns, m.row, m.column) ? m : Matrix<T>{scratch, columns, 1};
}
template <class T>
void deliver(int64_t rows, int64_t columns, Matrix<T> from, Matrix<T> to) {
  if (from.data == to.data) return;
  copy_elements<T>(from.data, {from.row, from.column}, to.data, {to.row, to.column},
                   {rows, columns});
}

}  // namespace cleave
