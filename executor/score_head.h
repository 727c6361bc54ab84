// The head of a language model in a program of one rank: the product that makes the scores of all
// classes, their loss, and the backward of both. What it is called by its model does not matter.
//
//   scores = product(x, w); losses, lses = cross_entropy(scores, targets)
//   dscores = cross_entropy_backward(scores, targets, lses, dlosses)
//   dx = product(dscores, w); dw = product(x, dscores)
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "executor/program.h"

namespace cleave {

// Instructions, by their places in the program.
struct ScoreHead {
  size_t product = 0, loss = 0, backward = 0;  // the first of those that make the same
  // Those three, what makes the same as the first two again, and views between.
  std::set<size_t> instrs;
  std::vector<size_t> along, across;  // products of dscores: dx, and dw
  std::set<TensorId> dscores;         // with views of them
  // What makes targets and dlosses, and must go in front: it depends on nothing of the head.
  std::set<size_t> before;
  int64_t rows = 1;
  int64_t chunks = 1;  // of the rows
};

// Finds heads, and answers what rewriting one asks about the program, which must not have changed.
class HeadFinder {
 public:
  explicit HeadFinder(const Program& program) : p_(program) {}

  // The first head whose scores take more bytes than the limit, and whose rows divide into chunks
  // whose scores do not: of everything else, nobody reads scores or dscores, and what the backward
  // needs is there before the head, or can be.
  std::optional<ScoreHead> find(int64_t limit);

  // The first tensor that is the same: made of the same by the same op, as what the backward
  // computes again is.
  TensorId first(TensorId t) const { return first_[static_cast<size_t>(t)]; }
  std::optional<size_t> maker(TensorId t) const;  // none makes a source
  const std::vector<size_t>& readers(TensorId t) const { return readers_[static_cast<size_t>(t)]; }
  bool ends(TensorId t) const { return ends_.contains(t); }  // it is there after the step
  const std::set<TensorId>& ends() const { return ends_; }
  // Whether the tensor, or one that is the same, is there when the head begins.
  bool is_there(const ScoreHead& head, TensorId t) const;

 private:
  const Instr& instr(size_t i) const { return p_.instrs[i]; }
  int64_t bytes(TensorId t) const;
  void look();
  TensorId seen_through(TensorId t) const;
  std::optional<ScoreHead> head_at(size_t i, int64_t limit) const;
  bool add_forward(ScoreHead& head, TensorId scores) const;
  bool add_products(ScoreHead& head) const;

  const Program& p_;
  std::vector<int64_t> makers_;               // by tensor; -1: a source
  std::vector<std::vector<size_t>> readers_;  // by tensor
  std::vector<TensorId> first_;               // by tensor
  std::set<TensorId> ends_;
};

// The factors of an operand's dimensions but the last, one each; none when they are not.
std::span<const DimFactors> row_factors(const OperandDims& dims);
// Whether the operand's first dimensions are the rows, and the others have nothing of them.
bool has_rows(const OperandDims& dims, std::span<const DimFactors> rows);

}  // namespace cleave
