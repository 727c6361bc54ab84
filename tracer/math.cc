// Arithmetic, products, reductions and joins as functions of tensors.
#include <algorithm>

#include "graph/error.h"
#include "kernels/ops.h"
#include "tracer/state.h"

namespace cleave {

namespace {

// Refuses operands of different element types, and integers where `floats` are needed.
Tracer& checked(std::span<const Tensor> operands, const OpDef& op, Loc loc, bool floats = true) {
  Tracer& tracer = common_tracer(operands, op.name, loc);
  for (const Tensor& t : operands) {
    if (t.dtype() != operands[0].dtype()) {
      tracer.state().refuse(loc, op.name, operands, "the element types differ: use to()");
    }
    if (floats && !is_float(t.dtype())) {
      tracer.state().refuse(loc, op.name, operands, "it needs numbers of a float type: use to()");
    }
  }
  return tracer;
}

Tensor unary(const OpDef& op, const Tensor& x, Loc loc, Attrs attrs = {}) {
  return checked(one(x), op, loc).apply1(op, {x}, {}, std::move(attrs), loc);
}

Tensor binary(const OpDef& op, const Operand& a, const Operand& b) {
  const Tensor operands[] = {a.tensor, b.tensor};
  return checked(operands, op, a.loc).apply(op, operands, {}, {}, a.loc)[0];
}

}  // namespace

// --- One element at a time -----------------------------------------------------------------------

Tensor operator+(const Operand& a, const Operand& b) {
  if (b.is_number()) return unary(ops::add_scalar, a.tensor, a.loc, {{"value", b.number}});
  if (a.is_number()) return unary(ops::add_scalar, b.tensor, b.loc, {{"value", a.number}});
  return binary(ops::add, a, b);
}

Tensor operator-(const Operand& a, const Operand& b) {
  if (b.is_number()) return unary(ops::add_scalar, a.tensor, a.loc, {{"value", -b.number}});
  if (a.is_number()) {
    return unary(ops::add_scalar, unary(ops::neg, b.tensor, b.loc), b.loc, {{"value", a.number}});
  }
  return binary(ops::sub, a, b);
}

Tensor operator*(const Operand& a, const Operand& b) {
  if (b.is_number()) return unary(ops::scale, a.tensor, a.loc, {{"value", b.number}});
  if (a.is_number()) return unary(ops::scale, b.tensor, b.loc, {{"value", a.number}});
  return binary(ops::mul, a, b);
}

Tensor operator/(const Operand& a, const Operand& b) {
  if (b.is_number()) return unary(ops::scale, a.tensor, a.loc, {{"value", 1 / b.number}});
  if (a.is_number()) {
    return unary(ops::scale, unary(ops::reciprocal, b.tensor, b.loc), b.loc, {{"value", a.number}});
  }
  return binary(ops::div, a, b);
}

Tensor operator-(const Operand& a) { return unary(ops::neg, a.tensor, a.loc); }

Tensor exp(const Tensor& x, Loc loc) { return unary(ops::exp, x, loc); }
Tensor log(const Tensor& x, Loc loc) { return unary(ops::log, x, loc); }
Tensor sqrt(const Tensor& x, Loc loc) { return unary(ops::sqrt, x, loc); }
Tensor square(const Tensor& x, Loc loc) { return unary(ops::square, x, loc); }
Tensor reciprocal(const Tensor& x, Loc loc) { return unary(ops::reciprocal, x, loc); }
Tensor relu(const Tensor& x, Loc loc) { return unary(ops::relu, x, loc); }
Tensor tanh(const Tensor& x, Loc loc) { return unary(ops::tanh, x, loc); }
Tensor sigmoid(const Tensor& x, Loc loc) { return unary(ops::sigmoid, x, loc); }
Tensor silu(const Tensor& x, Loc loc) { return unary(ops::silu, x, loc); }
Tensor gelu(const Tensor& x, Loc loc) { return unary(ops::gelu, x, loc); }

// --- Reductions ----------------------------------------------------------------------------------

namespace {

// Reduces `dims`; `kind` is the note that the op's factor string needs ("max"), if any.
Tensor reduce(const OpDef& op, const Tensor& x, const Dims& dims, bool keepdim,
              std::string_view kind, Loc loc) {
  Tracer& tracer = checked(one(x), op, loc);
  if (x.rank() == 0) return x;
  const std::string from = letters_for(x.shape().size());
  std::vector<bool> reduced(from.size(), dims.empty());
  for (int64_t dim : dims) {
    const size_t d = checked_dim(x, dim, x.rank(), op.name, loc);
    if (reduced[d]) {
      tracer.state().refuse(loc, op.name, one(x), fmt::format("dimension {} is given twice", dim));
    }
    reduced[d] = true;
  }
  const bool keep_in_op = keepdim && kind.empty();
  std::string to, notes;
  Shape kept;
  for (size_t d = 0; d < from.size(); ++d) {
    if (!reduced[d]) {
      to += from[d];
    } else if (keep_in_op) {
      to += '1';
    }
    if (reduced[d] && !kind.empty()) {
      notes += fmt::format("{}{}:{}", notes.empty() ? "|" : ",", from[d], kind);
    }
    kept.push_back(reduced[d] ? 1 : x.shape()[d]);
  }
  const Tensor result = tracer.apply1(op, {x}, from + "->" + to + notes, {}, loc);
  return keepdim && !keep_in_op ? result.reshape(std::move(kept), loc) : result;
}

}  // namespace

Tensor sum(const Tensor& x, Dims dims, bool keepdim, Loc loc) {
  return reduce(ops::sum, x, dims, keepdim, {}, loc);
}

Tensor mean(const Tensor& x, Dims dims, bool keepdim, Loc loc) {
  const Tensor total = sum(x, std::move(dims), keepdim, loc);
  const double share = static_cast<double>(total.numel()) / static_cast<double>(x.numel());
  return unary(ops::scale, total, loc, {{"value", share}});
}

Tensor max(const Tensor& x, Dims dims, bool keepdim, Loc loc) {
  return reduce(ops::max, x, dims, keepdim, "max", loc);
}

Tensor logsumexp(const Tensor& x, Dims dims, bool keepdim, Loc loc) {
  return reduce(ops::logsumexp, x, dims, keepdim, "lse", loc);
}

Tensor Tensor::sum(Dims dims, bool keepdim, Loc loc) const {
  return cleave::sum(*this, std::move(dims), keepdim, loc);
}
Tensor Tensor::mean(Dims dims, bool keepdim, Loc loc) const {
  return cleave::mean(*this, std::move(dims), keepdim, loc);
}
Tensor Tensor::max(Dims dims, bool keepdim, Loc loc) const {
  return cleave::max(*this, std::move(dims), keepdim, loc);
}
Tensor Tensor::logsumexp(Dims dims, bool keepdim, Loc loc) const {
  return cleave::logsumexp(*this, std::move(dims), keepdim, loc);
}

Tensor softmax(const Tensor& x, int64_t dim, Loc loc) {
  checked(one(x), ops::softmax, loc);
  const auto d = static_cast<int64_t>(checked_dim(x, dim, x.rank(), "softmax", loc));
  const int64_t last = x.rank() - 1;
  if (d == last) return unary(ops::softmax, x, loc);
  return unary(ops::softmax, x.transpose(d, last, loc), loc).transpose(d, last, loc);
}

// --- Products ------------------------------------------------------------------------------------

Tensor add_all(const std::vector<Tensor>& terms, Loc loc) {
  if (terms.empty()) fail("add_all: there is nothing to add");
  Tracer& tracer = common_tracer(terms, "add_all", loc);
  for (const Tensor& t : terms) {
    if (t.shape() != terms[0].shape() || t.dtype() != terms[0].dtype()) {
      tracer.state().refuse(loc, "add_all", terms, "the shapes or the element types differ");
    }
  }
  if (terms.size() == 1) return terms[0];
  const std::string letters = letters_for(terms[0].shape().size());
  std::string factors = letters;
  for (size_t i = 1; i < terms.size(); ++i) factors += "," + letters;
  return tracer.apply(ops::add_n, terms, factors + "->" + letters, {}, loc)[0];
}

Tensor contract(const Tensor& a, const Tensor& b, std::string_view factors, Loc loc) {
  const Tensor operands[] = {a, b};
  Tracer& tracer = checked(operands, ops::matmul, loc);
  if (const char* mistake = signature_mistake(factors); mistake != nullptr) {
    tracer.state().refuse(loc, "contract", operands, fmt::format("'{}': {}", factors, mistake));
  }
  return tracer.apply(ops::matmul, operands, factors, {}, loc)[0];
}

Tensor linear(const Tensor& x, const Tensor& w, Loc loc) {
  const Tensor operands[] = {x, w};
  return checked(operands, ops::matmul, loc).apply(ops::matmul, operands, {}, {}, loc)[0];
}

Tensor matmul(const Tensor& a, const Tensor& b, Loc loc) {
  Tensor operands[] = {a, b};
  Tracer& tracer = checked(operands, ops::matmul, loc);
  if (a.rank() < 2 || b.rank() < 2) {
    tracer.state().refuse(loc, "matmul", operands, "both operands need at least two dimensions");
  }
  const size_t batch = static_cast<size_t>(std::max(a.rank(), b.rank()) - 2);
  const std::string letters = letters_for(batch, "kmn");
  std::string text[2];
  for (size_t i = 0; i < 2; ++i) {
    // A batch dimension of 1 that the other operand has larger is left out.
    const Tensor own = operands[i];
    const Shape& other = operands[1 - i].shape();
    const size_t count = own.shape().size() - 2;
    Shape sizes;
    for (size_t d = 0; d < count; ++d) {
      const size_t from_end = count - d;
      const bool grows = own.shape()[d] == 1 && other.size() - 2 >= from_end &&
                         other[other.size() - 2 - from_end] > 1;
      if (grows) continue;
      sizes.push_back(own.shape()[d]);
      text[i] += letters[batch - from_end];
    }
    sizes.insert(sizes.end(), own.shape().end() - 2, own.shape().end());
    operands[i] = own.reshape(std::move(sizes), loc);
  }
  const std::string factors = text[0] + "mk," + text[1] + "kn->" + letters + "mn";
  return tracer.apply(ops::matmul, operands, factors, {}, loc)[0];
}

// --- Joins and constants -------------------------------------------------------------------------

Tensor cat(const std::vector<Tensor>& parts, int64_t dim, Loc loc) {
  if (parts.empty()) fail("cat: no tensors");
  Tracer& tracer = checked(parts, ops::concat, loc, false);
  const size_t d = checked_dim(parts[0], dim, parts[0].rank(), "cat", loc);
  if (parts.size() == 1) return parts[0].clone(loc);
  // One letter a part: many parts are joined a few at a time.
  constexpr size_t kMost = 8;
  if (parts.size() > kMost) {
    std::vector<Tensor> joined;
    for (size_t i = 0; i < parts.size(); i += kMost) {
      const std::vector<Tensor> some(
          parts.begin() + static_cast<int64_t>(i),
          parts.begin() + static_cast<int64_t>(std::min(i + kMost, parts.size())));
      joined.push_back(some.size() == 1 ? some[0] : cat(some, dim, loc));
    }
    return cat(joined, dim, loc);
  }
  const std::string own = letters_for(parts.size() + 1);
  const std::string rest = letters_for(parts[0].shape().size(), own);
  std::string factors;
  int64_t total = 0;
  for (size_t i = 0; i <= parts.size(); ++i) {
    std::string operand = rest;
    operand[d] = static_cast<char>(own[i] - 'a' + 'A');
    factors += (i == 0 ? "" : i < parts.size() ? "," : "->") + operand;
    if (i == parts.size()) break;
    if (parts[i].rank() != parts[0].rank()) {
      tracer.state().refuse(loc, "cat", parts, "the numbers of dimensions differ");
    }
    total += parts[i].shape()[d];
  }
  const std::string z(1, static_cast<char>(own.back() - 'a' + 'A'));
  return tracer.apply(ops::concat, parts, factors, {{z, total}}, loc)[0];
}

Tensor stack(const std::vector<Tensor>& parts, int64_t dim, Loc loc) {
  if (parts.empty()) fail("stack: no tensors");
  Tracer& tracer = checked(parts, ops::stack, loc, false);
  const size_t d = checked_dim(parts[0], dim, parts[0].rank() + 1, "stack", loc);
  const std::string part = letters_for(parts[0].shape().size(), "x");
  std::string factors = part;
  for (size_t i = 1; i < parts.size(); ++i) factors += "," + part;
  factors += "->" + part.substr(0, d) + "X" + part.substr(d);
  const Attrs attrs{{"X", static_cast<int64_t>(parts.size())}};
  return tracer.apply(ops::stack, parts, factors, attrs, loc)[0];
}

Tensor full(Shape shape, double value, DType dtype, Loc loc) {
  const std::string letters = letters_for(shape.size());
  Attrs attrs{{"value", value}, {"dtype", std::string(name_of(dtype))}};
  for (size_t d = 0; d < shape.size(); ++d) attrs.set(letters.substr(d, 1), shape[d]);
  return Tracer::current().apply1(ops::fill, {}, "->" + letters, std::move(attrs), loc);
}

Tensor full(Shape shape, double value, Loc loc) {
  return full(std::move(shape), value, Tracer::current().compute_dtype(), loc);
}

Tensor zeros(Shape shape, Loc loc) { return full(std::move(shape), 0, loc); }
Tensor ones(Shape shape, Loc loc) { return full(std::move(shape), 1, loc); }

}  // namespace cleave
