// The reference of a fused op is its parts, one after the other, and so is what a GPU has no kernel
// for.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "graph/op.h"

namespace cleave {

// The extents of the factors of a part, which have the letters of the whole.
inline std::vector<Extent> part_extents(const Signature& part, const KernelArgs& args) {
  std::vector<Extent> extents;
  for (const Factor& f : part.factors()) extents.push_back(args.extent(f.letter));
  return extents;
}

// Runs an op's kernel, where the other one runs, on some of its operands, with the factors that it
// has of them. On a GPU the op's workspace is to fit into the other's.
inline void run_part(const OpDef& op, const std::string& factors, const KernelArgs& args,
                     const std::vector<TensorView>& in, std::span<const TensorView> out) {
  const Signature& signature = Signature::get(factors);
  const std::vector<Extent> extents = part_extents(signature, args);
  const auto kernel = args.device == nullptr ? op.cpu : op.cuda;
  kernel({.signature = signature,
          .attrs = args.attrs,
          .in = in,
          .out = out,
          .extents = extents,
          .workspace = args.workspace,
          .seed = args.seed,
          .team = args.team,
          .device = args.device,
          .stream = args.stream,
          .element = op.element});
}
inline void run_part(const OpDef& op, const std::string& factors, const KernelArgs& args,
                     const std::vector<TensorView>& in, const TensorView& out) {
  run_part(op, factors, args, in, std::span(&out, 1));
}

}  // namespace cleave
