#include "executor/fuse.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <string>
#include <vector>

#include "graph/error.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

// The program with who makes and reads each tensor.
class Fuser {
 public:
  explicit Fuser(Program& program) : p_(program) { look(); }

  // Joins what it can by the rewrite; so often.
  template <class Rewrite>
  int all(const Rewrite& rewrite) {
    int made = 0;
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      if (!gone_[i] && p_.instrs[i].kind == InstrKind::kCompute) made += rewrite(i);
    }
    sweep();
    return made;
  }

  // A product whose result is only cast to f32: sums are in f32 anyway.
  bool wide(size_t i) {
    Instr& cast = p_.instrs[i];
    if (cast.op != &ops::cast) return false;
    const std::optional<size_t> m = maker(cast.in[0], cast, &ops::matmul);
    if (!m || !is_half(dtype(cast.in[0])) || dtype(cast.out[0]) != DType::kF32) return false;
    Instr& product = p_.instrs[*m];
    if (product.attrs.has("dtype")) return false;
    product.attrs.set("dtype", std::string("f32"));
    take_result(*m, i);
    return true;
  }

  // A product, or one with a bias, and a vector along its last dimension.
  bool bias(size_t i) {
    Instr& add = p_.instrs[i];
    if (add.op != &ops::add) return false;
    const std::optional<size_t> m = maker(add.in[0], add, &ops::matmul);
    if (!m || p_.instrs[*m].attrs.has("dtype")) return false;
    const Signature& sums = *add.signature;
    if (sums.inputs()[0] != sums.outputs()[0] || sums.inputs()[1].size() != 1 ||
        sums.inputs()[1][0] != sums.outputs()[0].back() || dtype(add.in[1]) != dtype(add.in[0])) {
      return false;
    }
    const Signature& s = *p_.instrs[*m].signature;
    if (s.outputs()[0].empty() || s.outputs()[0].back().size() != 1) return false;
    const OperandDims last = {s.outputs()[0].back()};
    become_linear(*m, i, add.in[1], s.operand_text(last), "bias");
    return true;
  }

  // A product, or one with a bias, and a tensor of the same shape.
  bool residual(size_t i) {
    Instr& add = p_.instrs[i];
    if (add.op != &ops::add || add.signature->inputs()[0] != add.signature->inputs()[1])
      return false;
    for (const size_t side : {1u, 0u}) {
      std::optional<size_t> m = maker(add.in[side], add, &ops::linear);
      if (!m) m = maker(add.in[side], add, &ops::matmul);
      if (!m) continue;
      const Instr& product = p_.instrs[*m];
      const TensorId other = add.in[1 - side];
      if (product.attrs.has("dtype") || product.attrs.has("residual")) continue;
      if (dtype(other) != dtype(add.in[side]) || !before(other, *m)) continue;
      become_linear(*m, i, other, product.signature->output_text(0), "residual");
      return true;
    }
    return false;
  }

 private:
  DType dtype(TensorId t) const { return p_.tensor(t).dtype; }

  void look() {
    gone_.assign(p_.instrs.size(), false);
    makers_.assign(p_.tensors.size(), -1);
    readers_.assign(p_.tensors.size(), 0);
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      for (TensorId t : p_.instrs[i].out) makers_[static_cast<size_t>(t)] = static_cast<int32_t>(i);
      for (TensorId t : p_.instrs[i].in) ++readers_[static_cast<size_t>(t)];
    }
    for (const ProgramOutput& o : p_.outputs) ++readers_[static_cast<size_t>(o.tensor)];
    for (const ProgramSource& s : p_.sources) {
      if (s.final >= 0) ++readers_[static_cast<size_t>(s.final)];
    }
  }

  // The instruction of this op that makes the tensor for this reader alone, in the same part.
  std::optional<size_t> maker(TensorId t, const Instr& reader, const OpDef* op) const {
    const int32_t m = makers_[static_cast<size_t>(t)];
    if (m < 0 || gone_[static_cast<size_t>(m)] || readers_[static_cast<size_t>(t)] != 1) return {};
    const Instr& instr = p_.instrs[static_cast<size_t>(m)];
    if (instr.kind != InstrKind::kCompute || instr.op != op || instr.out.size() != 1) return {};
    if (instr.part != reader.part || instr.chunk != reader.chunk) return {};
    return static_cast<size_t>(m);
  }

  // Whether the tensor is there when instruction i runs.
  bool before(TensorId t, size_t i) const {
    return makers_[static_cast<size_t>(t)] < static_cast<int32_t>(i);
  }

  // Instruction m makes what i made, and i goes.
  void take_result(size_t m, size_t i) {
    p_.instrs[m].out = p_.instrs[i].out;
    makers_[static_cast<size_t>(p_.instrs[m].out[0])] = static_cast<int32_t>(m);
    gone_[i] = true;
  }

  void become_linear(size_t m, size_t i, TensorId operand, const std::string& text,
                     std::string_view attribute) {
    Instr& product = p_.instrs[m];
    std::string factors;
    for (size_t k = 0; k < product.signature->inputs().size(); ++k) {
      factors += product.signature->input_text(k) + ",";
    }
    factors += text + "->" + product.signature->output_text(0);
    // What is summed over is whole: partial sums would each add the rest.
    const Signature& s = *product.signature;
    for (size_t f = 0; f < s.factors().size(); ++f) {
      const char letter = s.factors()[f].letter;
      if (!s.reduced_in(static_cast<int>(f), 0) || s.factors()[f].whole) continue;
      const auto capital = static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
      CLEAVE_ASSERT(s.factor(capital) < 0, "'{}' has both {} and {}", s.text(), letter, capital);
      std::replace(factors.begin(), factors.end(), letter, capital);
    }
    product.op = &ops::linear;
    product.signature = &Signature::get(factors);
    product.attrs.set(attribute, int64_t{1});
    product.in.push_back(operand);
    take_result(m, i);
  }

  void sweep() {
    std::vector<Instr> left;
    for (size_t i = 0; i < p_.instrs.size(); ++i) {
      if (!gone_[i]) left.push_back(std::move(p_.instrs[i]));
    }
    p_.instrs = std::move(left);
    look();
  }

  Program& p_;
  std::vector<bool> gone_;        // by instruction
  std::vector<int32_t> makers_;   // by tensor; -1: a source
  std::vector<int32_t> readers_;  // by tensor: how many, the program's end among them
};

