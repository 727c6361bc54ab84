// What a matrix product does to its result before it is stored.
#include <algorithm>
#include <cctype>
#include <string>

#include "executor/fuser.h"
#include "graph/error.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

// The product becomes a linear with this attribute, and with these factors of operands more, and
// of results.
void become_linear(Instr& product, std::string_view attribute,
                   const std::vector<std::string>& operands,
                   const std::vector<std::string>& results) {
  const Signature& s = *product.signature;
  SignatureParts factors = s.parts();
  factors.inputs.insert(factors.inputs.end(), operands.begin(), operands.end());
  factors.outputs.insert(factors.outputs.end(), results.begin(), results.end());
  // What is summed over is whole: partial sums would each add the rest.
  for (size_t f = 0; f < s.factors().size(); ++f) {
    const char letter = s.factors()[f].letter;
    if (!s.reduced_in(static_cast<int>(f), 0) || s.factors()[f].whole) continue;
    const auto capital = static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
    CLEAVE_ASSERT(s.factor(capital) < 0, "'{}' has both {} and {}", s.text(), letter, capital);
    for (std::string& input : factors.inputs)
      std::replace(input.begin(), input.end(), letter, capital);
  }
  product.op = &ops::linear;
  product.signature = &Signature::get(factors);
  product.attrs.set(attribute, int64_t{1});
}

}  // namespace

void add_operand(Instr& product, TensorId operand, const std::string& text,
                 std::string_view attribute) {
  become_linear(product, attribute, {text}, {});
  product.in.push_back(operand);
}

namespace {

bool has(const Instr& instr, std::string_view attribute) { return instr.attrs.has(attribute); }

// The product that makes the tensor for this reader alone, and has none beside it yet.
std::optional<size_t> product_of(const Fuser& fuser, TensorId t, const Instr& reader) {
  std::optional<size_t> m = fuser.maker(t, reader, &ops::linear);
  if (!m) m = fuser.maker(t, reader, &ops::matmul);
  if (!m) return {};
  return has(fuser.instr(*m), "residual") || has(fuser.instr(*m), "gelu_backward") ? std::nullopt
                                                                                   : m;
}

// The product with the gate and what it lets through side by side (fuse_siblings.cc), of which an
// instruction reads both.
std::optional<size_t> product_of_both(const Fuser& fuser, const Instr& reader) {
  const std::optional<size_t> parts = fuser.maker(reader.in[0], reader);
  if (!parts) return {};
  const Instr& unbind = fuser.instr(*parts);
  if (unbind.op != &ops::unbind || unbind.out != reader.in) return {};
  const std::optional<size_t> m = fuser.maker(unbind.in[0], reader, &ops::matmul);
  if (!m || has(fuser.instr(*m), "dtype")) return {};
  // They are parts along the last dimension but one, which the second operand alone has, whole.
  const Signature& s = *fuser.instr(*m).signature;
  const OperandDims &c = s.outputs()[0], &whole = unbind.signature->inputs()[0];
  OperandDims without = whole;
  if (c.size() < 2 || c.size() != whole.size()) return {};
  without.erase(without.end() - 2);
  if (unbind.signature->outputs()[0] != without) return {};
  for (const size_t d : {c.size() - 2, c.size() - 1}) {
    if (c[d].size() != 1 || Signature::carries(s.inputs()[0], c[d][0])) return {};
  }
  if (!s.factors()[static_cast<size_t>(c[c.size() - 2][0])].whole) return {};
  return m;
}

}  // namespace

// A product, a sum or the gradient of a norm's weights whose result is only cast to f32: sums are
// in f32 anyway.
bool fuse_wide(Fuser& fuser, size_t i) {
  const Instr& cast = fuser.instr(i);
  if (cast.op != &ops::cast || fuser.readers(cast.in[0]) != 1 ||
      !is_half(fuser.dtype(cast.in[0])) || fuser.dtype(cast.out[0]) != DType::kF32) {
    return false;
  }
  const std::optional<size_t> m = fuser.maker(cast.in[0], cast);
  if (!m) return false;
  Instr& made = fuser.instr(*m);
  const auto o = static_cast<size_t>(std::find(made.out.begin(), made.out.end(), cast.in[0]) -
                                     made.out.begin());
  if (made.op == &ops::matmul || made.op == &ops::sum) {
    if (made.attrs.has("dtype")) return false;
    made.attrs.set("dtype", std::string("f32"));
  } else if (made.op == &ops::layer_norm_backward || made.op == &ops::rms_norm_backward) {
    if (o == 0) return false;
    set_wide(made, o);
  } else {
    return false;
  }
  fuser.give_result(*m, o, i);
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
  add_operand(fuser.instr(*m), add.in[1], s.operand_text(last), "bias");
  fuser.take_result(*m, i);
  return true;
}

