// What updates take and make besides: the parameter's copy in the computation's type, or the
// parameter as that copy and the rest of its bits, and gradients in that type.
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

Attrs without(const Attrs& attrs, std::string_view name) {
  Attrs left;
  for (const auto& [key, value] : attrs.items()) {
    if (key != name) left.set(key, value);
  }
  return left;
}

ProgramSource* parameter_at(Program& program, TensorId t) {
  for (ProgramSource& s : program.sources) {
    if (s.tensor == t) return s.kind == SourceKind::kParameter ? &s : nullptr;
  }
  return nullptr;
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

int32_t reads_of(const Fuser& fuser, TensorId t) {
  int64_t reads = 0;
  for (size_t i = 0; i < fuser.program().instrs.size(); ++i) {
    const std::vector<TensorId>& in = fuser.instr(i).in;
    if (!fuser.gone(i)) reads += std::count(in.begin(), in.end(), t);
  }
  return static_cast<int32_t>(reads);
}

// The update writes a copy in bf16, which everybody reads: the parameter becomes the copy.
bool fuse_rest_of_update(Fuser& fuser, size_t i) {
  Program& program = fuser.program();
  Instr& update = fuser.instr(i);
  if (!is_update(update) || !update.attrs.has("dtype") || update.attrs.text("dtype") != "bf16") {
    return false;
  }
  const TensorId parameter = update.in[0], final = update.out[0];
  ProgramSource* const source = parameter_at(program, parameter);
  if (source == nullptr || source->final != final || source->on_host) return false;
  if (fuser.dtype(parameter) != DType::kF32 || fuser.readers(final) != 1) return false;
  const auto kept = std::find_if(program.kept.begin(), program.kept.end(),
                                 [&](const auto& k) { return k.final == update.out.back(); });
  if (kept == program.kept.end() || fuser.readers(kept->final) != 1) return false;
  const TensorId copy = kept->tensor;
  const std::optional<size_t> cast = fuser.maker(copy);
  // The update and the cast.
  if (!cast || fuser.instr(*cast).in[0] != parameter || fuser.readers(parameter) != 2) return false;
  if (fuser.readers(copy) != reads_of(fuser, copy) + 1) return false;  // and the entry of kept

  for (const TensorId t : {parameter, final}) program.tensor(t).dtype = DType::kBF16;
  fuser.replace(copy, parameter);
  fuser.remove(*cast);
  program.kept.erase(kept);
  ProgramTensor rest = program.tensor(parameter);
  rest.dtype = DType::kI16;
  rest.name += " (rest)";
  update.out.pop_back();
  const TensorId before = fuser.add_source(i, rest), after = fuser.add_result(i, rest);
  SignatureParts factors = update.signature->parts();
  factors.inputs.push_back(factors.inputs[0]);
  update.signature = &Signature::get(factors);
  update.attrs = without(update.attrs, "dtype");
  update.attrs.set("rest", int64_t{1});
  fuser.wishes().push_back({.tensor = after, .target = before, .must = true, .in_place = true});

  source->narrow = true;
  source->rest = static_cast<int32_t>(program.sources.size());
  ProgramSource beside = *source;
  beside.name = rest.name;
  beside.tensor = before;
  beside.final = after;
  beside.narrow = false;
  beside.rest = -1;
  beside.is_rest = true;
  program.sources.push_back(std::move(beside));
  return true;
}

// Where nothing updates parameters: one that is only cast to bf16, and that the training program
// keeps as such.
bool fuse_narrow_parameter(Fuser& fuser, size_t i) {
  Program& program = fuser.program();
  const Instr& cast = fuser.instr(i);
  if (cast.op != &ops::cast || fuser.options().trained == nullptr) return false;
  const TensorId parameter = cast.in[0];
  ProgramSource* const source = parameter_at(program, parameter);
  if (source == nullptr || source->final != parameter || source->on_host) return false;
  if (fuser.dtype(parameter) != DType::kF32) return false;
  const std::vector<ProgramSource>& trained = fuser.options().trained->sources;
  const auto narrow = [&](const ProgramSource& s) { return s.narrow && s.name == source->name; };
  if (std::none_of(trained.begin(), trained.end(), narrow)) return false;
  std::vector<size_t> casts;
  for (size_t r = 0; r < program.instrs.size(); ++r) {
    const Instr& reader = fuser.instr(r);
    if (fuser.gone(r)) continue;
    if (std::count(reader.in.begin(), reader.in.end(), parameter) == 0) continue;
    if (reader.op != &ops::cast || fuser.dtype(reader.out[0]) != DType::kBF16 ||
        reader.signature->inputs()[0] != reader.signature->outputs()[0] ||
        fuser.readers(reader.out[0]) != reads_of(fuser, reader.out[0])) {
      return false;
    }
    casts.push_back(r);
  }
  // And the source's end.
  if (fuser.readers(parameter) != std::ssize(casts) + 1) return false;
  program.tensor(parameter).dtype = DType::kBF16;
  source->narrow = true;
  for (const size_t r : casts) {
    fuser.replace(fuser.instr(r).out[0], parameter);
    fuser.remove(r);
  }
  return true;
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

// A parameter in f32 of which only its copy in bf16 is read, but for the update: it is kept as that
// copy and the rest of its bits.
bool fuse_rest(Fuser& fuser, size_t i) {
  return fuse_rest_of_update(fuser, i) || fuse_narrow_parameter(fuser, i);
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
    instr.attrs = without(instr.attrs, "dtype");
  }
}

}  // namespace cleave
