#include "executor/fuser.h"

#include <algorithm>
#include <cctype>
#include <utility>

#include "graph/error.h"

namespace cleave {

int Fuser::apply(Rewrite rewrite, uint32_t bit) {
  int made = 0;
  bit_ = bit;
  for (size_t i = 0; i < program_.instrs.size(); ++i) {
    marked_ = i;
    if (gone_[i] || instr(i).kind != InstrKind::kCompute || !rewrite(*this, i)) continue;
    ++made;
    if (!gone_[marked_]) instr(marked_).fused |= bit;
  }
  sweep();
  return made;
}

int Fuser::apply_to_all(Pass pass, uint32_t bit) {
  const int made = pass(*this, bit);
  look();
  return made;
}

std::optional<size_t> Fuser::maker(TensorId t) const {
  const int32_t m = makers_[static_cast<size_t>(t)];
  if (m < 0) return {};
  return static_cast<size_t>(m);
}

std::optional<size_t> Fuser::maker(TensorId t, const Instr& reader) const {
  const int32_t m = makers_[static_cast<size_t>(t)];
  if (m < 0 || gone_[static_cast<size_t>(m)]) return {};
  const Instr& made = program_.instrs[static_cast<size_t>(m)];
  if (made.kind != InstrKind::kCompute || made.part != reader.part || made.chunk != reader.chunk) {
    return {};
  }
  return static_cast<size_t>(m);
}

std::optional<size_t> Fuser::maker(TensorId t, const Instr& reader, const OpDef* op) const {
  const std::optional<size_t> m = maker(t, reader);
  if (!m || readers(t) != 1) return {};
  const Instr& made = program_.instrs[*m];
  return made.op == op && made.out.size() == 1 ? m : std::nullopt;
}

void Fuser::take_result(size_t m, size_t i) {
  instr(m).out = std::move(instr(i).out);
  instr(m).fused |= instr(i).fused;
  instr(i) = std::move(instr(m));
  gone_[m] = true;
}

void Fuser::give_result(size_t m, size_t o, size_t i) {
  const TensorId t = instr(i).out[0];
  if (o == instr(m).out.size()) instr(m).out.push_back(t);
  instr(m).out[o] = t;
  instr(m).fused |= instr(i).fused | bit_;
  makers_[static_cast<size_t>(t)] = static_cast<int32_t>(m);
  gone_[i] = true;
}

void Fuser::replace(TensorId t, TensorId by) {
  for (size_t i = 0; i < program_.instrs.size(); ++i) {
    if (gone_[i]) continue;
    for (TensorId& in : instr(i).in) {
      if (in != t) continue;
      in = by;
      --readers_[static_cast<size_t>(t)];
      ++readers_[static_cast<size_t>(by)];
    }
  }
}

TensorId Fuser::add_result(size_t i, ProgramTensor tensor) {
  const auto t = static_cast<TensorId>(program_.tensors.size());
  program_.tensors.push_back(std::move(tensor));
  makers_.push_back(static_cast<int32_t>(i));
  readers_.push_back(0);
  instr(i).out.push_back(t);
  return t;
}

TensorId Fuser::add_source(size_t i, ProgramTensor tensor) {
  const auto t = static_cast<TensorId>(program_.tensors.size());
  program_.tensors.push_back(std::move(tensor));
  makers_.push_back(-1);
  readers_.push_back(1);
  instr(i).in.push_back(t);
  return t;
}

void Fuser::look() {
  gone_.assign(program_.instrs.size(), false);
  makers_.assign(program_.tensors.size(), -1);
  readers_.assign(program_.tensors.size(), 0);
  for (size_t i = 0; i < program_.instrs.size(); ++i) {
    for (TensorId t : instr(i).out) makers_[static_cast<size_t>(t)] = static_cast<int32_t>(i);
    for (TensorId t : instr(i).in) ++readers_[static_cast<size_t>(t)];
  }
  for (const ProgramOutput& o : program_.outputs) ++readers_[static_cast<size_t>(o.tensor)];
  for (const ProgramSource& s : program_.sources) {
    if (s.final >= 0) ++readers_[static_cast<size_t>(s.final)];
  }
  for (const KeptTensor& k : program_.kept) {
    for (TensorId t : {k.tensor, k.final}) ++readers_[static_cast<size_t>(t)];
  }
}

// What a rewrite has moved to the step's beginning goes there.
void Fuser::sweep() {
  std::vector<Instr> left;
  for (const bool begins : {true, false}) {
    for (size_t i = 0; i < program_.instrs.size(); ++i) {
      if (!gone_[i] && (instr(i).part == Part::kBegin) == begins) {
        left.push_back(std::move(instr(i)));
        gone_[i] = true;
      }
    }
  }
  program_.instrs = std::move(left);
  look();
}

bool is_plain(const Instr& instr) { return is_unsplit(instr) && !once_a_step(instr.part); }

bool can_move_before(const Program& program, size_t at, const std::set<size_t>& stay,
                     const std::function<std::optional<size_t>(TensorId)>& maker, TensorId t,
                     std::set<size_t>& moved) {
  const std::optional<size_t> m = maker(t);
  if (!m || *m < at || moved.contains(*m)) return true;
  const Instr& made = program.instrs[*m];
  if (stay.contains(*m) || !is_plain(made) || made.chunk != program.instrs[at].chunk) return false;
  moved.insert(*m);
  return std::all_of(made.in.begin(), made.in.end(), [&](TensorId in) {
    return can_move_before(program, at, stay, maker, in, moved);
  });
}

bool sums_rows(const Signature& sum) {
  const OperandDims &in = sum.inputs()[0], &out = sum.outputs()[0];
  return in.size() > 1 && out.size() == 1 && out[0] == in.back();
}

char unused_letter(const Signature& s) {
  for (char c = 'A'; c <= 'Z'; ++c) {
    const auto small = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    if (s.factor(c) < 0 && s.factor(small) < 0) return c;
  }
  CLEAVE_ASSERT(false, "'{}' has every letter", s.text());
}

void set_wide(Instr& instr, size_t o) {
  instr.attrs.set("wide", instr.attrs.integer_or("wide", 0) | int64_t{1} << o);
}

}  // namespace cleave