struct Rewrite : Fusion {
  bool (Fuser::*apply)(size_t) = nullptr;
};

// In the order in which they are tried.
constexpr std::array<Rewrite, 3> kRewrites = {{
    {{"wide", "a product of halves whose result is cast to f32 is stored in f32"}, &Fuser::wide},
    {{"bias", "a product adds its bias"}, &Fuser::bias},
    {{"residual", "a product adds what stands beside it"}, &Fuser::residual},
}};

}  // namespace

std::span<const Fusion> fusions() {
  static const std::vector<Fusion> all(kRewrites.begin(), kRewrites.end());
  return all;
}

std::vector<int> fuse(Program& program, std::span<const std::string> off) {
  for (const std::string& name : off) {
    const bool known = std::any_of(kRewrites.begin(), kRewrites.end(),
                                   [&](const Rewrite& r) { return r.name == name; });
    if (!known) fail("there is no fusion '{}'", name);
  }
  std::vector<int> made(kRewrites.size(), 0);
  if (program.ranks() != 1) return made;
  Fuser fuser(program);
  for (size_t r = 0; r < kRewrites.size(); ++r) {
    if (std::find(off.begin(), off.end(), kRewrites[r].name) != off.end()) continue;
    made[r] = fuser.all([&](size_t i) { return (fuser.*kRewrites[r].apply)(i); });
  }
  return made;
}

}  // namespace cleave
