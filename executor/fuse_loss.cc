// A loss and its gradient, of the same scores at once: what the gradient needs beside them, and does
// not depend on the loss, is made before.
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
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      const std::optional<size_t> loss = loss_of(i);
      if (!loss) continue;
      join(*loss, i);
      ++made;
    }
    if (made > 0) rebuild();
    return made;
  }

 private:
  // The loss whose gradient this instruction makes, where that can be made with it; notes what must
  // be there before. Nobody else reads the scores and their log-sum-exps.
  std::optional<size_t> loss_of(size_t i) {
    const Instr& back = p_.instrs[i];
    if (back.op != &ops::cross_entropy_backward || !is_plain(back)) return {};
    const TensorId scores = back.in[0], targets = back.in[1], lse = back.in[2], dloss = back.in[3];
    const std::optional<size_t> m = f_.maker(lse);
    if (!m || moved_.contains(*m)) return {};
    const Instr& loss = p_.instrs[*m];
    if (loss.op != &ops::cross_entropy || !is_plain(loss) || loss.chunk != back.chunk ||
        loss.out[1] != lse || loss.in[0] != scores || loss.in[1] != targets ||
        ignored(loss) != ignored(back) || f_.readers(scores) != 2 || f_.readers(lse) != 1) {
      return {};
    }
    const auto maker = [&](TensorId t) { return f_.maker(t); };
    std::set<size_t> before;
    if (!can_move_before(p_, *m, {*m}, maker, dloss, before)) return {};
    for (const size_t k : before) {
      if (moved_.contains(k) || before_.contains(k)) return {};  // of another loss
    }
    moved_.insert(before.begin(), before.end());
    before_[*m] = std::move(before);
    return m;
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
    moved_.insert(i);
  }

  void rebuild() {
    std::vector<Instr> left;
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      if (const auto before = before_.find(i); before != before_.end()) {
        for (const size_t k : before->second) {
          left.push_back(std::move(p_.instrs[k]));
          left.back().part = p_.instrs[i].part;
        }
      }
      if (!moved_.contains(i)) left.push_back(std::move(p_.instrs[i]));
    }
    p_.instrs = std::move(left);
  }

  const Fuser& f_;
  Program& p_;
  const uint32_t bit_;
  std::map<size_t, std::set<size_t>> before_;  // by loss: instructions that go in front of it
  std::set<size_t> moved_;                     // those, and gradients that losses make
};

}  // namespace

int fuse_loss(Fuser& fuser, uint32_t bit) { return LossFuser(fuser, bit).run(); }

}  // namespace cleave