// A sum of tensors of one shape, all but one of them products, or with a bias: each product adds
// the sum of those before, and the last, in the place of the sum, makes it all.
bool fuse_residual(Fuser& fuser, size_t i) {
  const Instr& add = fuser.instr(i);
  if (add.op != &ops::add && add.op != &ops::add_n) return false;
  std::vector<size_t> products;
  TensorId beside = -1;
  for (size_t k = 0; k < add.in.size(); ++k) {
    if (add.signature->inputs()[k] != add.signature->outputs()[0] ||
        fuser.dtype(add.in[k]) != fuser.dtype(add.out[0])) {
      return false;
    }
    if (const auto m = product_of(fuser, add.in[k], add)) {
      products.push_back(*m);
    } else if (beside < 0) {
      beside = add.in[k];
    } else {
      return false;
    }
  }
  std::sort(products.begin(), products.end());
  if (beside < 0) {
    beside = fuser.instr(products.front()).out[0];
    products.erase(products.begin());
  }
  if (products.empty() || (products.size() > 1 && !fuser.before(beside, products.front()))) {
    return false;
  }
  for (const size_t m : products) {
    const TensorId result = fuser.instr(m).out[0];
    add_operand(fuser.instr(m), beside, fuser.instr(m).signature->output_text(0), "residual");
    beside = result;
  }
  fuser.take_result(products.back(), i);
  return true;
}

// GELU of a product, which makes both; and its backward, of a product that nobody else reads.
bool fuse_gelu(Fuser& fuser, size_t i) {
  const Instr& instr = fuser.instr(i);
  if (instr.op != &ops::gelu && instr.op != &ops::gelu_backward) return false;
  const bool backward = instr.op == &ops::gelu_backward;
  if (instr.out.size() != 1) return false;
  const TensorId product = instr.in[backward ? 1 : 0];
  std::optional<size_t> m =
      backward ? product_of(fuser, product, instr) : fuser.maker(product, instr);
  if (!m) return false;
  Instr& made = fuser.instr(*m);
  if ((made.op != &ops::matmul && made.op != &ops::linear) || made.out.size() != 1 ||
      has(made, "dtype") || has(made, "residual") || has(made, "gelu_backward") ||
      (backward && has(made, "bias")) || fuser.dtype(product) != fuser.dtype(instr.out[0])) {
    return false;
  }
  const std::string c = made.signature->output_text(0);
  if (backward) {
    add_operand(made, instr.in[0], c, "gelu_backward");
    fuser.take_result(*m, i);
  } else {
    become_linear(made, "gelu", {}, {c});
    fuser.give_result(*m, 1, i);
    fuser.mark(*m);
  }
  return true;
}

// SwiGLU of the products that make its operands, which are one; and its backward, of a product that
// nobody else reads.
bool fuse_swiglu(Fuser& fuser, size_t i) {
  const Instr& instr = fuser.instr(i);
  if (instr.op == &ops::swiglu) {
    const std::optional<size_t> m = product_of_both(fuser, instr);
    if (!m || fuser.dtype(fuser.instr(*m).out[0]) != fuser.dtype(instr.out[0])) return false;
    Instr& made = fuser.instr(*m);
    OperandDims dims = made.signature->outputs()[0];
    dims.erase(dims.end() - 2);
    become_linear(made, "swiglu", {}, {made.signature->operand_text(dims)});
    fuser.give_result(*m, 1, i);
    fuser.mark(*m);
    return true;
  }
  if (instr.op != &ops::swiglu_backward) return false;
  const std::optional<size_t> m = fuser.maker(instr.in[2], instr, &ops::matmul);
  if (!m || has(fuser.instr(*m), "dtype") ||
      fuser.dtype(instr.in[2]) != fuser.dtype(instr.out[0])) {
    return false;
  }
  Instr& made = fuser.instr(*m);
  const std::string c = made.signature->output_text(0);
  become_linear(made, "swiglu_backward", {c, c}, {c});
  made.in.insert(made.in.end(), {instr.in[0], instr.in[1]});
  fuser.take_result(*m, i);
  return true;
}

}  // namespace cleave
