// What updates take and make besides: the parameter's copy in the computation's type, and gradients
// in that type.
#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "executor/fuser.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

bool is_update(const Instr& instr) {
  return instr.kind == InstrKind::kCompute && (instr.op == &ops::adamw || instr.op == &ops::sgd);
}

// The update of the parameter that the tensor is as the step begins.
std::optional<size_t> update_of(const Fuser& fuser, const Program& program, TensorId parameter) {
  for (const ProgramSource& s : program.sources) {
    if (s.tensor != parameter) continue;
    if (s.kind != SourceKind::kParameter || s.on_host || s.final == s.tensor) return {};
    const std::optional<size_t> u = fuser.maker(s.final);
    if (!u) return {};
    const Instr& update = program.instrs[*u];
    if (!is_update(update) || update.in[0] != parameter || update.out[0] != s.final) return {};
    return u;
  }
  return {};
}

}  // namespace

// A cast of a parameter, which the update has anyway when it makes the next step's. It moves to the
// step's beginning, where a runtime does it only when the parameter was set from outside.
bool fuse_kept_copy(Fuser& fuser, size_t i) {
  Instr& cast = fuser.instr(i);
  Program& program = fuser.program();
  if (cast.op != &ops::cast || cast.part == Part::kUpdate) return false;
  const TensorId parameter = cast.in[0], copy = cast.out[0];
  if (cast.signature->inputs()[0] != cast.signature->outputs()[0]) return false;
  if (size_of(fuser.dtype(copy)) >= size_of(fuser.dtype(parameter))) return false;
  const std::optional<size_t> u = update_of(fuser, program, parameter);
  if (!u) return false;
  Instr& update = fuser.instr(*u);
  const std::string type(name_of(fuser.dtype(copy)));
  if (update.attrs.has("dtype")) {
    // Another cast of it was kept.
    const TensorId final = update.out.back();
    const auto known = std::find_if(program.kept.begin(), program.kept.end(),
                                    [&](const KeptTensor& k) { return k.final == final; });
    if (update.attrs.text("dtype") != type || known == program.kept.end()) return false;
    fuser.replace(copy, known->tensor);
    fuser.remove(i);
    fuser.mark(*u);
    return true;
  }
  SignatureParts factors = update.signature->parts();
  factors.outputs.push_back(factors.outputs[0]);
  update.signature = &Signature::get(factors);
  update.attrs.set("dtype", type);
  ProgramTensor next = program.tensor(copy);
  next.chunk = update.chunk;
  const TensorId final = fuser.add_result(*u, std::move(next));
  program.kept.push_back({copy, final});
  cast.part = Part::kBegin;
  fuser.mark(*u);
  return true;
}

// A cast of a gradient of bf16 to the parameter's type, which only the update and the sum of its
// squares read: they compute in f32 in any case. f16 has fewer exponents: there a product that is
// stored in f32 loses less.
bool fuse_narrow_gradient(Fuser& fuser, size_t i) {
  const Instr& cast = fuser.instr(i);
  Program& program = fuser.program();
  if (cast.op != &ops::cast || fuser.dtype(cast.in[0]) != DType::kBF16) return false;
  if (cast.signature->inputs()[0] != cast.signature->outputs()[0]) return false;
  const TensorId wide = cast.out[0], narrow = cast.in[0];
  int32_t found = 0;
  size_t last = 0;
  std::vector<size_t> sums;
  for (size_t r = i + 1; r < program.instrs.size(); ++r) {
    if (fuser.gone(r)) continue;
    const Instr& reader = fuser.instr(r);
    const auto reads = static_cast<int32_t>(std::count(reader.in.begin(), reader.in.end(), wide));
    if (reads == 0) continue;
    const bool sum = reader.op == &ops::sum_squares;
    if (!sum && !(is_update(reader) && reads == 1 && reader.in[1] == wide)) return false;
    if (sum) sums.push_back(r);
    found += reads;
    last = r;
  }
  if (found == 0 || found != fuser.readers(wide)) return false;
  for (size_t r : sums) {
    Instr& sum = fuser.instr(r);
    sum.attrs.set("dtype", std::string(name_of(fuser.dtype(sum.out[0]))));
  }
  fuser.replace(wide, narrow);
  fuser.remove(i);
  fuser.mark(last);
  return true;
}

void forget_unread_copies(Program& program) {
  if (program.kept.empty()) return;
  std::vector<bool> read(program.tensors.size(), false);
  for (const Instr& instr : program.instrs) {
    for (TensorId t : instr.in) read[static_cast<size_t>(t)] = true;
  }
  for (const ProgramOutput& o : program.outputs) read[static_cast<size_t>(o.tensor)] = true;
  std::set<TensorId> forgotten;
  std::erase_if(program.kept, [&](const KeptTensor& k) {
    if (read[static_cast<size_t>(k.tensor)] || read[static_cast<size_t>(k.final)]) return false;
    forgotten.insert(k.tensor);
    forgotten.insert(k.final);
    return true;
  });
  std::erase_if(program.instrs, [&](const Instr& instr) {
    return instr.op == &ops::cast && forgotten.contains(instr.out[0]);
  });
  for (Instr& instr : program.instrs) {
    if (!is_update(instr) || !forgotten.contains(instr.out.back())) continue;
    instr.out.pop_back();
    SignatureParts factors = instr.signature->parts();
    factors.outputs.pop_back();
    instr.signature = &Signature::get(factors);
    Attrs attrs;
    for (const auto& [name, value] : instr.attrs.items()) {
      if (name != "dtype") attrs.set(name, value);
    }
    instr.attrs = std::move(attrs);
  }
}

}  // namespace cleave
