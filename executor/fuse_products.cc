// What a matrix product does to its result before it is stored.
#include <algorithm>
#include <cctype>
#include <string>

#include "executor/fuser.h"
#include "graph/error.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

// Product m becomes a linear that takes `operand` too, with these factors, and makes what i made.
void become_linear(Fuser& fuser, size_t m, size_t i, TensorId operand, const std::string& text,
                   std::string_view attribute) {
  Instr& product = fuser.instr(m);
  const Signature& s = *product.signature;
  std::string factors;
  for (size_t k = 0; k < s.inputs().size(); ++k) factors += s.input_text(k) + ",";
  factors += text + "->" + s.output_text(0);
  // What is summed over is whole: partial sums would each add the rest.
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
  fuser.take_result(m, i);
}

}  // namespace

// A product whose result is only cast to f32: sums are in f32 anyway.
bool fuse_wide(Fuser& fuser, size_t i) {
  const Instr& cast = fuser.instr(i);
  if (cast.op != &ops::cast) return false;
  const std::optional<size_t> m = fuser.maker(cast.in[0], cast, &ops::matmul);
  if (!m || !is_half(fuser.dtype(cast.in[0])) || fuser.dtype(cast.out[0]) != DType::kF32) {
    return false;
  }
  Instr& product = fuser.instr(*m);
  if (product.attrs.has("dtype")) return false;
  product.attrs.set("dtype", std::string("f32"));
  fuser.take_result(*m, i);
  return true;
}

// A product and a vector along its last dimension.
bool fuse_bias(Fuser& fuser, size_t i) {
  const Instr& add = fuser.instr(i);
  if (add.op != &ops::add) return false;
  const std::optional<size_t> m = fuser.maker(add.in[0], add, &ops::matmul);
  if (!m || fuser.instr(*m).attrs.has("dtype")) return false;
  const Signature& sums = *add.signature;
  if (sums.inputs()[0] != sums.outputs()[0] || sums.inputs()[1].size() != 1 ||
      sums.inputs()[1][0] != sums.outputs()[0].back() ||
      fuser.dtype(add.in[1]) != fuser.dtype(add.in[0])) {
    return false;
  }
  const Signature& s = *fuser.instr(*m).signature;
  if (s.outputs()[0].empty() || s.outputs()[0].back().size() != 1) return false;
  const OperandDims last = {s.outputs()[0].back()};
  become_linear(fuser, *m, i, add.in[1], s.operand_text(last), "bias");
  return true;
}

// A product, or one with a bias, and a tensor of the same shape.
bool fuse_residual(Fuser& fuser, size_t i) {
  const Instr& add = fuser.instr(i);
  if (add.op != &ops::add || add.signature->inputs()[0] != add.signature->inputs()[1]) return false;
  for (const size_t side : {1u, 0u}) {
    std::optional<size_t> m = fuser.maker(add.in[side], add, &ops::linear);
    if (!m) m = fuser.maker(add.in[side], add, &ops::matmul);
    if (!m) continue;
    const Instr& product = fuser.instr(*m);
    const TensorId other = add.in[1 - side];
    if (product.attrs.has("dtype") || product.attrs.has("residual")) continue;
    if (fuser.dtype(other) != fuser.dtype(add.in[side])) continue;
    become_linear(fuser, *m, i, other, product.signature->output_text(0), "residual");
    return true;
  }
  return false;
}

}  // namespace cleave
