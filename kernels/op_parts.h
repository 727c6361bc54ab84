// What the definitions of fused ops share: checks of element types, costs, letters, and the writing
// of an op with a whole factor in ops that can be split along it.
#pragma once

#include <cctype>
#include <string>
#include <string_view>
#include <vector>

#include "graph/error.h"
#include "graph/graph.h"
#include "graph/op.h"
#include "kernels/ops.h"

namespace cleave {

// Statistics of rows of 16 bits (mean, log-sum-exp) are kept in f32.
inline DType statistics_dtype(DType x) { return is_half(x) ? DType::kF32 : x; }

// Throws Error unless operand i has the element type that kinds[i] stands for: 'x' that of the
// first operand, 's' statistics of it, 'i' i32.
inline void expect_types(const OpCall& call, std::string_view kinds) {
  CLEAVE_ASSERT(kinds.size() == call.in.size(), "'{}' has {} operands, not {}",
                call.signature.text(), call.in.size(), kinds.size());
  const DType x = call.in[0].dtype;
  if (!is_float(x)) fail("operand 1 must be a float tensor, got {}", to_string(call.in[0]));
  for (size_t i = 0; i < kinds.size(); ++i) {
    const DType want = kinds[i] == 'i' ? DType::kI32 : kinds[i] == 's' ? statistics_dtype(x) : x;
    if (call.in[i].dtype != want) {
      fail("operand {} must be {}, got {}", i + 1, name_of(want), to_string(call.in[i]));
    }
  }
}

// The type of output o with this element type.
inline TensorType output_type(const OpCall& call, size_t o, DType dtype) {
  return {dtype, shape_of(call.signature.outputs()[o], call.extents)};
}

// So many operations for every element of the first input.
template <int kOperations>
double flops_each(const OpCall& call) {
  return kOperations * static_cast<double>(numel(call.in[0].shape));
}

// The small form of a letter, for an op that can be split along it.
inline char lower(char letter) {
  return static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
}

// The text with one letter replaced.
inline std::string with_letter(std::string text, char from, char to) {
  for (char& c : text) c = c == from ? to : c;
  return text;
}

// "|s:indexed,t:indexed" for the signature's indexed factors and one more; "" when there is none.
inline std::string indexed_notes(const Signature& s, char more = 0) {
  std::string notes;
  const auto note = [&](char letter) {
    notes += std::string(notes.empty() ? "|" : ",") + letter + ":indexed";
  };
  for (const Factor& f : s.factors()) {
    if (f.indexed) note(f.letter);
  }
  if (more != 0) note(more);
  return notes;
}

inline Attrs size_attr(char letter, int64_t size) {
  Attrs attrs;
  attrs.set(std::string_view(&letter, 1), size);
  return attrs;
}

// An op under a SplitRequest, being written in other ops. The factor that was whole is written in
// small letters there, so that those ops can be split along it.
class Decomposition {
 public:
  explicit Decomposition(const SplitRequest& request)
      : request_(request), letter_(lower(request.letter)) {
    CLEAVE_ASSERT(request.call.signature.factor(letter_) < 0, "'{}' has both {} and {}",
                  request.call.signature.text(), letter_, request.letter);
  }

  // The text of an operand, with the factor's letter small.
  std::string in(size_t i) const { return small(request_.call.signature.input_text(i)); }
  std::string out(size_t i) const { return small(request_.call.signature.output_text(i)); }
  std::string letter() const { return std::string(1, letter_); }
  // The text without the factor, which is a dimension of its own there.
  std::string without(std::string text) const {
    std::erase(text, letter_);
    return text;
  }
  Value input(size_t i) const { return request_.inputs[i]; }
  // The whole size of the factor.
  double size() const { return static_cast<double>(request_.call.extent(request_.letter)); }

  Value add(const OpDef& op, std::vector<Value> inputs, std::string_view factors,
            Attrs attrs = {}) const {
    // The factors of a compound dimension cannot be told from its size.
    bool compound = false;
    for (const char c : factors.substr(0, factors.find('|'))) {
      if (c == '(' || c == ')') compound = c == '(';
      if (compound && c != '(' && request_.call.signature.factor(c) >= 0) {
        attrs.set(std::string_view(&c, 1), request_.call.extent(c));
      }
    }
    return request_.graph.add1(op, std::move(inputs), factors, std::move(attrs));
  }
  // op(a) where the result lies as `text`.
  Value map(const OpDef& op, Value a, const std::string& text, Attrs attrs = {}) const {
    return add(op, {a}, text + "->" + text, std::move(attrs));
  }
  // op(a, b) where a lies as `text`, as does the result, and b as b_text.
  Value zip(const OpDef& op, Value a, const std::string& text, Value b,
            const std::string& b_text) const {
    return add(op, {a, b}, text + "," + b_text + "->" + text);
  }
  Value sum(Value a, const std::string& from, const std::string& to) const {
    return add(ops::sum, {a}, from + "->" + to);
  }
  // The mean over the factor.
  Value mean(Value a, const std::string& from, const std::string& to) const {
    return map(ops::scale, sum(a, from, to), to, {{"value", 1 / size()}});
  }
  // v, which lies as `text`, in the element type given.
  Value cast(Value v, const std::string& text, DType dtype) const {
    if (request_.graph.type(v).dtype == dtype) return v;
    return map(ops::cast, v, text, {{"dtype", std::string(name_of(dtype))}});
  }
  // The outputs in the element types that the op gives them.
  std::vector<Value> finish(std::vector<Value> outputs, InferFn infer) const {
    const std::vector<TensorType> types = infer(request_.call);
    for (size_t o = 0; o < outputs.size(); ++o) {
      outputs[o] = cast(outputs[o], out(o), types[o].dtype);
    }
    return outputs;
  }

 private:
  std::string small(std::string text) const {
    return with_letter(std::move(text), request_.letter, letter_);
  }

  const SplitRequest& request_;
  char letter_;
};

}  // namespace cleave
