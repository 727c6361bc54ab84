// What stands behind the product of a linear with `swiglu` or `swiglu_backward`
// (kernels/linear.cc), by itself: of the product where the first result is.
#pragma once

#include <string>

#include "graph/error.h"
#include "kernels/ops.h"
#include "kernels/run_part.h"

namespace cleave {

inline void run_gated_part(const KernelArgs& args) {
  const Signature& s = args.signature;
  if (args.attrs.integer_or("swiglu_backward", 0) != 0) {
    const std::string c = s.output_text(0);
    CLEAVE_ASSERT(args.out[0].data == nullptr ||
                      (args.out[0].data != args.in[2].data && args.out[0].data != args.in[3].data),
                  "linear: the product overwrites an operand of SwiGLU");
    run_part(ops::swiglu_backward, c + "," + c + "," + c + "->" + c + "," + c, args,
             {args.in[2], args.in[3], args.out[0]}, args.out);
    return;
  }
  // The gate and what it lets through are views of the first result.
  TensorView gate = args.out[0];
  if (gate.numel() == 0) return;
  const auto which = static_cast<std::ptrdiff_t>(gate.shape.size()) - 2;
  const int64_t step = gate.strides[static_cast<size_t>(which)];
  gate.shape.erase(gate.shape.begin() + which);
  gate.strides.erase(gate.strides.begin() + which);
  TensorView up = gate;
  up.data = gate.as<std::byte>() + step * size_of(gate.dtype);
  const std::string y = s.output_text(1);
  run_part(ops::swiglu, y + "," + y + "->" + y, args, {gate, up}, args.out[1]);
}

}  // namespace cleave
