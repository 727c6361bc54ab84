#include "graph/op.h"

#include <algorithm>
#include <array>

#include "graph/error.h"
#include "graph/graph.h"

namespace cleave {

// --- GradContext ---------------------------------------------------------------------------------

Value GradContext::in(size_t i) const { return graph_.node(node_).inputs[i]; }
Value GradContext::out(size_t i) const { return graph_.node(node_).outputs[i]; }
const TensorType GradContext::in_type(size_t i) const { return graph_.type(in(i)); }
const Signature& GradContext::signature() const { return *graph_.node(node_).signature; }
const Attrs& GradContext::attrs() const { return graph_.node(node_).attrs; }
int64_t GradContext::extent(char letter) const {
  const Node& n = graph_.node(node_);
  return n.extents[static_cast<size_t>(n.signature->factor(letter))];
}

std::vector<Value> GradContext::add(const OpDef& op, std::vector<Value> inputs,
                                    std::string_view factors, Attrs attrs) {
  return graph_.add(op, std::move(inputs), factors, std::move(attrs));
}

Value GradContext::add1(const OpDef& op, std::vector<Value> inputs, std::string_view factors,
                        Attrs attrs) {
  return graph_.add1(op, std::move(inputs), factors, std::move(attrs));
}

// --- Defaults ------------------------------------------------------------------------------------

Shape shape_of(const OperandDims& dims, std::span<const int64_t> extents) {
  Shape shape;
  shape.reserve(dims.size());
  for (const DimFactors& dim : dims) {
    int64_t size = 1;
    for (int8_t f : dim) size = product(size, extents[static_cast<size_t>(f)]);
    shape.push_back(size);
  }
  return shape;
}

std::vector<TensorType> infer_from_factors(const OpCall& call) {
  DType dtype = call.in.empty() ? DType::kF32 : call.in[0].dtype;
  for (const TensorType& t : call.in) {
    if (is_float(t.dtype)) {
      dtype = t.dtype;
      break;
    }
  }
  std::vector<TensorType> out;
  for (const OperandDims& dims : call.signature.outputs()) {
    out.push_back({dtype, shape_of(dims, call.extents)});
  }
  return out;
}

double flops_from_factors(const OpCall& call) {
  double flops = 1;
  bool reduces = false;
  for (size_t f = 0; f < call.extents.size(); ++f) {
    flops *= static_cast<double>(call.extents[f]);
    for (size_t o = 0; o < call.signature.outputs().size(); ++o) {
      reduces |= call.signature.reduced_in(static_cast<int>(f), o);
    }
  }
  return reduces ? 2 * flops : flops;
}

double bytes_from_factors(const OpCall& call, std::span<const TensorType> out) {
  double bytes = 0;
  for (const auto& list : {call.in, out}) {
    for (const TensorType& t : list) {
      bytes += static_cast<double>(numel(t.shape) * size_of(t.dtype));
    }
  }
  return bytes;
}

double no_flops(const OpCall&) { return 0; }
double no_bytes(const OpCall&, std::span<const TensorType>) { return 0; }

// --- Factor strings against shapes ---------------------------------------------------------------

namespace {

// Number of dimensions an operand's text names, "..." not counted.
size_t named_dims(std::string_view operand) {
  size_t n = 0;
  bool compound = false;
  for (char c : operand) {
    if (c == '(')
      compound = true, ++n;
    else if (c == ')')
      compound = false;
    else if (c != '.' && !compound)
      ++n;
  }
  return n;
}

}  // namespace

std::string expand_factors(std::string_view factors, std::span<const TensorType> in) {
  if (factors.find("...") == std::string_view::npos) return std::string(factors);
  const size_t arrow = factors.find("->");
  // The shape under "..." is the operands' leading dimensions, aligned at the right.
  Shape batch;
  std::vector<Shape> leading(in.size());
  std::string_view rest = factors.substr(0, arrow);
  for (size_t i = 0; i < in.size(); ++i) {
    const std::string_view operand = rest.substr(0, rest.find(','));
    const bool ellipsis = operand.starts_with("...");
    const size_t named = named_dims(operand);
    const size_t rank = in[i].shape.size();
    if (ellipsis ? rank < named : rank != named) {
      fail("operand {} of '{}' needs {}{} dimensions, got {}", i + 1, factors,
           ellipsis ? "at least " : "", named, to_string(in[i].shape));
    }
    if (ellipsis) {
      leading[i].assign(in[i].shape.begin(), in[i].shape.end() - static_cast<int64_t>(named));
      if (leading[i].size() > batch.size()) {
        batch.insert(batch.begin(), leading[i].size() - batch.size(), 1);
      }
      const size_t shift = batch.size() - leading[i].size();
      for (size_t d = 0; d < leading[i].size(); ++d) {
        batch[shift + d] = std::max(batch[shift + d], leading[i][d]);
      }
    }
    rest.remove_prefix(std::min(rest.size(), operand.size() + 1));
  }
  std::string letters;
  for (char c : std::string_view("bsuvwxyzacdefghijklmnopqrt")) {
    // Nodes follow one another by letter, whatever its case: "s" is not free beside "S".
    const char capital = static_cast<char>(c - 'a' + 'A');
    if (factors.find_first_of(std::string{c, capital}) == std::string_view::npos) letters += c;
  }
  CLEAVE_ASSERT(batch.size() <= letters.size(), "'{}': too many dimensions", factors);
  std::string result;
  size_t operand = 0;
  for (size_t i = 0; i < factors.size(); ++i) {
    if (factors.substr(i).starts_with("...")) {
      const bool output = i > arrow;
      const size_t count = output ? batch.size() : leading[operand].size();
      const size_t shift = batch.size() - count;
      for (size_t d = 0; d < count; ++d) {
        const bool broadcast = !output && leading[operand][d] == 1 && batch[shift + d] != 1;
        result += broadcast ? '1' : letters[shift + d];
      }
      i += 2;
      continue;
    }
    operand += factors[i] == ',' || factors[i] == '>';
    result += factors[i];
  }
  return result;
}

std::vector<int64_t> solve_extents(const Signature& signature, const Attrs& attrs,
                                   std::span<const TensorType> in) {
  const auto& factors = signature.factors();
  std::vector<int64_t> extents(factors.size(), 0);
  for (size_t f = 0; f < factors.size(); ++f) {
    const std::string_view letter(&factors[f].letter, 1);
    if (!attrs.has(letter)) continue;
    extents[f] = attrs.integer(letter);
    if (extents[f] < 1 || extents[f] > kMaxElements) {
      fail("factor '{}' of '{}' cannot have size {}", letter, signature.text(), extents[f]);
    }
  }
  // "->ab" is both one scalar input and none at all.
  const bool none = in.empty() && signature.inputs().size() == 1 && signature.inputs()[0].empty();
  if (in.size() != signature.inputs().size() && !none) {
    fail("'{}' takes {} operands, got {}", signature.text(), signature.inputs().size(), in.size());
  }
  // Dimensions with one unknown factor settle it; repeat until nothing changes.
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t i = 0; i < in.size(); ++i) {
      const OperandDims& dims = signature.inputs()[i];
      if (dims.size() != in[i].shape.size()) {
        fail("operand {} of '{}' needs {} dimensions, got {}", i + 1, signature.text(), dims.size(),
             to_string(in[i].shape));
      }
      for (size_t d = 0; d < dims.size(); ++d) {
        int64_t known = 1;
        int8_t unknown = -1;
        int unknowns = 0;
        for (int8_t f : dims[d]) {
          if (extents[static_cast<size_t>(f)] == 0) {
            unknown = f;
            ++unknowns;
          } else {
            known = product(known, extents[static_cast<size_t>(f)]);
          }
        }
        const int64_t size = in[i].shape[d];
        if (unknowns == 1 && known > 0 && size % known == 0 && size > 0) {
          extents[static_cast<size_t>(unknown)] = size / known;
          changed = true;
        } else if (unknowns == 0 && size != known) {
          fail("dimension {} of operand {} is {} where '{}' needs {}", d, i + 1, size,
               signature.text(), known);
        } else if (unknowns == 1) {
          fail("dimension {} of operand {} is {}, which '{}' needs to be a multiple of {}", d,
               i + 1, size, signature.text(), known);
        }
      }
    }
  }
  for (size_t f = 0; f < factors.size(); ++f) {
    if (extents[f] == 0) {
      fail("the size of factor '{}' of '{}' is not known from the operands", factors[f].letter,
           signature.text());
    }
  }
  return extents;
}

}  // namespace cleave
