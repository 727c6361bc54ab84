// A program that is being rewritten, with who makes and who reads each tensor; and the rewrites,
// which executor/fuse.cc lists.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "executor/buffers.h"
#include "executor/fuse.h"
#include "executor/program.h"

namespace cleave {

// Of one rank. Instructions that a rewrite takes away are marked, and leave the program when the
// rewrite has been tried everywhere: until then, indices hold.
class Fuser {
 public:
  Fuser(Program& program, const FuseOptions& options, std::vector<SharingWish>& wishes)
      : program_(program), options_(options), wishes_(wishes) {
    look();
  }

  Program& program() { return program_; }
  const FuseOptions& options() const { return options_; }
  // Which tensors would lie in the memory of which others.
  std::vector<SharingWish>& wishes() { return wishes_; }
  Instr& instr(size_t i) { return program_.instrs[i]; }
  const Instr& instr(size_t i) const { return program_.instrs[i]; }
  DType dtype(TensorId t) const { return program_.tensor(t).dtype; }
  // How many instructions read it, the program's end among them.
  int32_t readers(TensorId t) const { return readers_[static_cast<size_t>(t)]; }
  bool gone(size_t i) const { return gone_[i]; }

  // Tries the rewrite at every instruction that computes, in their order; returns how often it
  // was made. The instruction that then stands at i gets the bit, or the one that has got what i
  // made, or that mark() names.
  using Rewrite = bool (*)(Fuser&, size_t i);
  int apply(Rewrite rewrite, uint32_t bit = 0);
  // Rewrites the whole program at once; the same otherwise.
  using Pass = int (*)(Fuser&, uint32_t bit);
  int apply_to_all(Pass pass, uint32_t bit);

  // The instruction that makes the tensor; none makes a source.
  std::optional<size_t> maker(TensorId t) const;
  // The same, when it computes in the same part of the step.
  std::optional<size_t> maker(TensorId t, const Instr& reader) const;
  // The same of this op, when the tensor is its only result, for this reader alone.
  std::optional<size_t> maker(TensorId t, const Instr& reader, const OpDef* op) const;
  // Whether the tensor is there when instruction i runs.
  bool before(TensorId t, size_t i) const {
    return makers_[static_cast<size_t>(t)] < static_cast<int32_t>(i);
  }
  // Instruction m makes what i made, in the place of i, where the operands of both are there. m has
  // one result.
  void take_result(size_t m, size_t i);
  // Instruction m makes what i made, its only result, as result o, and i goes.
  void give_result(size_t m, size_t o, size_t i);
  // Everybody reads `by` instead of `t`.
  void replace(TensorId t, TensorId by);
  // The instruction, whose results nobody reads, goes.
  void remove(size_t i) { gone_[i] = true; }
  // The rewrite has joined something into this instruction.
  void mark(size_t i) { marked_ = i; }
  // A tensor that instruction i will make as its last result.
  TensorId add_result(size_t i, ProgramTensor tensor);
  // A new source's tensor, which instruction i alone reads, as its last operand.
  TensorId add_source(size_t i, ProgramTensor tensor);
  const Program& program() const { return program_; }

 private:
  void look();
  void sweep();

  Program& program_;
  const FuseOptions& options_;
  std::vector<SharingWish>& wishes_;
  uint32_t bit_ = 0;  // of the rewrite that is tried
  size_t marked_ = 0;
  std::vector<bool> gone_;        // by instruction
  std::vector<int32_t> makers_;   // by tensor; -1: a source
  std::vector<int32_t> readers_;  // by tensor
};

// An instruction of a part that every micro-batch runs, and not split.
bool is_plain(const Instr& instr);
// Whether the tensor is there before instruction `at`, or can be: adds the plain instructions that
// must go in front of it then, none of `stay`. `maker` is the tensor's; none makes a source.
bool can_move_before(const Program& program, size_t at, const std::set<size_t>& stay,
                     const std::function<std::optional<size_t>(TensorId)>& maker, TensorId t,
                     std::set<size_t>& moved);

// Whether a sum is over all but the last dimension.
bool sums_rows(const Signature& sum);
// A capital letter that the signature does not have, nor its small one.
char unused_letter(const Signature& s);
// Result o of an instruction whose op has the attribute `wide` is stored in f32.
void set_wide(Instr& instr, size_t o);

// fuse_update.cc
bool fuse_kept_copy(Fuser& fuser, size_t i);
bool fuse_rest(Fuser& fuser, size_t i);
bool fuse_narrow_gradient(Fuser& fuser, size_t i);
// Copies that nobody reads, other than an update, are not kept after all. For rewrites that come
// after these.
void forget_unread_copies(Program& program);

// fuse_products.cc
// The product becomes a linear that takes the operand too, with these factors, and has the
// attribute: "bias", "residual" or "gelu_backward".
void add_operand(Instr& product, TensorId operand, const std::string& text,
                 std::string_view attribute);
bool fuse_wide(Fuser& fuser, size_t i);
bool fuse_bias(Fuser& fuser, size_t i);
bool fuse_residual(Fuser& fuser, size_t i);
bool fuse_gelu(Fuser& fuser, size_t i);
bool fuse_swiglu(Fuser& fuser, size_t i);

// fuse_loss.cc; over a whole program: how many losses make their gradients then, which get the bit.
int fuse_loss(Fuser& fuser, uint32_t bit);
// fuse_siblings.cc; over a whole program: how many products stand for several then.
int fuse_siblings(Fuser& fuser, uint32_t bit);

// fuse_norms.cc
bool fuse_norm_residual(Fuser& fuser, size_t i);
bool fuse_column_sum(Fuser& fuser, size_t i);

// fuse_parts.cc
bool fuse_parts(Fuser& fuser, size_t i);

// fuse_chains.cc; over a whole program: how many chains there are then, which get the bit.
int fuse_chains(Fuser& fuser, uint32_t bit);
// fuse_chunks.cc; over a whole program: how many chunks there are then, whose products get the bit.
int fuse_chunks(Fuser& fuser, uint32_t bit);

}  // namespace cleave
