// A program of bf16 that runs on the processor: the same instructions in wider types.
#pragma once

#include <string>
#include <vector>

#include "executor/memory_layout.h"
#include "executor/program.h"
#include "kernels/ops.h"

namespace cleave::testing {

// The program with bf16 as f32, and what was cast to or kept in f32 as f64, so that it runs on the
// processor: parameters, moments, their gradients, and what the update makes.
inline Program widened(Program p) {
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
