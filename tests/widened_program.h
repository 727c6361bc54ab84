// A program of bf16 that runs on the processor: the same instructions in wider types.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "executor/memory_layout.h"
#include "executor/program.h"
#include "kernels/ops.h"

namespace cleave::testing {

// The program with parameters as they are without the fusion `rest`: whole, where their rests were,
// with a copy of 16 bits.
inline Program with_whole_parameters(Program p) {
  std::vector<Instr> casts;
  for (size_t i = 0; i < p.sources.size(); ++i) {
    if (p.sources[i].rest < 0) continue;
    ProgramSource& s = p.sources[i];
    const ProgramSource& rest = p.sources[static_cast<size_t>(s.rest)];
    const KeptTensor copy{s.tensor, s.final};
    p.kept.push_back(copy);
    s.tensor = rest.tensor;
    s.final = rest.final;
    s.narrow = false;
    s.rest = -1;
    for (const TensorId t : {s.tensor, s.final}) p.tensor(t).dtype = DType::kF32;
    p.buffers[static_cast<size_t>(p.tensor(s.tensor).buffer)].bytes *= 4;  // for f64 even
    for (Instr& update : p.instrs) {
      if (std::count(update.out.begin(), update.out.end(), s.final) == 0) continue;
      update.in[0] = s.tensor;
      update.in.pop_back();
      update.out[0] = s.final;
      update.out.back() = copy.final;
      update.attrs.set("rest", int64_t{0});
      update.attrs.set("dtype", std::string("bf16"));
      SignatureParts factors = update.signature->parts();
      factors.inputs.pop_back();
      update.signature = &Signature::get(factors);
      Instr cast;
      cast.op = &ops::cast;
      cast.signature = &Signature::get({{factors.inputs[0]}, {factors.inputs[0]}, ""});
      cast.attrs = {{"dtype", std::string("bf16")}};
      cast.letter_atoms = update.letter_atoms;
      cast.letter_atoms.resize(cast.signature->factors().size());
      cast.splits = update.splits;
      cast.in = {s.tensor};
      cast.out = {copy.tensor};
      cast.part = Part::kBegin;
      casts.push_back(std::move(cast));
    }
  }
  p.instrs.insert(p.instrs.begin(), casts.begin(), casts.end());
  std::erase_if(p.sources, [](const ProgramSource& s) { return s.is_rest; });
  return p;
}

// The program with bf16 as f32, and what was cast to or kept in f32 as f64, so that it runs on the
// processor: parameters, moments, their gradients, and what the update makes.
inline Program widened(Program program) {
  Program p = with_whole_parameters(std::move(program));
  std::vector<bool> wide(p.tensors.size(), false);
  const auto widen = [&](TensorId t) {
    if (p.tensor(t).dtype == DType::kF32) wide[static_cast<size_t>(t)] = true;
  };
  for (const ProgramSource& s : p.sources) {
    if (s.kind == SourceKind::kData || s.name == "accumulated.loss") continue;
    widen(s.tensor);
    widen(s.final);
  }
  for (const Instr& instr : p.instrs) {
    const bool of_gradient = instr.op == &ops::cast && instr.part == Part::kBackward;
    if (of_gradient || instr.part == Part::kUpdate) {
      for (TensorId t : instr.out) widen(t);
    }
  }
  std::vector<bool> moment(p.tensors.size(), false);  // in bf16, which the processor updates too
  for (const ProgramSource& s : p.sources) {
    if (s.kind != SourceKind::kState || p.tensor(s.tensor).dtype != DType::kBF16) continue;
    for (const TensorId t : {s.tensor, s.final}) moment[static_cast<size_t>(t)] = true;
  }
  for (size_t t = 0; t < p.tensors.size(); ++t) {
    if (wide[t]) p.tensors[t].dtype = DType::kF64;
    if (p.tensors[t].dtype == DType::kBF16 && !moment[t]) p.tensors[t].dtype = DType::kF32;
  }
  for (Instr& instr : p.instrs) {
    if (!instr.attrs.has("dtype")) continue;
    const bool copies = instr.op == &ops::adamw || instr.op == &ops::sgd;
    const TensorId typed = copies ? instr.out.back() : instr.out[0];
    instr.attrs.set("dtype", std::string(name_of(p.tensor(typed).dtype)));
  }
  for (Buffer& b : p.buffers) b.bytes *= 2;  // enough for all
  plan_memory(p);
  check(p);
  return p;
}

}  // namespace cleave::testing
