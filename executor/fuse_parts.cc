// Operands that are put together are made where they belong.
#include "executor/fuser.h"
#include "kernels/ops.h"

namespace cleave {

// A stack, or another op that only puts its operands together, each made for it alone. The
// attribute `joins` says so to those who lay out memory.
bool fuse_parts(Fuser& fuser, size_t i) {
  Instr& whole = fuser.instr(i);
  if ((whole.op != &ops::stack && whole.op != &ops::concat) || whole.attrs.has("joins")) {
    return false;
  }
  for (TensorId t : whole.in) {
    const std::optional<size_t> m = fuser.maker(t, whole);
    if (!m || fuser.readers(t) != 1) return false;
    // What lies in other memory cannot be made here.
    if (fuser.instr(*m).op->view != nullptr || fuser.instr(*m).attrs.has("joins")) return false;
  }
  whole.attrs.set("joins", int64_t{1});
  return true;
}

}  // namespace cleave
