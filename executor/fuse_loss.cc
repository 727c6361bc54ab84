// A loss and its gradient, of the same scores at once.
#include "executor/fuser.h"
#include "kernels/ops.h"

namespace cleave {

// kIgnoredTarget of kernels/rows.h, when the loss says none.
static int64_t ignored(const Instr& loss) { return loss.attrs.integer_or("ignore", -100); }

// The gradient of the loss's scores, which nobody else reads, of what is there before the loss: as
// in a head that goes through its rows in chunks.
bool fuse_loss(Fuser& fuser, size_t i) {
  const Instr& back = fuser.instr(i);
  if (back.op != &ops::cross_entropy_backward) return false;
  const TensorId scores = back.in[0], targets = back.in[1], lse = back.in[2], dloss = back.in[3];
  const std::optional<size_t> m = fuser.maker(lse, back);
  if (!m) return false;
  Instr& loss = fuser.instr(*m);
  if (loss.op != &ops::cross_entropy || loss.out[1] != lse || loss.in[0] != scores ||
      loss.in[1] != targets || ignored(loss) != ignored(back) || fuser.readers(scores) != 2 ||
      fuser.readers(lse) != 1 || !fuser.before(dloss, *m)) {
    return false;
  }
  const Signature& s = *loss.signature;
  const std::string all = s.input_text(0), rows = s.input_text(1);
  const size_t notes = s.text().find('|');
  loss.op = &ops::cross_entropy_both;
  loss.signature =
      &Signature::get(all + "," + rows + "," + rows + "->" + rows + "," + rows + "," + all +
                      (notes == std::string::npos ? "" : s.text().substr(notes)));
  loss.in.push_back(dloss);
  loss.attrs.set("ignore", ignored(back));
  fuser.give_result(*m, 2, i);
  return true;
}

}  // namespace cleave
