// A loss and its gradient, of the same scores at once: what the gradient needs beside them, and
// does not depend on the loss, is made before.
#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "executor/fuser.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

int64_t ignored(const Instr& loss) { return loss.attrs.integer_or("ignore", ops::kIgnoredTarget); }

class LossFuser {
 public:
  LossFuser(Fuser& fuser, uint32_t bit) : f_(fuser), p_(fuser.program()), bit_(bit) {}

  int run() {
    int made = 0;
    for (size_t i = 0; i < p_.instrs.size(); ++i) made += join_with_loss(i) ? 1 : 0;
    if (made > 0) rebuild();
    return made;
  }

 private:
  // A gradient, with the loss of the same scores: nobody else reads those and their log-sum-exps.
  bool join_with_loss(size_t i) {
    const Instr& back = p_.instrs[i];
    if (back.op != &ops::cross_entropy_backward || !is_plain(back)) return false;
    const TensorId scores = back.in[0], targets = back.in[1], lse = back.in[2], dloss = back.in[3];
    const std::optional<size_t> m = f_.maker(lse);
    if (!m || in_front_of_.contains(*m)) return false;
    const Instr& loss = p_.instrs[*m];
    if (loss.op != &ops::cross_entropy || !is_plain(loss) || loss.chunk != back.chunk ||
        loss.out[1] != lse || loss.in[0] != scores || loss.in[1] != targets ||
        ignored(loss) != ignored(back) || f_.readers(scores) != 2 || f_.readers(lse) != 1) {
      return false;
    }
    const auto maker = [&](TensorId t) { return f_.maker(t); };
    std::set<size_t> before;
    if (!can_move_before(p_, *m, {*m}, maker, dloss, before)) return false;
    for (const size_t k : before) {
      if (joined_.contains(k) || is_large(k, numel(p_.tensor(lse).geometry.shape))) return false;
    }
    for (const size_t k : before) {
      // Another loss may need it, too: what it needs itself is in front of both.
      size_t& loss_after = in_front_of_.try_emplace(k, *m).first->second;
      loss_after = std::min(loss_after, *m);
    }
    join(*m, i);
    return true;
  }

  // Whether it makes more than so many elements, as what the backward computes again may be: that
  // would be there beside the scores.
  bool is_large(size_t i, int64_t elements) const {
    const std::vector<TensorId>& out = p_.instrs[i].out;
    return std::any_of(out.begin(), out.end(),
                       [&](TensorId t) { return numel(p_.tensor(t).geometry.shape) > elements; });
  }

  void join(size_t m, size_t i) {
    Instr &loss = p_.instrs[m], &back = p_.instrs[i];
    SignatureParts factors = loss.signature->parts();
    factors.inputs.push_back(factors.inputs[1]);
    factors.outputs.push_back(factors.inputs[0]);
    loss.op = &ops::cross_entropy_both;
    loss.signature = &Signature::get(factors);
    loss.in.push_back(back.in[3]);
    loss.out.push_back(back.out[0]);
    loss.attrs.set("ignore", ignored(back));
    loss.fused |= back.fused | bit_;
    joined_.insert({m, i});
    gone_.insert(i);
  }

  void rebuild() {
    std::map<size_t, std::vector<size_t>> before;  // by loss: in the program's order
    for (const auto& [k, loss] : in_front_of_) before[loss].push_back(k);
    std::vector<Instr> left;
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      for (const size_t k : before[i]) {
        left.push_back(std::move(p_.instrs[k]));
        left.back().part = p_.instrs[i].part;
      }
      if (!in_front_of_.contains(i) && !gone_.contains(i)) left.push_back(std::move(p_.instrs[i]));
    }
    p_.instrs = std::move(left);
  }

  const Fuser& f_;
  Program& p_;
  const uint32_t bit_;
  std::map<size_t, size_t> in_front_of_;  // by instruction that moves: the loss behind it
  std::set<size_t> joined_;               // losses that make their gradients, and what made those
  std::set<size_t> gone_;                 // what made them
};

}  // namespace

int fuse_loss(Fuser& fuser, uint32_t bit) { return LossFuser(fuser, bit).run(); }

}  // namespace cleave
