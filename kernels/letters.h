// Sizes of letters, for nodes added by gradient functions.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "graph/op.h"

namespace cleave {

// The attributes with one more: the size of a factor.
inline Attrs with_size(Attrs attrs, char letter, int64_t size) {
  attrs.set(std::string_view(&letter, 1), size);
  return attrs;
}

// The attributes with the sizes of the factors that the operands do not tell: those inside the
// compound dimensions of a factor string in the forward node's letters.
inline Attrs with_compound_sizes(const GradContext& ctx, std::string_view factors, Attrs attrs) {
  bool compound = false, first = false;
  for (const char c : factors.substr(0, factors.find("->"))) {
    if (c == '(') {
      compound = first = true;
    } else if (c == ')') {
      compound = false;
    } else if (compound && !std::exchange(first, false) && ctx.signature().factor(c) >= 0) {
      attrs = with_size(std::move(attrs), c, ctx.extent(c));
    }
  }
  return attrs;
}

// Adds a node to the backward, whose factor string is in the forward node's letters.
inline Value add_backward(GradContext& ctx, const OpDef& op, std::vector<Value> inputs,
                          std::string_view factors, Attrs attrs = {}) {
  attrs = with_compound_sizes(ctx, factors, std::move(attrs));
  return ctx.add1(op, std::move(inputs), factors, std::move(attrs));
}

}  // namespace cleave
